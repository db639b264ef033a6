"""The wire format: sparse state <-> ``ArrayRecord``, masks <-> bytes, and how long they are.

`layout` says what a state is, `values` packs states into arrays, `supermasks` those of networks with
frozen weights, `masks` and `bits` code masks and other bits, `size` counts the bytes of a message, `checksum`
tells whether a reply is damaged. When to send what is for the strategy and client.
"""

from __future__ import annotations

from fedprune.wire.bits import decode_bits, encode_bits
from fedprune.wire.checksum import add_checksum, verify_checksum
from fedprune.wire.layout import Layout, get_state, set_state
from fedprune.wire.masks import decode_masks, encode_masks
from fedprune.wire.size import check_size, content_bytes, largest_reply, payload_bytes
from fedprune.wire.supermasks import SupermaskCodec
from fedprune.wire.values import (
    CODEC,
    Codec,
    StateCodec,
    ValueType,
    mask_bytes,
    take_masks,
    with_masks,
)

__all__ = [
    "CODEC",
    "Codec",
    "Layout",
    "StateCodec",
    "SupermaskCodec",
    "ValueType",
    "add_checksum",
    "check_size",
    "content_bytes",
    "decode_bits",
    "decode_masks",
    "encode_bits",
    "encode_masks",
    "get_state",
    "largest_reply",
    "mask_bytes",
    "payload_bytes",
    "set_state",
    "take_masks",
    "verify_checksum",
    "with_masks",
]
