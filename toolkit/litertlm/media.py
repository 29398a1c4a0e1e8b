"""The metadata, and changes to template and graphs, with which LiteRT-LM treats images and sounds as transformers does.

How the engine treats each was observed, not read in its source (docs/formats/litertlm.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from toolkit.bundle.manifest import TOKENIZER, Manifest, TowerTokens
from toolkit.bundle.tokenizer_file import token_spellings
from toolkit.litertlm.schema import ImageMetadata, MelMetadata, ModelType, SoundMetadata
from toolkit.tflite.records import OperatorRecord, SubgraphRecord

AROUND = "\n\n"
"""The text that transformers' Gemma3nProcessor writes before and after every image and sound."""


def media_metadata(
    tokenizer: bytes, manifest: Manifest, groups: Sequence[str], model_type: ModelType, *, joined: bool
) -> tuple[ImageMetadata | None, SoundMetadata | None]:
    """The engine's metadata for images and for sounds; None for a group that is not exported.

    `tokenizer`: the content of tokenizer.json. `joined`: the chat template writes the newlines that follow each image
    and sound.
    """
    vision = manifest.vision if "vision" in groups else None
    audio = manifest.audio if "audio" in groups else None
    generic = model_type == "generic_model"
    around = (AROUND, "" if joined else AROUND) if generic else ("", "")

    def spelling(tower: TowerTokens) -> tuple[str, str, str, str, str]:
        spelled = token_spellings(TOKENIZER, tokenizer, tower.markers().values())
        placeholder = spelled[tower.soft_token_id] if generic else ""
        return spelled[tower.begin_token_id], spelled[tower.end_token_id], placeholder, *around

    image = sound = None
    if vision is not None:
        image = ImageMetadata(*spelling(vision), vision.image_size, vision.image_size)
    if audio is not None:
        sound = SoundMetadata(*spelling(audio), MelMetadata(audio.mel_bins) if generic else None)
    return image, sound


def joined_template(template: str, placeholders: Sequence[str]) -> str:
    r"""The chat template, changed to write newlines after each placeholder.

    A suffix in the metadata would be tokenised separately from the text after it. Newlines in the template are
    tokenised together with that text, as in transformers, where two pairs of newlines become one token.

    >>> joined_template("{{ x }}", ["<i>"])
    '{% set rendered_prompt %}{{ x }}{% endset %}{{ rendered_prompt | replace("<i>", "<i>\\n\\n") }}'
    """
    if not placeholders:
        return template
    filters = "".join(
        f" | replace({json.dumps(p, ensure_ascii=False)}, {json.dumps(p + AROUND, ensure_ascii=False)})"
        for p in placeholders
    )
    # Jinja drops one newline at the end of a template; this is not the end any more, so it is dropped here.
    body = template.removesuffix("\n")
    return "{% set rendered_prompt %}" + body + "{% endset %}{{ rendered_prompt" + filters + " }}"


def separate_template(template: str, placeholders: Sequence[str]) -> str:
    """The reverse of `joined_template`: without the newlines after each placeholder, as transformers expects it."""
    if not placeholders:
        return template
    filters = "".join(
        f" | replace({json.dumps(p + AROUND, ensure_ascii=False)}, {json.dumps(p, ensure_ascii=False)})"
        for p in placeholders
    )
    return "{% set separate_prompt %}" + template + "{% endset %}{{ separate_prompt" + filters + " }}"


def always_true(output: str) -> Callable[[SubgraphRecord], SubgraphRecord]:
    """A function that changes a graph so that a boolean output is true everywhere."""

    def change(graph: SubgraphRecord) -> SubgraphRecord:
        index, inverse, new = graph.outputs[output], len(graph.tensors), len(graph.tensors) + 1
        old = graph.tensors[index]
        tensors = tuple(replace(old, name=f"{old.name}_{word}", buffer=0) for word in ("not", "always"))
        operators = (
            OperatorRecord("LOGICAL_NOT", 1, (index,), (inverse,), "LogicalNotOptions"),
            OperatorRecord("LOGICAL_OR", 1, (index, inverse), (new,), "LogicalOrOptions"),
        )
        return replace(
            graph,
            tensors=(*graph.tensors, *tensors),
            operators=(*graph.operators, *operators),
            outputs={**graph.outputs, output: new},
        )

    return change
