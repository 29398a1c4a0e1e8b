"""Where the built-in models are: in a clone of the repository, or in the installed package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from toolkit.base.errors import EnvironmentFault

_PACKAGE = Path(__file__).resolve().parent

BUILT_IN: Mapping[str, str] = {"gemma3n": "tiny_gemma3n", "gemma4": "tiny_gemma4"}
"""The built-in models by the name of their family, with their folders; the first one is used by default."""
DEFAULT = next(iter(BUILT_IN))


def built_in_checkpoint(model: str = DEFAULT) -> Path:
    """The directory of a tiny trained model, one of `BUILT_IN`, in the layout of Hugging Face.

    A wheel has its files in this package; in a clone they are in `examples`, beside the scripts that trained it.

    Raises EnvironmentFault if the installation lacks them.
    """
    places = [folder / "examples" / BUILT_IN[model] for folder in (_PACKAGE.parent, _PACKAGE)]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise EnvironmentFault(
        file=places[-1],
        found="the built-in model is missing from this installation",
        remedy="install gemma-edge again, or give a checkpoint with --checkpoint",
    )
