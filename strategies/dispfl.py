"""DisPFL on a server (after Dai et al., ICML 2022): personal masks, overlapping weights averaged.

Every client has a mask of its own, at the density, and receives and trains the weights under it alone. After
training it drops the smallest weights of each layer and grows as many by gradient, for the next time it
takes part. The server averages each weight over the clients that held it.

Differences from the paper
--------------------------
- DisPFL has no server: a client averages the models of its neighbours. Here the server does so for all that
  take part in a round; a client has no weights of its own between rounds.
- All clients have the same density.
- A weight that no client holds is 0; a weight that grows starts from what the server has of it.

References
----------
- R. Dai, L. Shen, F. He, X. Tian, D. Tao: DisPFL: Towards Communication-Efficient Personalized Federated
  Learning via Decentralized Sparse Training. ICML 2022, arXiv 2206.00187. Code: github.com/rong-dai/DisPFL.
"""

from __future__ import annotations

from fedprune.server.personalised import SwappingStrategy


class DisPFL(SwappingStrategy):
    """Personal masks that clients swap, overlaps averaged by a server (after Dai et al., ICML 2022)."""
