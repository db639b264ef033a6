"""What strategies share on the server: their base class, rounds, messages, aggregation, budgets."""
