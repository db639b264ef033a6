"""A strategy whose masks move every round, as those of dynamic sparse training do."""

from __future__ import annotations

import torch

from fedprune import seeds
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable


class Moving(PruningStrategy):
    """Keeps another half of each layer after every round, always as many weights."""

    def prepare(self, grid):
        self.set_masks(self.drawn(0))

    def update_masks(self, server_round):
        self.set_masks(self.drawn(server_round))

    def drawn(self, server_round):
        generator = seeds.torch_generator(self.scenario.seed, "moving", server_round)
        masks = {}
        for name in prunable(self.module):
            weight = self.module.get_parameter(name)
            order = torch.randperm(weight.numel(), generator=generator)
            masks[name] = (order < weight.numel() // 2).reshape(weight.shape)
        return Masks(masks)
