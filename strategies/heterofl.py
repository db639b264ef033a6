"""HeteroFL (Diao et al., ICLR 2021): every client trains the first channels of each layer, as many as it can.

The submodels are nested: one with a quarter of the channels is part of that with half of them. A client gets
the largest whose training step fits its device's memory and, where rounds have a deadline, its time
(``share_of`` fixes it by device). What clients send back is averaged weight by weight over those who have it.

Differences from the paper
--------------------------
- Levels follow from the devices; the paper draws them, fixed or anew in each round.
- Batch norm keeps running statistics, averaged like weights. ``static_batch_norm`` measures them anew after
  each round, on its clients that hold the whole model; the paper asks all clients once, before testing.
- Without the paper's scaler, which divides outputs by the share while training: batch norm undoes it.
- Without masking of the classes that a client does not have from its loss.
- Averages are weighted by examples; the paper's clients have equally many.

References
----------
- E. Diao, J. Ding, V. Tarokh: HeteroFL: Computation and Communication Efficient Federated Learning for
  Heterogeneous Clients. ICLR 2021, arXiv 2010.01264.
"""

from __future__ import annotations

from fedprune.server.submodels import SubmodelStrategy


class HeteroFL(SubmodelStrategy):
    """Clients train the first channels of each layer, as many as they can (Diao et al., ICLR 2021)."""
