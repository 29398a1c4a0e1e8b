"""Checks that the tower graphs of a .litertlm match each other and the metadata (docs/formats/litertlm.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from toolkit.bundle.faults import Fault
from toolkit.bundle.signatures import SignatureShape, TensorShape, shape_of, shapes_of, signature_faults
from toolkit.litertlm import schema
from toolkit.litertlm.schema import MODEL_TYPES, LlmMetadata
from toolkit.tflite.reader import TfliteContent

VISION = (schema.VISION_ENCODER, schema.VISION_ADAPTER)
AUDIO = (schema.AUDIO_ENCODER, schema.AUDIO_ADAPTER, schema.END_OF_AUDIO)

Wanted = Mapping[str, Mapping[str, SignatureShape]]
"""For each section label and signature name, the inputs and outputs that the signature must have."""


def tower_faults(
    graphs: Mapping[str, TfliteContent], metadata: LlmMetadata | None, hidden_size: int
) -> Iterator[tuple[str, Fault]]:
    """Yield each fault with its section's label; `graphs`: the tower sections that could be read, by label."""
    wanted = {**_vision(graphs, metadata, hidden_size), **_audio(graphs, metadata, hidden_size)}
    for label, signatures in wanted.items():
        if label in graphs:
            yield from ((label, fault) for fault in signature_faults("", shapes_of(graphs[label]), signatures))
    if metadata is not None and metadata.model_type in MODEL_TYPES:
        yield from _metadata_faults(graphs, metadata)


def _vision(graphs: Mapping[str, TfliteContent], metadata: LlmMetadata | None, hidden_size: int) -> Wanted:
    """The wanted signatures: dimensions are the encoder's own, except the image's pixels, which the metadata states."""
    encoder = _sole(graphs, schema.VISION_ENCODER)
    _, height, width, _ = _shape(encoder.inputs, "images", (1, 1, 1, 3))
    _, tokens, features = _shape(encoder.outputs, "features", (1, 1, 1))
    if metadata is not None and metadata.image is not None:
        height, width = metadata.image.height, metadata.image.width
    between = {"features": _floats(1, tokens, features)}
    images, embeddings = _floats(1, height, width, 3), _floats(1, tokens + 1, hidden_size)
    return {
        schema.VISION_ENCODER: {"encode": SignatureShape({"images": images}, between)},
        schema.VISION_ADAPTER: {"adapt": SignatureShape(between, {"embeddings": embeddings})},
    }


def _audio(graphs: Mapping[str, TfliteContent], metadata: LlmMetadata | None, hidden_size: int) -> Wanted:
    """The wanted signatures: dimensions are the encoder's own, except the mel bins, which the metadata may state."""
    encoder = _sole(graphs, schema.AUDIO_ENCODER)
    _, frames, bins = _shape(encoder.inputs, "src_inputs", (1, 1, 1))
    _, tokens, features = _shape(encoder.outputs, "features", (1, 1, 1))
    if metadata is not None and metadata.sound is not None and metadata.sound.mel is not None:
        bins = metadata.sound.mel.num_mel_bins
    sound = {"src_inputs": _floats(1, frames, bins), "mask": TensorShape("BOOL", (1, frames))}
    between = {"features": _floats(1, tokens, features), "mask": TensorShape("BOOL", (1, tokens))}
    embeddings = {"embeddings": _floats(1, tokens, hidden_size)}
    return {
        schema.AUDIO_ENCODER: {"encode": SignatureShape(sound, between)},
        schema.AUDIO_ADAPTER: {"adapt": SignatureShape(between, embeddings)},
        schema.END_OF_AUDIO: {"end_of_audio": SignatureShape({}, {"embeddings": _floats(1, 1, hidden_size)})},
    }


def _metadata_faults(graphs: Mapping[str, TfliteContent], metadata: LlmMetadata) -> Iterator[tuple[str, Fault]]:
    media = {"image": (metadata.image, VISION[0]), "sound": (metadata.sound, AUDIO[0])}
    for kind, (told, label) in media.items():
        if (told is None) != (label not in graphs):
            found, wanted = ("nothing", "how") if told is None else ("how", "nothing")
            there = "a section" if label in graphs else "no section"
            yield schema.LLM_METADATA, Fault("", f"{kind}s", found, f"{wanted}, because there is {there} {label}")
        elif told is not None and metadata.model_type == "generic_model" and not told.placeholder:
            yield schema.LLM_METADATA, Fault("", f"{kind} placeholder", "none", "what chat templates write for it")


def _sole(graphs: Mapping[str, TfliteContent], label: str) -> SignatureShape:
    """The inputs and outputs of the section's first signature; empty if there is none."""
    names = graphs[label].model.signatures if label in graphs else ()
    return shape_of(graphs[label].graph(names[0])) if names else SignatureShape({}, {})


def _shape(tensors: Mapping[str, TensorShape], name: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions of a tensor; if it is missing or of another rank, `otherwise`, which then shows as a fault."""
    found = tensors[name].shape if name in tensors else ()
    return found if len(found) == len(otherwise) else otherwise


def _floats(*shape: int) -> TensorShape:
    return TensorShape("FLOAT32", shape)
