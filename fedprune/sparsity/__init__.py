"""Sparsity in plain PyTorch: which weights a model keeps, and training while it keeps them.

A criterion says how much each weight matters, a distribution how many weights each layer keeps,
a schedule how a number changes over rounds; `pruning.prune` makes masks from the first two and a
density, `training.hold` trains under them. Nothing here knows a strategy, Flower or Ray.
"""
