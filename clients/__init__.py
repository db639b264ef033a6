"""Client side: one file a way of training."""
