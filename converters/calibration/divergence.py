"""How far predictions are from a model's own, by the hidden states that they are made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from converters.calibration.rounding import Piece
from converters.family import F32, HeadRows, ReferenceModel
from converters.verify import compare
from toolkit.quant.dynamic_int8 import dynamic_int8
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.uniform import dequantize_rows

F64 = NDArray[np.float64]

_ROWS = 256  # predictions at a time: 256 MiB of logits at 262,144 tokens
_FLOAT64_ROWS = 16


def divergences(model: ReferenceModel, expected: F32, found: F32, head: HeadRows | None = None) -> F64:
    """The divergence of each prediction, in nats: f64[copies * n].

    expected: logits f32[n, vocab]. found: hidden states f32[copies * n, D] of copies of the same tokens, one after the
    other. head: another output matrix for them.
    """
    each = np.empty(len(found))
    for start in range(0, len(found), _ROWS):
        logits = model.logits(found[start : start + _ROWS], head=head)
        for row in range(0, len(logits), _FLOAT64_ROWS):
            got = logits[row : row + _FLOAT64_ROWS]
            places = np.arange(start + row, start + row + len(got))
            wanted = expected[places % len(expected)]
            each[places] = compare(wanted, got, np.zeros(len(got), np.int64), model.text_vocab_size).divergence
    return each


def rounded_divergence(
    model: ReferenceModel,
    sequences: Sequence[NDArray[np.int32]],
    hidden: F32,
    head: Sequence[Piece],
    rounded: RoundedWeights,
) -> float:
    """The mean divergence of the second half of each sequence, as the quality gate takes it.

    hidden: the states of all sequences' tokens in the model that is rounded. head: the pieces of its output matrix.
    """
    plain = np.concatenate(model.hidden_states(sequences))
    ends = np.cumsum([len(ids) for ids in sequences])
    judged = np.concatenate(
        [np.arange(end - len(ids) + len(ids) // 2, end - 1) for ids, end in zip(sequences, ends, strict=True)]
    )
    found = hidden[judged]
    if not head:
        return float(divergences(model, model.logits(plain[judged]), found).mean())
    weight = head[0].weight

    def rows(start: int, stop: int) -> F32:
        return dequantize_rows(rounded.rows(weight, start, stop))

    return float(divergences(model, model.logits(plain[judged]), dynamic_int8(found), rows).mean())
