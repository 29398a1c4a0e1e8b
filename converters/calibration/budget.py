"""Finds the recipe of a bundle that must stay within a number of bytes per token, or within a divergence."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from converters.calibration.mix import Candidate, Mix, MixBudget, choose_mix
from converters.calibration.rounding import Piece, Rounding, decoder_files, decoder_pieces, pass_tokens
from converters.calibration.sensitivity import (
    FINEST,
    PROBED,
    ProbeText,
    Sensitivity,
    measure_sensitivity,
    passes_of,
)
from converters.family import Checkpoint
from converters.plan import Plan
from converters.slices import Slice
from toolkit.base.blas import single_threaded_blas
from toolkit.base.elements import element_names
from toolkit.base.errors import RecipeError, UsageError
from toolkit.base.files import Advance, Progress, write_bytes
from toolkit.bundle.footprint import step_weights
from toolkit.bundle.manifest import TEXT_DECODER
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import check_scheme, payload_bytes
from toolkit.tflite import schema_unpack

_log = logging.getLogger(__name__)

_MEASURED = 4  # sequences that inputs are measured on
_PROBE = 64  # tokens of a probe
_PROBED_TOKENS = 1 << 16  # of all copies: the fewer matrices there are, the longer is the text that each is judged on
_MOST_PROBES = 8
_CORRECTIONS = 3  # of a mix for a divergence, before the finest one is tried
_MARGIN = 0.97  # of what a corrected expectation leaves

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class MixPlan:
    """The weights of a text decoder whose types can be chosen, and the bytes of the others that a token reads."""

    pieces: Mapping[str, Sequence[Piece]]
    shapes: Mapping[str, tuple[int, ...]]
    """Of the weights that are quantised."""
    other_bytes: int

    @classmethod
    def of(cls, plan: Plan) -> MixPlan:
        """UsageError for several sizes, each of which reads other bytes, and for a recipe that quantises nothing."""
        if len(plan.sizes) > 1:
            raise UsageError("mix of types", found=f"sizes {', '.join(plan.sizes)}", wanted="one size")
        layout, pieces = decoder_files(plan).layouts[TEXT_DECODER], decoder_pieces(plan)
        names = {piece.weight for some in pieces.values() for piece in some}
        read = step_weights(schema_unpack.unpack(memoryview(layout.header)), next(iter(plan.sizes.values())).decode)
        shapes = {p.weight.name: p.weight.shape for p in layout.placements if p.weight.name in names & read.keys()}
        return cls(pieces, shapes, sum(read.values()) - sum(read[name] for name in shapes))

    def candidates(self, sensitivity: Sensitivity | None = None) -> Iterator[Candidate]:
        """Every type that a weight can have; without `sensitivity` for what it takes alone."""
        for weight, shape in self.shapes.items():
            for scheme in (FINEST, *PROBED):
                try:
                    check_scheme(weight, shape, scheme)
                except RecipeError:
                    continue  # columns that do not fill whole bytes
                added = 0.0 if sensitivity is None else sensitivity.added[weight][scheme.dtype]
                yield Candidate(weight, scheme, payload_bytes(shape, scheme), added)

    def choose(self, budget: MixBudget, sensitivity: Sensitivity) -> Mix:
        """The best mix within a budget; UsageError for one that nothing fits."""
        return choose_mix(
            list(self.candidates(sensitivity)), budget, other_bytes=self.other_bytes, floor=sensitivity.floor
        )

    def require_reachable(self, budget: MixBudget) -> None:
        """UsageError for bytes that no mix is within; what divergence is within reach has to be measured first."""
        if budget.unit == "bytes":
            choose_mix(list(self.candidates()), budget, other_bytes=self.other_bytes)


def mixed_recipe(base: Recipe, mix: Mix, budget: MixBudget) -> Recipe:
    """The recipe `base` with the types of a mix, each by the name of its weight."""
    amount, unit = (budget.amount / 1e9, "GB") if budget.amount >= 1e9 else (budget.amount / 1e6, "MB")
    name = f"mix-{amount:g}{unit}" if budget.unit == "bytes" else f"mix-kl-{budget.amount:g}"
    rules = [Rule(weight, scheme) for weight, scheme in sorted(mix.schemes.items())]
    return base.changed(name, rules)


@dataclass(frozen=True, slots=True)
class SensitivityRun:
    """Measures the sensitivity of a plan's matrices, or reads what an interrupted run has measured.

    path: the file that keeps the result, in the directory of this calibration. `progress` gets the number of weights
    that passes are done with, and their total.
    """

    path: Path
    workers: int = 2
    progress: Progress | None = None

    def measure(
        self,
        chosen: MixPlan,
        checkpoint: Checkpoint,
        slices: Sequence[Slice],
        sequences: Sequence[NDArray[np.int32]],
    ) -> Sensitivity:
        """Run a part of the calibration's sequences through the model, once for some matrices at a time."""
        if self.path.is_file():
            return _read(self.path)
        text = probe_text(sequences, weights=len(chosen.shapes))
        weights = sum(piece.codes for some in chosen.pieces.values() for piece in some)
        probes = max(1, pass_tokens(chosen.pieces) - text.tokens)
        advance = Advance(weights * passes_of(chosen.pieces, text, probes), self.progress)
        (run,) = checkpoint.calibration_passes(slices)
        with single_threaded_blas(), ThreadPoolExecutor(self.workers, thread_name_prefix="calibrate") as pool:
            found = measure_sensitivity(run, chosen.pieces, text, Rounding(pool), probe_tokens=probes, advance=advance)
        value = {"added": found.added, "floor": found.floor}
        write_bytes(self.path, json.dumps(value).encode())
        return found


