"""What server and client say to each other: the one place that both sides import."""
