"""Gemma 4 as a model family: implements the interface in `converters.family` with the modules beside this one."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from converters.family import AssistantKind, CalibrationPass, Family, RecipeChoice
from converters.gemma.graphs.text.decoder_step import whole_size
from converters.gemma.plan import PlannedSize, PlannedText, plan_text, step_bytes
from converters.gemma.recipes import choose_recipes, ple_recipe
from converters.gemma.stored_recipe import NAME as STORED
from converters.gemma.stored_recipe import stored_recipe
from converters.gemma.tensors import PER_LAYER_EMBEDDING, TOKEN_EMBEDDING, unused_kv_tensors
from converters.gemma.text_source import TextSource
from converters.gemma4.assistant.checkpoint import Assistant
from converters.gemma4.assistant.config import ARCHITECTURE as ASSISTANT
from converters.gemma4.checkpoint import Gemma4Tensors
from converters.gemma4.config import ARCHITECTURES, MODEL_TYPES, TextConfig
from converters.gemma4.graphs.decoder import decode_graph, prefill_graph, verify_graph
from converters.gemma4.recipes import RECIPE_NAMES, RECIPES
from converters.gemma4.reference import Reference
from converters.gemma4.tensors import text_tensors
from converters.plan import Plan, PlannedTower, PlanRequest
from converters.slices import Budget, Slice, SliceFacts
from toolkit.base.activations import ActivationScales
from toolkit.base.errors import CheckpointError, RecipeError, SliceError, ToolkitError
from toolkit.base.strict_json import shorten
from toolkit.bundle.manifest import TOWER_FILES, AudioRecord, VisionRecord
from toolkit.quant.recipe import Recipe

_NAMES: Mapping[tuple[int, int], str] = {(35, 1536): "E2B", (42, 2560): "E4B"}
"""Google's names by number of layers and hidden size."""