def _read(path: Path) -> Sensitivity:
    """What a run of this version has written here: no other program does."""
    value, types = json.loads(path.read_bytes()), element_names()
    added = {weight: {name: costs[name] for name in types if name in costs} for weight, costs in value["added"].items()}
    return Sensitivity(added, value["floor"])


@dataclass(frozen=True, slots=True)
class KeptDivergences:
    """What mixes were found to diverge by, in nats, in a file of one calibration, for a run that continues it."""

    path: Path

    def of(self, mix: Mix) -> float | None:
        """That of a mix; None if it was not measured."""
        return self._read().get(self._key(mix))

    def keep(self, mix: Mix, divergence: float) -> None:
        """Add that of a mix."""
        write_bytes(self.path, json.dumps({**self._read(), self._key(mix): divergence}).encode())

    def _read(self) -> dict[str, float]:
        return dict(json.loads(self.path.read_bytes())) if self.path.is_file() else {}

    def _key(self, mix: Mix) -> str:
        types = sorted((weight, str(scheme)) for weight, scheme in mix.schemes.items())
        return hashlib.sha256(json.dumps(types).encode()).hexdigest()


def probe_text(sequences: Sequence[NDArray[np.int32]], *, weights: int) -> ProbeText:
    """Inputs are measured on the first sequences; probes begin the last ones, more of them for few weights."""
    count = min(max(1, _PROBED_TOKENS // (_PROBE * len(PROBED) * weights)), _MOST_PROBES)
    return ProbeText(sequences[:_MEASURED], [ids[:_PROBE] for ids in sequences[-count:]])


def within_budget(
    chosen: MixPlan,
    budget: MixBudget,
    sensitivity: Sensitivity,
    make: Callable[[Mix], tuple[Made, float | None]],
) -> Made:
    """What `make` makes of the best mix within a budget; it also returns the divergence that it measures.

    Divergences add to first order only. So a mix that turns out to diverge by more than the budget is replaced by one
    whose expected divergence is smaller by the factor that the first one was off, and in the end by the finest one.
    UsageError if nothing fits.
    """
    finest = chosen.choose(MixBudget(math.inf, "bytes"), sensitivity)
    mix = chosen.choose(budget, sensitivity)
    for corrections in range(_CORRECTIONS + 2):
        made, found = make(mix)
        told = "" if found is None else f", found {found:.4g}"
        _log.info("%d bytes a token, expected divergence %.4g%s", mix.bytes, mix.divergence, told)
        if found is None or found <= budget.amount:
            return made
        if mix == finest:
            break
        expected, floor = mix.divergence - sensitivity.floor, sensitivity.floor
        amount = floor + _MARGIN * (budget.amount - floor) * expected / (found - floor)
        last, mix = mix, finest
        if corrections < _CORRECTIONS and amount >= finest.divergence:
            nearer = chosen.choose(MixBudget(amount, "nats"), sensitivity)
            mix = nearer if nearer != last else finest
    tried = f"the most precise mix diverges by {found:.2g} and reads {mix.bytes:,} bytes a token"
    raise UsageError("kl", found=f"{budget.amount:g}", wanted=f"more: {tried}")
