"""Where the built-in model is: in a clone of the repository, or in the installed package."""

from __future__ import annotations

from pathlib import Path

from toolkit.base.errors import EnvironmentFault

_PACKAGE = Path(__file__).resolve().parent
_NAME = "tiny_gemma3n"


def built_in_checkpoint() -> Path:
    """The directory of the tiny trained Gemma 3n, in the layout of Hugging Face.

    A wheel has its files in this package; in a clone they are in `examples`, beside the scripts that trained it.

    Raises EnvironmentFault if the installation lacks them.
    """
    places = [folder / "examples" / _NAME for folder in (_PACKAGE.parent, _PACKAGE)]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise EnvironmentFault(
        file=places[-1],
        found="the built-in model is missing from this installation",
        remedy="install gemma-edge again, or give a checkpoint with --checkpoint",
    )
