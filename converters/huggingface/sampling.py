"""Reads from a checkpoint's generation_config.json how tokens are to be sampled.

Source: transformers 5.24 generation/configuration_utils.py, whose defaults apply if a key is missing.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject, read_json_file
from toolkit.bundle.manifest import SamplingRecord
from toolkit.bundle.manifest_values import LEAST_PENALTY, MOST_PENALTY

_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _PENALTY = 1.0, 50, 1.0, 0.0, 1.0


def read_sampling(checkpoint: Path) -> SamplingRecord | None:
    """The sampling settings; None for the likeliest token each time: without the file, or without `do_sample` in it.

    A `repetition_penalty` counts without `do_sample` too, as it does in transformers; `min_p` does not.
    """
    path = checkpoint / "generation_config.json"
    if not path.exists():
        return None
    stated = JsonObject(read_json_file(path, CheckpointError), str(path), CheckpointError)
    penalty = _PENALTY
    if stated.has("repetition_penalty"):
        penalty = stated.number("repetition_penalty", LEAST_PENALTY, MOST_PENALTY)
    if not stated.has("do_sample") or not stated.flag("do_sample"):
        return None if penalty == _PENALTY else SamplingRecord(1.0, 1, 1.0, repeat_penalty=penalty)
    # A null turns a limit off; a missing key means the default.
    top_k = stated.integer("top_k", 0, 1 << 24) if stated.has("top_k") else 0 if "top_k" in stated.names() else _TOP_K
    return SamplingRecord(
        temperature=stated.number("temperature", 1e-3, 1e3) if stated.has("temperature") else _TEMPERATURE,
        top_k=top_k,
        top_p=stated.number("top_p", 1e-6, 1.0) if stated.has("top_p") else _TOP_P,
        min_p=stated.number("min_p", 0.0, 1.0) if stated.has("min_p") else _MIN_P,
        repeat_penalty=penalty,
    )