class Gemma4Checkpoint(Gemma4Tensors):
    """An open checkpoint of Gemma 4 (`converters.family.Checkpoint`)."""

    @property
    def slices(self) -> Mapping[str, Slice]:
        """The whole checkpoint alone: Gemma 4 is not a MatFormer, so it contains no smaller models."""
        whole = self.default_slice
        return {whole.name: whole}

    @property
    def default_slice(self) -> Slice:
        """The slice that is the whole checkpoint."""
        config = self.config
        name = _NAMES.get((config.num_layers, config.hidden_size), "full")
        return Slice(name, tuple(range(config.num_layers)), tuple(layer.ffn_size for layer in config.layers))

    def find_slice(self, name: str) -> Slice:
        """The whole checkpoint, if `name` is its name in upper or lower case; SliceError otherwise."""
        if name.strip().casefold() != self.default_slice.name.casefold():
            self._refuse_size(shorten(name))
        return self.default_slice

    def read_slice(self, path: Path) -> Slice:
        """Raise SliceError: Gemma 4 has no slices."""
        self._refuse_size(f"the slice {path.name}")

    def choose_slice(self, budget: Budget, text: Recipe) -> Slice:
        """The whole checkpoint; SliceError if it exceeds the budget."""
        whole = self.default_slice
        parameters = self.facts(whole, bits_per_weight=8).parameters["text"]
        cost = step_bytes(self._text((whole,)), text) if budget.unit == "bytes" else parameters
        if cost > budget.amount:
            wanted = f"at least {cost:,} for {whole.name}, the only size of this checkpoint"
            raise SliceError("budget", found=f"{budget.amount:,.0f} {budget.unit}", wanted=wanted)
        return whole

    def _refuse_size(self, found: str) -> NoReturn:
        wanted = (
            f"{self.default_slice.name}, the whole model: Gemma 4 is not a MatFormer and contains no smaller models"
        )
        raise SliceError("size", file=self.path, found=found, wanted=wanted)

    def facts(self, slice_: Slice, *, bits_per_weight: float) -> SliceFacts:
        """What the checkpoint needs; as for Gemma 3n, the effective parameters include unused keys and values."""
        shapes = {**text_tensors(self.config), **unused_kv_tensors(self.config)}
        counts = {name: math.prod(shape) for name, shape in shapes.items()}
        embedding, per_layer = counts.pop(TOKEN_EMBEDDING), counts.pop(PER_LAYER_EMBEDDING)
        effective = sum(counts.values())
        parameters = {"text": effective, "token_embedding": embedding, "per_layer_embedding": per_layer}
        read = math.ceil((effective + embedding) * bits_per_weight / 8)
        return SliceFacts(self.config.num_layers, parameters, read)

    def recipes(self, wanted: Mapping[str, RecipeChoice], towers: Collection[str]) -> Mapping[str, Recipe]:
        """The recipe of every role; for a checkpoint of codes, the default is the one that copies them."""
        text, table = wanted.get("text"), self.scheme(PER_LAYER_EMBEDDING)
        is_coded = any(self.scheme(name) is not None for name in text_tensors(self.config))
        if text == STORED and not is_coded:
            wanted_ = ", ".join(RECIPES["text"].names)
            found = f"{STORED}, for a checkpoint whose weights are floats"
            raise RecipeError("text recipe", file=self.path, found=found, wanted=wanted_)
        if text == STORED or (text is None and is_coded):
            wanted = {**wanted, "text": self._stored_recipe()}
            if table is not None and "ple" not in wanted:
                wanted["ple"] = ple_recipe(table.dtype, self.config.ple_size)
        return choose_recipes(RECIPES, wanted, towers, self.config.ple_size)

    def _stored_recipe(self) -> Recipe:
        tensors = [name for name in text_tensors(self.config) if name != PER_LAYER_EMBEDDING]
        static = any(self.activation_scales(name) != ActivationScales() for name in tensors)
        return stored_recipe(RECIPES["text"].load("int8"), tensors, self.scheme, static_activations=static)

    def layer_kinds(self, slices: Sequence[Slice]) -> Mapping[str, Sequence[int]]:
        """The layers by kind."""
        return self.config.layer_kinds

    def plan(self, request: PlanRequest) -> Plan:
        """The plan of the text groups."""
        return plan_text(self._text(request.slices), request)

    def _text(self, slices: Sequence[Slice]) -> PlannedText[TextConfig]:
        config = self.config
        return PlannedText(
            config=config,
            source=TextSource(self, config),
            tensors=text_tensors(config),
            sizes=tuple(PlannedSize(slice_, "", whole_size(config)) for slice_ in slices),
            decode=decode_graph,
            prefill=prefill_graph,
            verify=verify_graph,
            codes=self,
        )

    def reference(self, slice_: Slice) -> Reference:
        """The reference model of a slice, computed by NumPy."""
        return Reference(self, self.activation_scales)

    def calibration_passes(self, slices: Sequence[Slice]) -> Sequence[CalibrationPass]:
        """The only size that there is; the plan names its tensors as the checkpoint does."""
        rounds, plain = self.reference(slices[0]), Reference(self)
        return (CalibrationPass(rounds, lambda tensor: tensor, self.activation_scales, plain),)

    def float_tower(
        self, record: VisionRecord | AudioRecord, frame_lengths: Sequence[int]
    ) -> PlannedTower[VisionRecord] | PlannedTower[AudioRecord]:
        """Raise CheckpointError: no bundle of Gemma 4 has a tower."""
        raise CheckpointError(file=self.path, found=self.architecture, wanted="a model whose towers are supported")

    def text_vocab_size(self, tokens: Mapping[int, str]) -> int | None:
        """None: every id has its per-layer embedding, also the ids of images and sounds."""
        return None

    @property
    def supported_towers(self) -> Collection[str]:
        """No tower is supported yet."""
        return ()

    def tower_faults(self) -> Mapping[str, ToolkitError]:
        """For each tower of the checkpoint, the error that says that it is not supported."""
        towers = (group.name for group in self.groups if group.name in TOWER_FILES and group.tensors)
        wanted = "text only: the towers of Gemma 4 are not supported yet"
        return {name: CheckpointError(file=self.path, found=f"its {name} tower", wanted=wanted) for name in towers}


GEMMA4 = Family(
    name="gemma4",
    architectures=ARCHITECTURES,
    open=Gemma4Checkpoint,
    recipe_names={**RECIPE_NAMES, "text": (*RECIPE_NAMES["text"], STORED)},
    model_types=MODEL_TYPES,
    assistants=(AssistantKind(ASSISTANT, Assistant),),
)
