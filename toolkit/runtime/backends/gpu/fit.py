"""Refuses graphs for which LiteRT's GPU delegate would end its process, or which it would leave to the CPU in part."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from toolkit.base.errors import BundleError, EnvironmentFault
from toolkit.bundle.manifest import TEXT_DECODER, TOWER_FILES, Manifest
from toolkit.tflite.gpu import gpu_refusals, weights_in_blocks
from toolkit.tflite.reader import read_tflite


def require_fit(file: Path) -> None:
    """Raise BundleError for weights with block scales, EnvironmentFault for operators that the GPU refuses."""
    model = read_tflite(file).model
    blocks = weights_in_blocks(model)
    if blocks:
        remedy = "convert with --quant int8 or int4-channel, export for LiteRT-LM, or use --backend cpu"
        raise BundleError(
            f"weight {blocks[0].name}",
            file=file,
            found=f"{blocks[0].type.lower()} in blocks, which LiteRT's GPU delegate cannot open here",
            remedy=remedy,
        )
    refused = gpu_refusals(model)
    if refused:
        first = refused[0]
        place = f"{first.signature}, op {first.op} ({first.builtin})"
        remedy = "convert again, or use --backend cpu"
        raise EnvironmentFault(place, file=file, found=f"a GPU refuses it: {first.reason}", remedy=remedy)


def require_bundle_fit(bundle: Path, manifest: Manifest) -> None:
    """`require_fit` for all graphs of a bundle that the GPU backend runs on the GPU."""
    for name in (TEXT_DECODER, *chain(*TOWER_FILES.values())):
        if name in manifest.files:
            require_fit(bundle / name)
