"""Numbers for every input of a graph that the toolkit writes, so that two processors can be given the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]
from numpy.typing import NDArray

BLOCKED = np.float32(-0.7 * np.finfo(np.float32).max)


def signature_inputs(
    model: Path, *, position: int = 3, magnitude: float = 1.0, first_id: int = 0, seed: int = 0
) -> dict[str, dict[str, NDArray[np.generic]]]:
    """Signature to inputs. position: of a step's first token; magnitude: factor of `embeddings`; ids lie
    within 8 from `first_id` on.

    Caches hold numbers of magnitude 1. A mask lets every token see the rows up to its own position.
    """
    interpreter = Interpreter(str(model))
    found = {}
    for name in interpreter.get_signature_list():
        details = interpreter.get_signature_runner(name).get_input_details()
        numbers = np.random.default_rng(seed)
        found[name] = {
            key: _numbers(
                key, tuple(detail["shape"]), np.dtype(detail["dtype"]), numbers, position, magnitude, first_id
            )
            for key, detail in details.items()
        }
    return found


def _numbers(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    numbers: np.random.Generator,
    position: int,
    magnitude: float,
    first_id: int,
) -> NDArray[np.generic]:
    if dtype == np.bool_:
        return np.ones(shape, np.bool_)
    if name == "input_pos":
        return np.arange(position, position + shape[0], dtype=np.int32)
    if name == "mask":
        seen = np.arange(shape[-1]) <= position + np.arange(shape[-2])[:, None]
        return np.where(seen, np.float32(0), BLOCKED)[None, None].astype(np.float32)
    if dtype == np.int32:
        return numbers.integers(first_id, first_id + 8, shape, dtype=np.int32)
    return (numbers.standard_normal(shape) * (magnitude if name == "embeddings" else 1.0)).astype(np.float32)
