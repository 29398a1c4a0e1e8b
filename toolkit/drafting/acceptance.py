"""Measures how many of a drafter's drafts the model would accept, on text that the drafter was not fitted to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from toolkit.drafting.examples import Examples
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import BackendOptions, ModelFile
from toolkit.runtime.drafts.drafter import DraftModel

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


def measure_acceptance(
    file: ModelFile,
    embedding: Callable[[I64], F32],
    examples: Examples,
    rows: I64,
    drafts: int,
    options: BackendOptions,
) -> tuple[float, ...]:
    """The fraction of `rows` at which the first draft is accepted, the first two drafts, and so on: `drafts` numbers.

    `rows`: examples that are followed by at least `drafts` - 1 more of the same passage.
    """
    runtime = BACKENDS[0].start(options)
    try:
        model = DraftModel(file, runtime)
        accepted = np.zeros(drafts, np.int64)
        for row in rows.tolist():
            token, state = examples.tokens[row], examples.states[examples.at[row] - 1]
            for draft in range(drafts):
                token, state = model.guess(embedding(np.array([token]))[0], state)
                if token != examples.following[row + draft]:
                    break
                accepted[draft] += 1
    finally:
        runtime.close()
    return tuple(float(count) / len(rows) for count in accepted)
