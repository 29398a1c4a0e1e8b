"""`gemma_edge.load`: opens a bundle to generate text with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gemma_edge.api.model import Model
from toolkit.base.activations import Activations
from toolkit.base.errors import UsageError
from toolkit.base.strict_json import shorten
from toolkit.runtime.backends import BACKENDS, find_backend
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.ple_lookup import DEFAULT_CACHE_BYTES
from toolkit.runtime.session import SessionSettings, default_threads
from toolkit.runtime.weight_cache import WeightCache, parse_weight_cache


def load(
    path: Path | str,
    *,
    size: str | None = None,
    groups: Sequence[str] | None = None,
    backend: str = BACKENDS[0].name,
    activations: Activations = "fp32",
    threads: int | None = None,
    weight_cache: WeightCache | str | None = None,
    ple: Literal["flash", "ram"] = "flash",
    ple_cache_mb: int = DEFAULT_CACHE_BYTES >> 20,
    device: str | None = None,
) -> Model:
    """Open a bundle and load its language model. The towers for images and sounds are loaded when a prompt needs them.

    path: a directory written by `convert`.
    size: the size to use if a call names none; None for the bundle's default.
    groups: parameter groups that may be loaded (`text` always may); None for all of them.
    backend: the processor that runs the graphs, `cpu` or `gpu`.
    activations: what a GPU computes with, `fp32` or `fp16`; the encoders of images and sounds always use `fp32`.
    threads: CPU threads; None for the best number on this computer, 1 to 4.
    weight_cache: where to keep the weights, rearranged for this hardware: `off`, `memory`, or a directory, which keeps
        them between runs; None for GEMMA_EDGE_CACHE, else ~/.cache/gemma-edge.
    ple: `flash` reads each row of per-layer embeddings when a token needs it, `ram` copies them all to memory first.
    ple_cache_mb: memory for the rows of recent tokens, in MiB.
    device: run the graphs on this Android device (a USB serial number, HOST[:PORT] or emulator-PORT). The bundle and
        the program that runs it are sent to the device, as far as it lacks them; the tokenizer and the decoding of
        images and sounds stay on this computer. With `threads` None, the program chooses. UsageError if `weight_cache`,
        `ple` or `ple_cache_mb` is given, which have no effect on a device.

    BundleError if `path` is not a valid bundle or lacks the size, UsageError for a group, a backend or another value
    that there is not, or `fp16` on a CPU, EnvironmentFault if the backend fails. Close the model, or use it in a `with`
    statement.

    >>> import gemma_edge
    >>> with gemma_edge.load(bundle) as model:
    ...     model.generate("the cat", raw=True, max_tokens=4).ending
    'length'
    """
    if ple not in ("flash", "ram"):
        raise UsageError("ple", found=shorten(ple), wanted="flash or ram")
    opened = Bundle(path)
    if device is not None:
        find_backend(backend)
        if (weight_cache, ple, ple_cache_mb) != (None, "flash", DEFAULT_CACHE_BYTES >> 20):
            raise UsageError("load", found="settings that have no effect on a device", wanted="none of them")
        from gemma_edge.api.on_device import DeviceSettings, Processor, open_on_device

        processor = Processor("gpu" if backend == "gpu" else "cpu", activations)
        opener = open_on_device(device, DeviceSettings(threads=threads, processor=processor))
        return _prepared(Model(opened, SessionSettings(size=size), groups=groups, opener=opener))
    settings = SessionSettings(
        size=size,
        threads=default_threads() if threads is None else threads,
        weight_cache=_weight_cache(weight_cache),
        backend=backend,
        activations=activations,
        ple_in_ram=ple == "ram",
        ple_cache_bytes=ple_cache_mb << 20,
    )
    return _prepared(Model(opened, settings, groups=groups))


def _prepared(model: Model) -> Model:
    try:
        model.prepare()
    except BaseException:
        model.close()
        raise
    return model


def _weight_cache(cache: WeightCache | str | None) -> WeightCache:
    return cache if isinstance(cache, Path) else parse_weight_cache(cache)
