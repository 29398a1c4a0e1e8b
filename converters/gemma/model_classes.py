"""The classes of transformers that a family's checkpoints load as, and the sections of config.json that each has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from converters.gemma.config_json import finish_section, ignore_repeated, section, with_defaults
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject


@dataclass(frozen=True, slots=True)
class Sections:
    """What a config.json says of a checkpoint before the text model's config is read."""

    architecture: str
    """The class with the output matrix, even if config.json names the one without."""

    top: JsonObject
    text: JsonObject
    """The text model's section, with defaults for missing keys; for a text model, it is `top`."""


@dataclass(frozen=True, slots=True)
class ModelClasses:
    """The classes of one family: the multimodal model, and the text model alone."""

    model_type: str
    """`model_type` of the multimodal model; that of the text model ends in `_text`, those of the towers in theirs."""

    multimodal: str
    text: str

    bases: Mapping[str, str]
    """The same models without the output matrix, which is tied to the embedding: their class to the one with it."""

    defaults: Mapping[str, object]
    """The defaults of the text model's config class."""

    multimodal_keys: Collection[str]
    """Keys of the multimodal model's top level that concern images and sounds."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Every value that `architectures` may have."""
        return (self.multimodal, self.text, *self.bases)

    @property
    def model_types(self) -> tuple[str, ...]:
        """Every value that `model_type` may have."""
        return tuple(self._types().values())

    def read(self, config: object, what: str) -> Sections:
        """The sections of a parsed config.json; CheckpointError if it is not this family's. `what` names it in errors.

        The configs of the towers are left unread: they are checked when the towers are converted.
        """
        top = JsonObject(config, what, CheckpointError)
        architecture = self._architecture(top)
        if architecture == self.text:
            top = text = JsonObject(with_defaults(config, self.defaults), what, CheckpointError)
        else:
            for tower in ("vision", "audio"):
                if top.has(f"{tower}_config"):
                    top.child(f"{tower}_config").expect("model_type", f"{self.model_type}_{tower}")
            top.ignore(self.multimodal_keys)
            text = section(top, "text_config", self.defaults)
        text.expect("model_type", self._types()[self.text])
        return Sections(architecture, top, text)

    def finish(self, sections: Sections, read: Collection[str] = ()) -> None:
        """Check the keys that every section may have, except those of the text model that were `read`.

        CheckpointError for a value that is not supported, or an unknown key.
        """
        finish_section(sections.text, read)
        if sections.text is not sections.top:
            ignore_repeated(sections.top, sections.text, self.defaults)
            finish_section(sections.top)

    def _types(self) -> dict[str, str]:
        return {self.multimodal: self.model_type, self.text: f"{self.model_type}_text"}

    def _architecture(self, top: JsonObject) -> str:
        """The architecture in config.json; if it names none, that of its model_type."""
        types = self._types()
        if not top.has("architectures"):
            kind = top.value("model_type")
            found = next((name for name in types if types[name] == kind), None)
            return found or top.refuse("model_type", kind, " or ".join(types.values()))
        stated = top.array("architectures")
        named = next((name for name in self.architectures if stated == [name]), None)
        if named is None:
            top.refuse("architectures", stated, " or ".join(types))
        architecture = self.bases.get(named, named)
        if top.value("model_type") != types[architecture]:
            top.refuse("model_type", top.value("model_type"), f"{types[architecture]!r} for {architecture}")
        return architecture
