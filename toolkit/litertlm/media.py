"""What LiteRT-LM must be told, and given, to put images and sounds into prompts as transformers does.

What the engine does with each is observed (docs/formats/litertlm.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from toolkit.bundle.manifest import TOKENIZER, Manifest, TowerTokens
from toolkit.bundle.tokenizer_file import token_spellings
from toolkit.litertlm.schema import ImageMetadata, MelMetadata, ModelType, SoundMetadata
from toolkit.tflite.records import OperatorRecord, SubgraphRecord

_AROUND = "\n\n"
"""What transformers' Gemma3nProcessor writes before and behind every image and sound."""


def media_metadata(
    tokenizer: bytes, manifest: Manifest, groups: Sequence[str], model_type: ModelType, *, joined: bool
) -> tuple[ImageMetadata | None, SoundMetadata | None]:
    """How images and sounds are spelled in a prompt, and what is made of them; None for a group that is left out.

    tokenizer: the content of tokenizer.json. joined: the chat template writes what follows them.
    """
    vision = manifest.vision if "vision" in groups else None
    audio = manifest.audio if "audio" in groups else None
    generic = model_type == "generic_model"
    around = (_AROUND, "" if joined else _AROUND) if generic else ("", "")

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
    r"""A chat template that writes newlines behind each placeholder.

    The engine tokenises what it is told to write behind an image apart from the text that follows. Newlines of the
    template are tokenised with that text, as transformers does it, where two pairs of newlines are one token.

    >>> joined_template("{{ x }}", ["<i>"])
    '{% set rendered_prompt %}{{ x }}{% endset %}{{ rendered_prompt | replace("<i>", "<i>\\n\\n") }}'
    """
    if not placeholders:
        return template
    filters = "".join(
        f" | replace({json.dumps(p, ensure_ascii=False)}, {json.dumps(p + _AROUND, ensure_ascii=False)})"
        for p in placeholders
    )
    # Jinja drops one newline at a template's end, which is in its middle now.
    body = template.removesuffix("\n")
    return "{% set rendered_prompt %}" + body + "{% endset %}{{ rendered_prompt" + filters + " }}"


def always_true(output: str) -> Callable[[SubgraphRecord], SubgraphRecord]:
    """A change that makes a boolean output true everywhere: whatever it was is equal to itself."""

    def change(graph: SubgraphRecord) -> SubgraphRecord:
        index, new = graph.outputs[output], len(graph.tensors)
        tensor = replace(graph.tensors[index], name=f"{graph.tensors[index].name}_always", buffer=0)
        equal = OperatorRecord("EQUAL", 1, (index, index), (new,), "EqualOptions")
        return replace(
            graph,
            tensors=(*graph.tensors, tensor),
            operators=(*graph.operators, equal),
            outputs={**graph.outputs, output: new},
        )

    return change
