"""Sizes, rates and durations as people write and read them: "64 MiB", "5 Mbit/s", "2 GFLOP/s", "2 min 5 s".

Inside fedprune a size is a whole number of bytes, a link is bytes per second, a processor is FLOP per
second and a duration is seconds; this module is where they meet text, and nowhere else. "KB" is 1000
bytes and "KiB" is 1024; a capital B is a byte, a bit is spelled out ("Mbit") or part of "Mbps".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}

_BYTE_UNITS = {f"{prefix}B": float(factor) for prefix, factor in (_DECIMAL | _BINARY).items()}
_BYTE_RATE_UNITS = (
    {f"{unit}/s": factor for unit, factor in _BYTE_UNITS.items()}
    | {f"{prefix}bit/s": factor / 8 for prefix, factor in _DECIMAL.items()}
    | {f"{prefix}bps": factor / 8 for prefix, factor in _DECIMAL.items()}
)
_FLOP_RATE_UNITS = {
    f"{prefix}{unit}": float(factor) for prefix, factor in _DECIMAL.items() for unit in ("FLOP/s", "FLOPS")
}

_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_BYTES_FORMS = "a number of bytes, or a number and a unit such as '64 MiB', '512 KiB' or '1.5 GB'"
_BYTE_RATE_FORMS = "a number of bytes per second, or a number and a unit such as '5 Mbit/s' or '2 MB/s'"
_FLOP_RATE_FORMS = "a number of FLOP per second, or a number and a unit such as '2 GFLOP/s' or '500 MFLOPS'"


def _parse(value: object, units: Mapping[str, float], forms: str) -> float:
    """Return the value in base units; refuse what is not a positive finite amount."""
    if isinstance(value, str):
        match = re.fullmatch(rf"\s*({_NUMBER})\s*([A-Za-z/]*)\s*", value)
        if match is None or (match[2] and match[2] not in units):
            raise ValueError(f"{value!r} is not understood: write {forms}")
        amount = float(match[1]) * units.get(match[2], 1.0)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        amount = float(value)
    else:
        raise ValueError(f"{value!r} is not an amount: write {forms}")
    if not 0 < amount < math.inf:
        raise ValueError(f"{value!r} is not a positive amount: write {forms}")
    return amount


def parse_bytes(value: object) -> int:
    """Return a number of bytes, rounded to a whole one.

    Parameters
    ----------
    value : int, float or str
        A number of bytes, or text: a number and one of B, KB, MB, GB, TB, PB (powers of 1000; "kB" is
        "KB"), KiB, MiB, GiB, TiB, PiB (powers of 1024).

    Raises
    ------
    ValueError
        Where the value is not in such a form, or is less than one byte.

    Examples
    --------
    >>> parse_bytes("64 MiB"), parse_bytes("1.5 KB"), parse_bytes(10)
    (67108864, 1500, 10)
    """
    # A whole number is exact at any size; as a float it would be so up to 2**53 only.
    amount = _parse(value, _BYTE_UNITS, _BYTES_FORMS)
    whole = value if isinstance(value, int) else round(amount)
    if whole < 1:
        raise ValueError(f"{value!r} is less than one byte: write {_BYTES_FORMS}")
    return whole


def parse_byte_rate(value: object) -> float:
    """Return bytes per second, from a number or text such as "5 Mbit/s", "5 Mbps" or "2 MB/s".

    Raises
    ------
    ValueError
        Where the value is not in such a form, or is not positive.

    Examples
    --------
    >>> parse_byte_rate("8 Mbit/s"), parse_byte_rate("2 MB/s")
    (1000000.0, 2000000.0)
    """
    return _parse(value, _BYTE_RATE_UNITS, _BYTE_RATE_FORMS)


def parse_flop_rate(value: object) -> float:
    """Return FLOP per second, from a number or text such as "2 GFLOP/s" or "500 MFLOPS".

    Raises
    ------
    ValueError
        Where the value is not in such a form, or is not positive.

    Examples
    --------
    >>> parse_flop_rate("2 GFLOP/s")
    2000000000.0
    """
    return _parse(value, _FLOP_RATE_UNITS, _FLOP_RATE_FORMS)


def _format(amount: float, base: int, units: Sequence[str]) -> str:
    """Return the amount to three digits, in the first of the units in which it is below ``base``."""
    if amount < 0:
        return f"-{_format(-amount, base, units)}"
    scaled = float(amount)
    index = 0
    while round(scaled) >= base and index < len(units) - 1:
        scaled /= base
        index += 1
    decimals = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    number = f"{scaled:.{decimals}f}"
    return f"{number.rstrip('0').rstrip('.') if decimals else number} {units[index]}"


def format_bytes(count: float) -> str:
    """Format a number of bytes, in powers of 1024.

    Examples
    --------
    >>> format_bytes(1_258_291), format_bytes(512)
    ('1.2 MiB', '512 B')
    """
    return _format(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def format_byte_rate(rate: float) -> str:
    """Format bytes per second, as the bits per second in which links are sold.

    Examples
    --------
    >>> format_byte_rate(625_000)
    '5 Mbit/s'
    """
    return _format(8 * rate, 1000, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s"))


def format_flops(count: float) -> str:
    """Format a number of floating-point operations.

    Examples
    --------
    >>> format_flops(3.4e9)
    '3.4 GFLOP'
    """
    return _format(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def format_flop_rate(rate: float) -> str:
    """Format FLOP per second.

    Examples
    --------
    >>> format_flop_rate(2e9)
    '2 GFLOP/s'
    """
    return f"{format_flops(rate)}/s"


def floor_to(number: float, digits: int) -> float:
    """Return a positive number cut to so many significant digits: what fits is never rounded up.

    Examples
    --------
    >>> floor_to(0.0123456, 4), floor_to(0.99999, 4), floor_to(1.0, 4)
    (0.01234, 0.9999, 1.0)
    """
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(number)))
    return math.floor(number * scale) / scale


def format_joules(joules: float) -> str:
    """Format an amount of energy.

    Examples
    --------
    >>> format_joules(0.0123), format_joules(4500.0)
    ('12.3 mJ', '4.5 kJ')
    """
    if joules < 1:
        return f"{joules * 1000:.3g} mJ"
    return _format(joules, 1000, ("J", "kJ", "MJ", "GJ"))


def format_seconds(seconds: float) -> str:
    """Format a duration, in its two largest units from a minute on.

    Examples
    --------
    >>> format_seconds(125), format_seconds(2.5), format_seconds(0.0421)
    ('2 min 5 s', '2.5 s', '42.1 ms')
    """
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    if round(seconds * 1e6) < 1000:
        return _format(seconds * 1e6, 1000, ("µs",)) if seconds else "0 s"
    if round(seconds * 1e3) < 1000:
        return _format(seconds * 1e3, 1000, ("ms",))
    if seconds < 59.95:
        return _format(seconds, 60, ("s",))
    # Rounded to the smaller unit before it is split, so that no "59 min 60 s" appears.
    if round(seconds) < 3600:
        return _two_units(round(seconds), 60, "min", "s")
    if round(seconds / 60) < 24 * 60:
        return _two_units(round(seconds / 60), 60, "h", "min")
    return _two_units(round(seconds / 3600), 24, "d", "h")


def _two_units(amount: int, base: int, large: str, small: str) -> str:
    whole, rest = divmod(amount, base)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def _schema(units: Mapping[str, float], examples: Sequence[str]) -> WithJsonSchema:
    """Return the JSON Schema of an amount: a positive number, or text with one of the units."""
    alternatives = "|".join(re.escape(unit) for unit in units)
    schema: dict[str, Any] = {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0},
            {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*({alternatives})?\s*$"},
        ],
        "examples": list(examples),
    }
    return WithJsonSchema(schema)


Bytes = Annotated[int, BeforeValidator(parse_bytes), _schema(_BYTE_UNITS, ("64 MiB", "1.5 GB"))]
"""A pydantic field that holds bytes and also reads "64 MiB"."""

ByteRate = Annotated[
    float, BeforeValidator(parse_byte_rate), _schema(_BYTE_RATE_UNITS, ("5 Mbit/s", "2 MB/s"))
]
"""A pydantic field that holds bytes per second and also reads "5 Mbit/s"."""

FlopRate = Annotated[
    float, BeforeValidator(parse_flop_rate), _schema(_FLOP_RATE_UNITS, ("2 GFLOP/s", "500 MFLOP/s"))
]
"""A pydantic field that holds FLOP per second and also reads "2 GFLOP/s"."""
