"""Gemma 3n as a model family: implements the interface in `converters.family` with the modules beside this one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from converters.family import CalibrationPass, Family, RecipeChoice
from converters.gemma.config_json import with_defaults
from converters.gemma.plan import step_bytes
from converters.gemma.recipes import choose_recipes
from converters.gemma3n.checkpoint import Gemma3nTensors
from converters.gemma3n.config.defaults import AUDIO, MULTIMODAL, VISION
from converters.gemma3n.config.processor import read_image_size
from converters.gemma3n.config.text import ARCHITECTURES, CAUSAL_LM, MODEL_TYPES
from converters.gemma3n.plan.audio import FRAMES_PER_SECOND, open_audio, require_sounds
from converters.gemma3n.plan.text import plan_sizes, planned_text
from converters.gemma3n.plan.vision import open_vision, read_vision_config
from converters.gemma3n.recipes import RECIPE_NAMES, RECIPES, built_in
from converters.gemma3n.reference import Reference
from converters.gemma3n.sizes.choose import MATFORMER_FILE, choose_slice, find_slice, memory_bytes, read_slice
from converters.gemma3n.sizes.elastic import combine, planned_name
from converters.gemma3n.sizes.matformer import (
    SlicedCheckpoint,
    effective_parameters,
    parameters_by_group,
    slice_config,
)
from converters.huggingface.configs import read_configs
from converters.plan import Plan, PlannedTower, PlanRequest
from converters.slices import Budget, Slice, SliceFacts
from toolkit.base.errors import CheckpointError, ToolkitError
from toolkit.base.strict_json import shorten
from toolkit.bundle.manifest import TOWER_FILES, AudioRecord, GroupKind, VisionRecord
from toolkit.bundle.write import GroupDraft
from toolkit.quant.recipe import Recipe

_UNUSED = re.compile(r"<unused\d+>")
"""Google's name for tokens that have no meaning yet."""


