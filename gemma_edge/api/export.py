"""`gemma_edge.export`: writes a bundle as one .litertlm file for Google's LiteRT-LM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from converters.assistant import assistant_for_export
from toolkit.base.activations import Activations
from toolkit.base.environment import ENVIRONMENT, write_environment
from toolkit.base.errors import UsageError
from toolkit.base.files import Progress
from toolkit.base.json_types import Misfit, reader_of
from toolkit.base.outputs import Output
from toolkit.base.signatures import read_signer
from toolkit.bundle.manifest import SamplingRecord
from toolkit.bundle.manifest_json import read_manifest
from toolkit.drafting.make import FIT, Drafting, StageProgress, drafter_for_export, fit_settings
from toolkit.litertlm.export import LITERTLM, ExportOptions, ExportResult, Target, export_litertlm
from toolkit.litertlm.exported_drafter import DrafterMaker
from toolkit.litertlm.schema import MOST_LIKELY, ModelType
from toolkit.runtime.sampling import choose_sampling
from toolkit.runtime.session import SessionSettings


def export(
    bundle: Path | str,
    output: Path | str,
    *,
    size: str | None = None,
    groups: Sequence[str] | None = None,
    model_type: ModelType | None = None,
    activations: Activations | None = None,
    target: Target = "cpu",
    sign: Path | str | None = None,
    force: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    drafter: Path | str | None = None,
    drafter_tokens: int | None = None,
    session: SessionSettings | None = None,
    progress: Progress | None = None,
    download_progress: Progress | None = None,
    drafter_progress: StageProgress = lambda _stage, _done, _total: None,
) -> ExportResult:
    """Write one size of a bundle as a .litertlm file, complete or not at all.

    Beside it, `output`.environment.json records what it was made with, such as the version of zlib.

    size: the size to export; None for the bundle's default.
    groups: the groups to export: `text`, which includes its embeddings, `vision`, `audio` and `drafter`; None for all.
    model_type: how the engine prepares images and sounds: `generic_model` as transformers does, `gemma3n` as for
        Google's own files. None for `generic_model`, or for the model's own type, `gemma3n` or `gemma4`, if only text
        is exported.
    activations: the precision in which the engine computes every graph on a GPU, `fp16` or `fp32`. None for its own
        choice, float16, and for `fp32` in the encoders of images and sounds, which are wrong in float16.
    target: `cpu` for the bundle's own graphs, which run on a GPU too; `gpu` for graphs whose norms are ops of the
        engine's GPU delegate: about 40 % fewer ops there, the same on a CPU.
    sign: a file with an Ed25519 private key in PEM or OpenSSH format, which signs the hashes of the whole file.
    force: replace a file at `output` that gemma-edge did not write.
    temperature, top_k, top_p: how tokens are drawn for an app that sets no sampler, with the meaning that they have
        for `generate`; None for what the bundle says, which is what the checkpoint's generation_config.json says.
    drafter: `fit` to make a drafter of this size for this file, from the bundle alone; it is left out, with a warning,
        if the model would accept too few of its guesses. Or the checkpoint of a drafter that was published for the
        model: a directory, or a Hugging Face id. Both need a bundle that was converted with `draft_tokens`
        (docs/speculative.md). None for the bundle's own drafter, if it has one.
    drafter_tokens: how many tokens the model writes for the drafter to be fitted to; None for 8,192. session: how it is
        run for that.
    progress: called with the bytes done and the total; `download_progress` with the bytes downloaded of a drafter's
        checkpoint; `drafter_progress` with a stage of the drafter to be fitted, how much of it is done, and the total.

    BundleError for an invalid bundle, or one that lacks the size or a group; UsageError for groups without `text`, or
    a file that is not a key; CheckpointError for a drafter that was made for another model.

    >>> import gemma_edge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = gemma_edge.export(bundle, folder + "/model.litertlm", size="small")
    >>> result.size, result.bytes > 100_000
    ('small', True)
    """
    if groups is not None and "text" not in groups:
        given = ",".join(groups)
        found = f"{given} without text, the language model that answers images and sounds"
        raise UsageError("--groups", found=found, remedy=f"add text, as in text,{given}")
    read = (bundle, *(path for path in (sign, None if drafter == FIT else drafter) if path is not None))
    inputs = tuple(map(Path, read))
    place = Output(Path(output), LITERTLM, inputs, force)
    place.require()
    ENVIRONMENT.require(place)
    signer = None if sign is None else read_signer(Path(sign))
    chosen = None if groups is None else tuple(groups)
    sampling = _sampling(Path(bundle), temperature, top_k, top_p)
    maker: DrafterMaker | None = None
    settings = fit_settings(drafter, drafter_tokens)
    if settings is not None:
        how = Drafting(session, drafter_progress)
        maker = partial(drafter_for_export, Path(bundle), settings=settings, size=size, how=how)
    elif drafter is not None:
        maker = partial(assistant_for_export, Path(bundle), drafter, progress=download_progress)
    options = ExportOptions(size, chosen, model_type, activations, target, signer, force, sampling, maker)
    result = export_litertlm(Path(bundle), Path(output), options, progress=progress)
    write_environment(place)
    return result


def _sampling(bundle: Path, temperature: float | None, top_k: int | None, top_p: float | None) -> SamplingRecord | None:
    """The bundle's settings, with the given ones in their place; None if none is given."""
    if temperature is None and top_k is None and top_p is None:
        return None
    stated = read_manifest(bundle).text.sampling
    chosen = choose_sampling(
        stated, usual_temperature=1.0, temperature=temperature, top_k=top_k, top_p=top_p, seed=0
    )  # fmt: skip
    record = SamplingRecord(chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p, chosen.repeat_penalty)
    greedy = chosen.temperature == 0
    misfits: list[Misfit] = []
    reader_of(SamplingRecord)(asdict(replace(record, temperature=1.0) if greedy else record), misfits)
    if misfits:
        name = str(misfits[0].path[0])
        wanted = f"0, or {misfits[0].wanted}" if name == "temperature" else misfits[0].wanted
        raise UsageError(name.replace("_", "-"), found=getattr(record, name), wanted=wanted)
    return replace(MOST_LIKELY, repeat_penalty=chosen.repeat_penalty) if greedy else record
