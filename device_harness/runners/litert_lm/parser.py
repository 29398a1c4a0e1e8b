"""Parses LiteRT-LM's BenchmarkInfo, which litert_lm_main and litert_lm_advanced_main print, in both of its formats."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from device_harness.parsers.lines import clean_lines
from toolkit.base.errors import EnvironmentFault

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_DURATION = r"(?:\d+(?:\.\d+)?\s?(?:h|ms|us|ns|m|s))+"
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s?(h|ms|us|ns|m|s)", re.ASCII)
_HEADER = re.compile(r"(.*\b)?BenchmarkInfo:$", re.ASCII)
_INIT = re.compile(rf"(?:- )?(?:Init Total|Total init time): ({_DURATION})", re.ASCII)
_FIRST = re.compile(rf"(?:- )?Time to first token: ({_DURATION})", re.ASCII)
_TURNS = re.compile(r"(Prefill|Decode) Turns \(Total:? (\d{1,9})(?: turns)?\):", re.ASCII)
_TURN = re.compile(
    rf"(Prefill|Decode) Turn \d{{1,9}}: Processed (\d{{1,9}}) tokens in ({_DURATION}) duration\.", re.ASCII
)
_SPEED = re.compile(r"(Prefill|Decode) Speed: (\d{1,12}(?:\.\d{1,12})?) tokens/sec\.", re.ASCII)
_PEAK = re.compile(
    r"Peak (?:system ram usage|private footprint)[^:]*: (\d{1,12}(?:\.\d{1,12})?) ?MB", re.ASCII | re.IGNORECASE
)
_TOLERANCE = 0.02
"""The tolerance between the printed speed, which is rounded, and tokens over time."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The tokens and seconds of one prefill or one decode."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class BenchmarkInfo:
    """One BenchmarkInfo block of the output."""

    init_s: float
    time_to_first_token_s: float | None
    """Only in the newer format; None in the older one."""
    prefill: tuple[Turn, ...]
    decode: tuple[Turn, ...]


def parse_benchmark_info(text: str) -> tuple[BenchmarkInfo, ...]:
    """Parse all blocks; one printed twice in a row, to a log and to the terminal, counts once; aggregates do not count.

    EnvironmentFault if there is no block, or one is truncated or contradicts itself.
    """
    blocks: list[list[str]] = []
    is_inside = False
    for line in clean_lines(text):
        header = _HEADER.match(line)
        if header is not None:
            is_inside = not (header[1] or "").rstrip().endswith("Aggregated")
            blocks += [[]] if is_inside else []
        elif is_inside:
            blocks[-1].append(line)
    found: list[BenchmarkInfo] = []
    for block in blocks:
        info = _read_block(block)
        if not found or found[-1] != info:
            found.append(info)
    if not found:
        raise _fault("none", "a block BenchmarkInfo")
    return tuple(found)


def parse_peak_memory(text: str) -> int | None:
    """Parse the runner's own peak memory to bytes ("MB" taken as 2**20); versions differ in what they count."""
    found = [match[1] for line in clean_lines(text) if (match := _PEAK.search(line)) is not None]
    return int(float(found[-1]) * 2**20) if found else None


def parse_duration(text: str) -> float:
    """Parse a duration in absl's or our own spelling to seconds.

    >>> [parse_duration(text) for text in ("3.5s", "92.5ms", "1m2.5s", "120us", "212.03 ms")]
    [3.5, 0.0925, 62.5, 0.00012, 0.21203]
    """
    return round(sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text)), 12)


def _read_block(lines: Iterable[str]) -> BenchmarkInfo:
    init: float | None = None
    first: float | None = None
    turns: dict[str, list[Turn]] = {"Prefill": [], "Decode": []}
    announced = {"Prefill": 0, "Decode": 0}
    for line in lines:
        if (match := _INIT.fullmatch(line)) is not None:
            init = parse_duration(match[1])
        elif (match := _FIRST.fullmatch(line)) is not None:
            first = parse_duration(match[1])
        elif (match := _TURNS.fullmatch(line)) is not None:
            announced[match[1]] = int(match[2])
        elif (match := _TURN.fullmatch(line)) is not None:
            turns[match[1]].append(_turn(match[1], int(match[2]), parse_duration(match[3])))
        elif (match := _SPEED.fullmatch(line)) is not None:
            _require_speed(match[1], float(match[2]), turns[match[1]])
    if init is None:
        raise _fault("a block without its initialization", "Init Total or Total init time")
    for kind, number in announced.items():
        if len(turns[kind]) != number or not number:
            raise _fault(
                f"{len(turns[kind])} turns of {kind.lower()}", f"{number or 'at least 1'}; it may be cut short"
            )
    return BenchmarkInfo(init, first, tuple(turns["Prefill"]), tuple(turns["Decode"]))


def _turn(kind: str, tokens: int, seconds: float) -> Turn:
    if not tokens or seconds <= 0:
        raise _fault(f"a {kind.lower()} of {tokens} tokens in {seconds} s", "some of both")
    return Turn(tokens, seconds)


def _require_speed(kind: str, speed: float, turns: list[Turn]) -> None:
    """EnvironmentFault if the printed speed contradicts the printed tokens and time, as after misreading a unit."""
    if not turns or abs(turns[-1].tokens_per_s - speed) > _TOLERANCE * speed + 0.01:
        found = f"{kind.lower()} of {speed} tokens/s"
        raise _fault(found, f"{turns[-1].tokens_per_s:.2f} by its tokens and time" if turns else "a turn before it")


def _fault(found: str, wanted: str) -> EnvironmentFault:
    return EnvironmentFault("LiteRT-LM's BenchmarkInfo", found=found, wanted=wanted)