class Gemma3nCheckpoint(Gemma3nTensors):
    """An open checkpoint of Gemma 3n (`converters.family.Checkpoint`)."""

    def find_slice(self, name: str) -> Slice:
        """A slice by its name; an official slice also by its full title in Google's table."""
        return find_slice(self.slices, name)

    def read_slice(self, path: Path) -> Slice:
        """Read a slice from a file in the form of docs/formats/matformer.md or of MatFormer Lab."""
        return read_slice(path, self.config)

    def choose_slice(self, budget: Budget, text: Recipe) -> Slice:
        """The best named slice within a budget, with weights stored by this recipe."""
        return choose_slice(self, budget, lambda slice_: step_bytes(planned_text(self, (slice_,)), text))

    def facts(self, slice_: Slice, *, bits_per_weight: float) -> SliceFacts:
        """The parameters and memory of a slice."""
        config = slice_config(self.config, slice_)
        return SliceFacts(config.num_layers, parameters_by_group(config), memory_bytes(config, bits_per_weight))

    def recipes(self, wanted: Mapping[str, RecipeChoice], towers: Collection[str]) -> Mapping[str, Recipe]:
        """The recipe of every role."""
        return choose_recipes(RECIPES, wanted, towers, self.config.ple_size)

    def layer_kinds(self, slices: Sequence[Slice]) -> Mapping[str, Sequence[int]]:
        """The layers by kind, of the widest size."""
        return combine(self.config, slices).config.layer_kinds

    def plan(self, request: PlanRequest) -> Plan:
        """The plan of the text groups and the requested towers."""
        towers = self._towers(request)
        text = plan_sizes(self, request)
        groups: dict[str, GroupDraft] = {
            group: GroupDraft(group, tower.files.names, tower.parameters, tower.record)
            for group, tower in towers.items()
        }
        return replace(
            text,
            files=(*text.files, *(tower.files for tower in towers.values())),
            groups={**text.groups, **groups},
            recipes={**text.recipes, **{group: tower.recipe for group, tower in towers.items()}},
        )

    def _towers(
        self, request: PlanRequest
    ) -> Mapping[GroupKind, PlannedTower[VisionRecord] | PlannedTower[AudioRecord]]:
        towers: dict[GroupKind, PlannedTower[VisionRecord] | PlannedTower[AudioRecord]] = {}
        if "vision" in request.towers:
            towers["vision"] = open_vision(self, request.recipes["vision"])
        if "audio" in request.towers:
            towers["audio"] = open_audio(self, request.recipes["audio"], request.audio_seconds)
        return towers

    def reference(self, slice_: Slice) -> Reference:
        """The reference model of a slice, computed by NumPy."""
        return Reference(SlicedCheckpoint(self, slice_))

    def calibration_passes(self, slices: Sequence[Slice]) -> tuple[CalibrationPass, ...]:
        """The sizes, the narrowest first; the plan numbers layers as the widest model does."""
        elastic = combine(self.config, slices)
        sizes = sorted(
            zip(elastic.slices, elastic.sizes, strict=True), key=lambda pair: effective_parameters(pair[1].config)
        )
        return tuple(
            CalibrationPass(self.reference(slice_), partial(planned_name, size.layers, elastic.config.num_layers))
            for slice_, size in sizes
        )

    def float_tower(
        self, record: VisionRecord | AudioRecord, frame_lengths: Sequence[int]
    ) -> PlannedTower[VisionRecord] | PlannedTower[AudioRecord]:
        """The tower for a bundle's record, in float32."""
        if isinstance(record, VisionRecord):
            return open_vision(self, built_in("f32"), record.image_size)
        return open_audio(self, built_in("f32"), [length / FRAMES_PER_SECOND for length in frame_lengths])

    def text_vocab_size(self, tokens: Mapping[int, str]) -> int | None:
        """See `Checkpoint`. Tokens may have been added after the ids with per-layer embeddings.

        In a text model they are text, with the per-layer embedding of id 0. A multimodal model would look them up in
        the tables of its towers, so they raise CheckpointError, unless they are the towers' own tokens.
        """
        config, reserved = self.config, self._reserved(tokens)
        beyond = {i: text for i, text in tokens.items() if i >= config.ple_vocab_size and i not in reserved}
        if not beyond:
            return None
        if self.architecture == CAUSAL_LM:
            return max(beyond) + 1
        shown = ", ".join(f"{shorten(text, 30)} ({i})" for i, text in sorted(beyond.items())[:3])
        raise CheckpointError(
            "added tokens",
            file=self.path,
            found=f"{shown}, which are ids of images and sounds in this model",
            wanted=f"tokens below {config.ple_vocab_size}",
            remedy="train with unused tokens of the vocabulary instead, or as Gemma3nForCausalLM",
        )

    def _reserved(self, tokens: Mapping[int, str]) -> Collection[int]:
        """The ids beyond those with per-layer embeddings for which a tokenizer has tokens although nobody added them.

        These are the tokens around and in place of images and sounds, those called unused, and, if every id in the
        towers' tables has a token, all of these ids.
        """
        values = with_defaults(self.configs.config, MULTIMODAL)
        assert isinstance(values, dict)
        markers = {value for key, value in values.items() if key in MULTIMODAL and key.endswith("token_id")}
        tables = range(self.config.ple_vocab_size, _tables_end(values))
        named = {i for i, text in tokens.items() if i in tables and _UNUSED.fullmatch(text)}
        return markers | named | (set(tables) if tokens.keys() >= set(tables) else set())

    @property
    def supported_towers(self) -> Collection[str]:
        """Both."""
        return tuple(TOWER_FILES)

    def tower_faults(self) -> Mapping[str, ToolkitError]:
        """The errors that `plan` would raise for the config, the tensors or the processor of each tower."""
        judges: Mapping[str, Callable[[], object]] = {
            "vision": lambda: read_image_size(self.path, read_vision_config(self).soft_tokens),
            "audio": lambda: require_sounds(self),
        }
        faults: dict[str, ToolkitError] = {}
        for group in self.groups:
            if group.name in judges and group.tensors:
                try:
                    judges[group.name]()
                except ToolkitError as error:
                    faults[group.name] = error
        return faults


def _tables_end(config: Mapping[str, object]) -> int:
    """The id after the last one in the tables of the towers, whether or not the checkpoint has towers."""
    ends = []
    for key, defaults in (("vision_config", VISION), ("audio_config", AUDIO)):
        section = with_defaults(config.get(key) or {}, defaults)
        offset, size = (
            section.get(name) if isinstance(section, dict) else None for name in ("vocab_offset", "vocab_size")
        )
        ends.append(offset + size if isinstance(offset, int) and isinstance(size, int) else 0)
    return max(ends)


def open_gemma3n(path: Path) -> Gemma3nCheckpoint:
    """Open the checkpoint in a directory, which must be of this family."""
    return Gemma3nCheckpoint(read_configs(path))


GEMMA3N = Family(
    name="gemma3n",
    architectures=ARCHITECTURES,
    open=Gemma3nCheckpoint,
    recipe_names=RECIPE_NAMES,
    model_types=MODEL_TYPES,
    files=(MATFORMER_FILE,),
)
