"""What to convert and how, and the choices that a request leaves to the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converters.assistant import AssistantChoice, OpenedAssistant
from converters.calibration.media import CalibrationMedia
from converters.calibration.mix import MixBudget
from converters.calibration.text import CalibrationChoice
from converters.families import recipe_names
from converters.family import Checkpoint, Family, RecipeChoice
from converters.huggingface.adapters.choice import AdapterChoice
from converters.plan import PlanRequest
from converters.slices import Budget, Slice
from toolkit.base.errors import RecipeError, SliceError, UsageError
from toolkit.base.outputs import Output
from toolkit.base.strict_json import shorten
from toolkit.bundle.lock import DrafterSettings
from toolkit.bundle.manifest import CHECKPOINT_GROUPS, TOWER_FILES, CheckpointRecord
from toolkit.bundle.ple_shards import DEFAULT_SHARD_BYTES, ple_elements
from toolkit.bundle.write import BUNDLE
from toolkit.quant.recipe import Recipe
from toolkit.quant.scheme import Search
from toolkit.tflite.target import CPU

_log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What to convert, and how: by default the whole checkpoint, in int8."""

    checkpoint: Checkpoint | Path | str
    """A directory, a Hugging Face id, or an open checkpoint, which is not closed."""
    output: Path
    """The directory of the bundle."""
    recipes: Mapping[str, RecipeChoice] = field(default_factory=dict)
    """Recipes by role: `text` (and the token embedding), `ple`, `vision`, `audio`; the family chooses missing ones."""
    search: Search | None = None
    """How all scales are chosen; None to choose them as the recipes say."""
    groups: tuple[str, ...] | None = None
    """The groups to convert: `text`, which includes its embeddings, and towers; None for all of the checkpoint's."""
    sizes: tuple[str | Slice, ...] | Path | Budget = ()
    """Names or slices, the default size first; or a file that describes a slice; or a budget, for the best named size
    that fits it. Empty for the whole checkpoint."""
    context: int = DEFAULT_CONTEXT
    """Positions in the KV cache."""
    prefill_sizes: tuple[int, ...] = ()
    """How many tokens each prefill processes; empty for the target's prefills that fit in the context."""
    shard_bytes: int = DEFAULT_SHARD_BYTES
    """The maximum size of a PLE shard."""
    audio_seconds: tuple[float, ...] = ()
    """Maximum lengths, one for each audio encoder; empty for those of 1, 5, 10 and 30 s that the tower supports."""
    workers: int = 2
    """The number of threads that quantise."""
    adapters: tuple[AdapterChoice, ...] = ()
    """Adapters to merge into the checkpoint, in this order; empty for an open checkpoint, which has its own."""
    calibration: CalibrationChoice | None = None
    """The text that gives the inputs against which the decoder's matrices are rounded, or "self" for one that the model
    writes; None: each weight is rounded by itself."""
    calibration_media: CalibrationMedia | None = None
    """The pictures and sounds that give the inputs against which the matrices of the towers are rounded; None: each
    weight is rounded by itself."""
    mix: MixBudget | None = None
    """Choose the types of the decoder's matrices within this budget, by what calibration measures; None: those of the
    recipe. The recipe still says which matrices stay float, and how all else is stored."""
    described_as: CheckpointRecord | None = None
    """The manifest's record of the checkpoint, which must have these hashes; None: named after its directory."""
    force: bool = False
    """Replace a directory at `output` even if it is not a bundle."""
    draft_tokens: int | None = None
    """How many drafted tokens a step of speculative decoding checks; None for a bundle without it."""
    drafter: DrafterSettings | AssistantChoice | OpenedAssistant | None = None
    """How to fit a drafter to the default size, or one that was published for the model; `draft_tokens` is then 3
    unless set. One that is open is not closed."""

    def bundle_output(self, *further: Path) -> Output:
        """The output, which must not be one of the inputs that the request names, or one of `further` inputs."""
        recipes = [
            choice for role, choice in self.recipes.items() if role != "ple" and choice not in recipe_names(role)
        ]
        named = [*recipes, self.sizes, self.checkpoint, *(choice.source for choice in self.adapters)]
        if isinstance(self.drafter, (AssistantChoice, OpenedAssistant)):
            named.append(Path(self.drafter.path))
        if self.calibration_media is not None:
            named.append(self.calibration_media.folder)
        inputs = tuple(Path(item) for item in named if isinstance(item, (Path, str)))
        return Output(self.output, BUNDLE, (*inputs, *further), self.force)


