"""The engine: Flower's messages carried by Ray, and the run of a scenario on it."""
