"""Networks of the layers that PyTorch has, as others wrote them, for images (B, C, H, W).

A scenario names them as ``networks.py:Name``; each is called with an input shape and a number of classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def sequence_of(x: Tensor) -> Tensor:
    """Return images as sequences of their rows, (B, H, C * W)."""
    return x.transpose(1, 2).flatten(2)


class WordLanguageModel(nn.Module):
    """``RNNModel`` of pytorch/examples, word_language_model; a pixel's brightness is a word."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        rnn_type: str = "LSTM",
        tie_weights: bool = True,
        size: int = 12,
        nlayers: int = 2,
    ) -> None:
        super().__init__()
        self.ntoken = classes
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(classes, size)
        self.rnn = getattr(nn, rnn_type)(size, size, nlayers, dropout=0.2)
        self.decoder = nn.Linear(size, classes)
        if tie_weights:
            self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        words = (x[:, 0, ::2, ::2].flatten(1).t() * self.ntoken).long().clamp(0, self.ntoken - 1)
        output, _ = self.rnn(self.drop(self.encoder(words)))
        decoded = self.decoder(self.drop(output))
        return functional.log_softmax(decoded[-1], dim=1)


class RowByRow(nn.Module):
    """A recurrent layer over the rows of an image, and one linear layer."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        kind: str = "LSTM",
        bidirectional: bool = False,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        projection = {"proj_size": proj_size} if proj_size else {}
        self.rnn = getattr(nn, kind)(
            input_shape[0] * input_shape[2], 16, batch_first=True, bidirectional=bidirectional, **projection
        )
        self.h = nn.Linear((proj_size or 16) * (2 if bidirectional else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.rnn(sequence_of(x))[0][:, -1])


class Encoder(nn.Module):
    """PyTorch's transformer encoder over the rows of an image."""

    def __init__(
        self, input_shape: tuple[int, int, int], classes: int, layers: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.rows = nn.Linear(input_shape[0] * input_shape[2], 16)
        self.position = nn.Parameter(torch.zeros(input_shape[1], 16))
        layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.rows(sequence_of(x)) + self.position).mean(1))


class SeparateAttention(nn.Module):
    """Attention from half of the rows to all of them, whose keys and values have sizes of their own."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        width = input_shape[0] * input_shape[2]
        self.query = nn.Linear(width, 16)
        self.attention = nn.MultiheadAttention(16, 2, kdim=width, vdim=width, batch_first=True)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = sequence_of(x)
        query = self.query(rows[:, : rows.shape[1] // 2])
        return self.head(self.attention(query, rows, rows)[0].mean(1))


class Volumes(nn.Module):
    """Convolutions over three dimensions, as C3D has them."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 6, 3, padding=1)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = nn.Conv3d(6, 8, 3, padding=1)
        self.pool2 = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.conv1(x.unsqueeze(1)).relu())
        return self.fc(self.pool2(self.conv2(x).relu()).flatten(1))


class Signals(nn.Module):
    """The rows of an image as a signal: 1-D convolutions of three kinds, group and layer norm."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(input_shape[0] * input_shape[2], 12, 3, padding=1)
        self.norm = nn.GroupNorm(3, 12)
        self.depthwise = nn.Conv1d(12, 12, 3, groups=12, bias=False)
        self.up = nn.ConvTranspose1d(12, 8, 2, stride=2)
        self.layer = nn.LayerNorm(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        signal = sequence_of(x).transpose(1, 2)
        signal = self.up(self.depthwise(self.norm(self.conv(signal)).relu()).relu())
        return self.head(self.layer(signal.mean(2)))


class Cells(nn.Module):
    """A recurrent cell that is called row by row."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, kind: str = "GRUCell") -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(input_shape[0] * input_shape[2], 16)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for row in sequence_of(x).unbind(1):
            state = self.cell(row, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Tied(nn.Module):
    """Two hidden layers that share one weight, and have a bias each."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], 24)
        self.one = nn.Linear(24, 24)
        self.other = nn.Linear(24, 24)
        self.other.weight = self.one.weight
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.one(self.stem(x.flatten(1)).relu()).relu()).relu())


class ReturnsDict(Tied):
    """A model as many of a hub are: what it returns has the logits in it."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(x), "hidden": x}


class ReturnsTwoInTraining(Tied):
    """Like torchvision's GoogLeNet: further logits in training."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return (logits, logits) if self.training else logits
