"""Formats values for people, with the unit in which a figure's name ends (docs/formats/results.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
# Longer endings before shorter ones that they contain.
_UNITS = {
    "tokens_per_s": "t/s",
    "bytes_per_s": "B/s",
    "per_s": "/s",
    "tokens_per_step": "t/step",
    "joules_per_token": "J/token",
    "nats": "nats",
    "joules": "J",
    "watts": "W",
    "bytes": "B",
    "hz": "Hz",
    "s": "s",
    "celsius": "°C",
    "percent": "%",
}
_SCALED = ("B/s", "B", "Hz", "s", "J/token", "J", "W")
_SMALL = ("s", "J/token", "J", "W")
"""Units with prefixes below one."""

_TWO_DIGITS_BELOW = 355
"""Compared with a spread's first three digits (Particle Data Group, Review of Particle Physics, Introduction, 5.3)."""
_ROUNDING = 1e-9
"""A spread below this part of the values comes from rounding in their computation, and justifies no digits."""


def unit(figure: str) -> str:
    """The unit of a figure, without a prefix.

    >>> [unit(name) for name in ("decode_tokens_per_s", "init_s", "peak_memory_bytes", "bandwidth_bytes_per_s")]
    ['t/s', 's', 'B', 'B/s']
    """
    return next((text for ending, text in _UNITS.items() if f"_{figure}".endswith(f"_{ending}")), "")


def quantity(figure: str, value: float, spread: float | None = None, *, like: float | None = None) -> str:
    """A value with its unit, and with ± `spread` in the same unit if it is given.

    It has the digits that its spread justifies, by the rule of the Particle Data Group: two digits of a spread that
    begins with 100 to 354, otherwise one. `like` is a spread that is not shown. Without any spread, there are about
    three digits.

    >>> quantity("decode_tokens_per_s", 16.182, 0.04), quantity("init_s", 0.0205, 0.001)
    ('16.18 ± 0.04 t/s', '20.5 ± 1.0 ms')
    >>> quantity("decode_tokens_per_s", 1623.4, 187.3), quantity("decode_tokens_per_s", 16.182, like=3.0)
    ('1,620 ± 190 t/s', '16.2 t/s')
    >>> quantity("latency_p50_s", 8.3157e-05), quantity("peak_memory_bytes", 122000000), quantity("rows_count", 4096)
    ('83.2 µs', '122 MB', '4,096')
    """
    values = [value] if spread is None else [value, spread]
    return _together(figure, " ± ", values, like if spread is None else spread)


def span(figure: str, low: float, high: float, *, like: float | None = None) -> str:
    """A range of values in one unit, with the digits that half of its width, or the spread `like`, justifies.

    >>> span("init_s", 0.0205, 0.0217), span("decode_tokens_per_s", 15.95, 16.19)
    ('20.5 to 21.7 ms', '15.95 to 16.19 t/s')
    """
    return _together(figure, " to ", [low, high], abs(high - low) / 2 if like is None else like)


def bytes_text(count: float) -> str:
    """A number of bytes in decimal units, with three digits.

    >>> bytes_text(999), bytes_text(19_459_904), bytes_text(2_348_810_240)
    ('999 B', '19.5 MB', '2.35 GB')
    """
    return quantity("bytes", count)


def count_text(count: int, *, millions: str = "M", billions: str = "B") -> str:
    """A number of parameters, from a million on in millions or billions with three digits.

    >>> count_text(950), count_text(9_728_000), count_text(1_905_495_648, billions="billion")
    ('950', '9.73 M', '1.91 billion')
    """
    for unit_size, word in ((10**9, billions), (10**6, millions)):
        if count >= unit_size:
            return f"{significant(count / unit_size)} {word}"
    return f"{count:,}"


def significant(value: float) -> str:
    """A number with three significant digits, or all digits before the decimal point; never an exponent.

    >>> [significant(value) for value in (5.4394, 0.01234, 1234.5, 0, 122)]
    ['5.44', '0.0123', '1,234', '0', '122']
    """
    return f"{value:,.{_decimals(value)}f}"


def _together(figure: str, between: str, values: Sequence[float], spread: float | None) -> str:
    """All values joined by `between`, with the unit that suits the first and the digits that suit the spread."""
    name, factor, prefix, decimals = unit(figure), 1.0, "", 0 if figure.endswith("_count") else 2
    if name in _SCALED:
        factor, prefix = _prefix(values[0], smallest=1e-9 if name in _SMALL else 1.0)
        decimals = _decimals(values[0] / factor)
    if spread and spread > _ROUNDING * max(map(abs, values)):
        decimals = _borne(spread / factor)
    numbers = [f"{round(value / factor, decimals):,.{max(0, decimals)}f}" for value in values]
    return f"{between.join(numbers)} {prefix}{name}".rstrip()


def _borne(spread: float) -> int:
    """The number of decimals that a spread justifies; below 0, values are rounded to tens or hundreds.

    >>> _borne(0.04), _borne(1.0), _borne(0.355), _borne(187.3), _borne(0.96)
    (2, 1, 1, -1, 1)
    """
    digits, _, exponent = f"{spread:.2e}".partition("e")
    return 1 - int(exponent) if 100 * float(digits) < _TWO_DIGITS_BELOW else -int(exponent)


def _decimals(value: float) -> int:
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0


def _prefix(value: float, *, smallest: float) -> tuple[float, str]:
    fitting = (pair for pair in _PREFIXES if abs(value) >= pair[0] or pair[0] == smallest)
    return next(fitting) if value else (1.0, "")
