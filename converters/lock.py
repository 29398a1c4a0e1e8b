"""Makes the lock of a conversion, and from a lock the request to convert again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from converters.calibration.media import CalibrationMedia
from converters.calibration.text import CalibrationText
from converters.plan import PlanRequest
from converters.slices import Slice
from toolkit.base.elements import element_of
from toolkit.base.errors import CheckpointError
from toolkit.bundle.lock import DrafterSettings, Lock, LockedSize, locked_groups
from toolkit.bundle.manifest import AdapterRecord, CheckpointRecord, QuantRecord, RuleRecord
from toolkit.bundle.write import GENERATOR
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import Scheme


def lock_of(
    request: PlanRequest,
    checkpoint: CheckpointRecord,
    calibration: CalibrationText | None,
    drafter: DrafterSettings | CheckpointRecord | None = None,
    media: CalibrationMedia | None = None,
) -> Lock:
    """The lock of a bundle that has not been written yet. `drafter`: how it is fitted, or its checkpoint."""
    return Lock(
        generator=GENERATOR,
        checkpoint=checkpoint,
        calibration=None if calibration is None else calibration.sha256,
        groups=locked_groups(request.towers),
        sizes=tuple(LockedSize(slice_.name, slice_.layers, slice_.ffn_sizes) for slice_ in request.slices),
        recipes={role: quant_record(recipe) for role, recipe in request.recipes.items()},
        context=request.context,
        prefill_sizes=request.prefill_sizes,
        shard_bytes=request.shard_bytes,
        audio_seconds=request.audio_seconds,
        draft_tokens=request.draft_tokens,
        drafter=drafter if isinstance(drafter, DrafterSettings) else None,
        assistant=drafter if isinstance(drafter, CheckpointRecord) else None,
        calibration_media=None if media is None else media.record,
        files={},
        manifest=None,
        export=None,
    )


def described(found: CheckpointRecord, wanted: CheckpointRecord | None) -> CheckpointRecord:
    """A checkpoint's record with the names that a lock gives it; CheckpointError if its hashes are not the lock's."""
    if wanted is None:
        return found
    if found.sha256 != wanted.sha256:
        raise CheckpointError("fingerprint", found=found.sha256, wanted=f"{wanted.sha256}, as the lock says")
    require_merged(found.adapters, wanted)
    return wanted


def require_merged(adapters: Sequence[AdapterRecord], wanted: CheckpointRecord) -> None:
    """CheckpointError unless these adapters are those of a lock, whatever they are called."""
    merged, expected = ([(item.scale, item.sha256) for item in records] for records in (adapters, wanted.adapters))
    if merged != expected:
        raise CheckpointError(
            "adapters",
            found=_names(adapters),
            wanted=f"{_names(wanted.adapters)}, as the lock says",
            remedy="name them with --adapter in this order" if wanted.adapters else None,
        )


def locked_slices(lock: Lock) -> tuple[Slice, ...]:
    """The slices of a lock, the default size's first."""
    return tuple(Slice(size.name, size.layers, size.ffn_sizes) for size in lock.sizes)


def locked_recipes(lock: Lock) -> Mapping[str, Recipe]:
    """The recipes of a lock, by role."""
    return {role: _recipe(record) for role, record in lock.recipes.items()}


def quant_record(recipe: Recipe) -> QuantRecord:
    """A recipe's record for manifests and locks."""
    rules = (RuleRecord(r.match, r.scheme.dtype, r.scheme.block_size, r.scheme.search) for r in recipe.rules)
    return QuantRecord(recipe.name, tuple(rules), recipe.static_activations)


def _names(adapters: Sequence[AdapterRecord]) -> str:
    names = (f"{item.name}={item.scale:g} with sha256 {item.sha256[:16]}..." for item in adapters)
    return ", ".join(names) or "none"


def _recipe(record: QuantRecord) -> Recipe:
    """The recipe of a record. All rules are optional: rules without effect were allowed if they are in a lock."""
    rules = (
        Rule(rule.match, Scheme(element_of(rule.dtype).name, rule.block_size, rule.search), optional=True)
        for rule in record.rules
    )
    return Recipe(record.recipe, tuple(rules), record.static_activations)
