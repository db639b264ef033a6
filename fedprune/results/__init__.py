"""The run folder: what is written, read back, tabulated and drawn."""