def plan_request(request: ConvertRequest, checkpoint: Checkpoint) -> PlanRequest:
    """The request with all choices made; UsageError or SliceError for choices that the checkpoint does not allow."""
    prefill_sizes = request.prefill_sizes or CPU.prefills_within(request.context)
    _check_lengths(request.context, prefill_sizes, checkpoint.max_positions)
    if request.draft_tokens is not None and not 0 < request.draft_tokens < prefill_sizes[-1]:
        wanted = f"1 to {prefill_sizes[-1] - 1}: a step checks fewer tokens than the largest prefill takes"
        raise UsageError("draft tokens", found=request.draft_tokens, wanted=wanted)
    towers = _towers(request, checkpoint)
    recipes = checkpoint.recipes(request.recipes, towers)
    if request.search is not None:
        recipes = {role: recipe.with_search(request.search) for role, recipe in recipes.items()}
    slices = _slices(request.sizes, checkpoint, recipes["text"])
    kinds = {"text": checkpoint.layer_kinds(slices)}
    return PlanRequest(
        slices=slices,
        recipes={role: recipe.for_layers(kinds.get(role, {})) for role, recipe in recipes.items()},
        towers=towers,
        context=request.context,
        prefill_sizes=prefill_sizes,
        shard_bytes=request.shard_bytes,
        audio_seconds=request.audio_seconds,
        draft_tokens=request.draft_tokens,
    )


def _check_lengths(context: int, prefill_sizes: tuple[int, ...], limit: int) -> None:
    """Check that the context fits the model, that prefills fit the context, and that one fits its last positions."""
    if not 1 < context <= limit:
        raise UsageError("context", found=context, wanted=f"2 to {limit} positions")
    if not prefill_sizes or list(prefill_sizes) != sorted(set(prefill_sizes)) or prefill_sizes[0] < 2:
        raise UsageError("prefill sizes", found=list(prefill_sizes), wanted="increasing numbers of tokens, from 2 up")
    most = CPU.smallest_prefill_limit
    if prefill_sizes[0] > most:
        raise UsageError("smallest prefill size", found=prefill_sizes[0], wanted=f"at most {most} tokens")
    if prefill_sizes[-1] > context:
        raise UsageError("largest prefill size", found=prefill_sizes[-1], wanted=f"at most the context, {context}")


def check_recipe_names(request: ConvertRequest, families: Sequence[Family]) -> None:
    """Raise RecipeError for what cannot be a recipe of any family, before a checkpoint is downloaded."""
    for role, choice in request.recipes.items():
        # Per-layer embeddings have one scheme, whatever the family.
        ple = role == "ple"
        names = [element.name for element in ple_elements()] if ple else recipe_names(role, families)
        if isinstance(choice, Recipe) or choice in names or (not ple and Path(choice).exists()):
            continue
        wanted = " or ".join(names) if ple else f"{', '.join(names)} or the path of a recipe file"
        raise RecipeError(f"{role} recipe", found=shorten(str(choice)), wanted=wanted)


def _towers(request: ConvertRequest, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The requested towers; UsageError for groups that cannot be converted, and for settings of towers left out."""
    present = tuple(group.name for group in checkpoint.groups if group.tensors)
    groups = _convertible(present, checkpoint) if request.groups is None else request.groups
    unknown = [name for name in groups if name not in CHECKPOINT_GROUPS]
    if unknown:
        raise UsageError("groups", found=unknown[0], wanted=", ".join(CHECKPOINT_GROUPS))
    if "text" not in groups:
        given = ",".join(groups)
        found = f"{given} without text, the language model that answers images and sounds"
        raise UsageError("groups", found=found, remedy=f"add text, as in text,{given}")
    for tower in TOWER_FILES:
        if tower in groups and tower not in checkpoint.supported_towers:
            wanted = f"{', '.join(_convertible(present, checkpoint))} of {checkpoint.architecture}"
            raise UsageError("groups", found=tower, wanted=wanted)
        if tower in request.recipes and tower not in groups:
            raise UsageError(f"{tower} recipe", found=f"cannot be used, because {tower} is not converted")
    if request.audio_seconds and "audio" not in groups:
        raise UsageError("audio lengths", found="cannot be used, because audio is not converted")
    return tuple(tower for tower in TOWER_FILES if tower in groups)


def _convertible(present: tuple[str, ...], checkpoint: Checkpoint) -> tuple[str, ...]:
    """The groups of a checkpoint without the towers that its family does not support."""
    aside = [name for name in present if name in TOWER_FILES and name not in checkpoint.supported_towers]
    if aside:
        towers, architecture = " and ".join(aside), checkpoint.architecture
        _log.warning("%s: %s left out: such towers of %s are not supported yet", checkpoint.name, towers, architecture)
    return tuple(name for name in present if name not in aside)


def _slices(sizes: tuple[str | Slice, ...] | Path | Budget, checkpoint: Checkpoint, text: Recipe) -> tuple[Slice, ...]:
    if isinstance(sizes, Path):
        return (checkpoint.read_slice(sizes),)
    if isinstance(sizes, Budget):
        return (checkpoint.choose_slice(sizes, text),)
    found = tuple(size if isinstance(size, Slice) else checkpoint.find_slice(size) for size in sizes)
    names = [slice_.name for slice_ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SliceError("sizes", found=f"{twice} twice", wanted="distinct names", remedy="name each size once")
    return found or (checkpoint.default_slice,)
