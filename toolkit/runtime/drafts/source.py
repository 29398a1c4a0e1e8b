"""The interface of a source of drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class DraftSource(Protocol):
    """Guesses the next tokens of one answer. Wrong guesses cost time; they never change the text."""

    def propose(self, ids: Sequence[int], activations: NDArray[np.float32] | None, most: int) -> Sequence[int]:
        """Up to `most` tokens that may follow `ids`; none if there is no good guess.

        `ids`: the conversation so far, including the token that the model processes next; from call to call, it only
        grows. `activations`: f32[hidden], the row whose logits gave that last token; None for a prompt's last token.
        """
        ...
