"""Compressors: how the update that a client sends after its training is made small.

One file here for each built-in one. What they share is in `base`, what an update is written into and read
from in `message`. That the update is of kept weights alone, what a client keeps of its error, and how it
travels in a message is for `fedprune.protocol.updates`.
"""

from __future__ import annotations

from fedprune.compression.base import Compressor, Feedback, FeedbackOptions, Frame, Memory, Part
from fedprune.compression.compeft import ComPEFT
from fedprune.compression.dare import DARE
from fedprune.compression.message import FloatType, Source, Writer
from fedprune.compression.powersgd import PowerSGD
from fedprune.compression.qsgd import QSGD
from fedprune.compression.randomk import RandomK
from fedprune.compression.signsgd import SignSGD
from fedprune.compression.topk import TopK

#: The compressors that a scenario can name, besides custom ones.
COMPRESSORS: dict[str, type[Compressor]] = {
    "compeft": ComPEFT,
    "dare": DARE,
    "powersgd": PowerSGD,
    "qsgd": QSGD,
    "randomk": RandomK,
    "signsgd": SignSGD,
    "topk": TopK,
}

__all__ = [
    "COMPRESSORS",
    "Compressor",
    "Feedback",
    "FeedbackOptions",
    "FloatType",
    "Frame",
    "Memory",
    "Part",
    "Source",
    "Writer",
]
