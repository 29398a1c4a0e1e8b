"""The signatures that the graphs of a bundle have, with their inputs and outputs (docs/formats/manifest.md)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from toolkit.base.layout import Span, ceil_div, overlaps
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import (
    AUDIO_ADAPTER,
    AUDIO_ENCODER,
    DRAFTER,
    EMBEDDER,
    TEXT_DECODER,
    VISION_ADAPTER,
    VISION_ENCODER,
    AudioRecord,
    Manifest,
    TextRecord,
    VisionRecord,
    signature_name,
)
from toolkit.tflite.reader import TfliteContent
from toolkit.tflite.records import SubgraphRecord

DECODE = "decode"
DRAFT = "draft"
VERIFY = "verify"
_COUNT = re.compile(r"[1-9][0-9]{0,6}", re.ASCII)
_CACHE_PREFIX = "kv_cache_"


@dataclass(frozen=True, slots=True)
class TensorShape:
    """Element type and dimensions, as LiteRT names them."""

    type: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.type}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class SignatureShape:
    """Names and shapes of a signature's inputs and outputs."""

    inputs: Mapping[str, TensorShape]
    outputs: Mapping[str, TensorShape]


@dataclass(frozen=True, slots=True)
class TextShapes:
    """The dimensions that determine the signatures of a text bundle."""

    vocab_size: int
    hidden_size: int
    ple_size: int
    num_layers: int
    context: int
    caches: Mapping[str, tuple[int, ...]]

    @classmethod
    def of_record(cls, text: TextRecord) -> TextShapes:
        """The dimensions in a manifest's text record."""
        caches = {cache.key: cache.shape for cache in text.kv_caches}
        caches |= {cache.value: cache.value_shape for cache in text.kv_caches}
        return cls(text.vocab_size, text.hidden_size, text.ple_size, text.num_layers, text.context, caches)

    def decoder(
        self, tokens: int, *, logits: bool = False, activations: bool = False, seen: int | None = None
    ) -> SignatureShape:
        """The shape of a prefill, or with `logits` that of `decode` or `verify`, over `seen` positions or all.

        `activations`: whether the rows that the logits are computed from are an output too.
        """
        caches = {name: _floats(*shape) for name, shape in self.caches.items()}
        inputs = {
            "embeddings": _floats(1, tokens, self.hidden_size),
            "per_layer_embeddings": _floats(1, tokens, self.num_layers, self.ple_size),
            "input_pos": TensorShape("INT32", (tokens,)),
            "mask": _floats(1, 1, tokens, seen or self.context),
        }
        outputs = dict(caches)
        if logits:
            outputs["logits"] = _floats(1, tokens, self.vocab_size)
        if activations:
            outputs["activations"] = _floats(1, tokens, self.hidden_size)
        return SignatureShape(inputs | caches, outputs)

    def decoders(
        self,
        prefill_sizes: Iterable[int],
        prefix: str = "",
        buckets: Iterable[int] = (),
        prefill_buckets: Iterable[int] = (),
        draft_tokens: int | None = None,
    ) -> dict[str, SignatureShape]:
        """All signatures of one size of the text decoder, by name."""
        drafts = draft_tokens is not None
        found = {}
        for bucket in (None, *buckets):
            found[signature_name(prefix, 1, bucket)] = self.decoder(1, logits=True, activations=drafts, seen=bucket)
            if draft_tokens is not None:
                verify = self.decoder(draft_tokens + 1, logits=True, activations=True, seen=bucket)
                found[signature_name(prefix, draft_tokens + 1, bucket, verify=True)] = verify
        for bucket in (None, *prefill_buckets):
            found |= {signature_name(prefix, n, bucket): self.decoder(n, seen=bucket) for n in prefill_sizes}
        return found

    def embedders(self, counts: Iterable[int]) -> dict[str, SignatureShape]:
        """The signatures of the token embedder, by name; there is one for each number of tokens in `counts`."""
        return {f"embed_{n}": _embedder(n, "embeddings", (1, n, self.hidden_size)) for n in counts}

    def drafter(self, caches: Collection[str] = (), buckets: Iterable[int] = ()) -> dict[str, SignatureShape]:
        """The signatures of a drafter, which may read the decoder's caches among these names, by name."""
        read = {name: _floats(*shape) for name, shape in self.caches.items() if name in caches}
        inputs = read | {
            "activations": _floats(1, 1, 2 * self.hidden_size),
            "input_pos": TensorShape("INT32", (1,)),
        }
        outputs = {
            "logits": _floats(1, 1, self.vocab_size),
            "projected_activations": _floats(1, 1, self.hidden_size),
        }
        return {
            draft_signature(bucket): SignatureShape(
                inputs | {"mask": _floats(1, 1, 1, bucket or self.context)}, outputs
            )
            for bucket in (None, *buckets)
        }

    def per_layer_embedder(self) -> dict[str, SignatureShape]:
        """The only signature of a .litertlm's per-layer embedder."""
        return {"embed_1": _embedder(1, "per_layer_embeddings", (1, 1, self.num_layers, self.ple_size))}


def draft_signature(bucket: int | None = None) -> str:
    """The name of a drafter's signature that reads the first `bucket` positions of the caches, or all.

    >>> draft_signature(), draft_signature(512)
    ('draft', 'in_512_draft')
    """
    return DRAFT if bucket is None else f"in_{bucket}_{DRAFT}"


def vision_shapes(vision: VisionRecord, hidden_size: int) -> dict[str, dict[str, SignatureShape]]:
    """The signatures of each file of the vision group, by file; `hidden_size`: the language model's."""
    features = _floats(1, vision.soft_tokens, vision.feature_size)
    images = _floats(1, vision.image_size, vision.image_size, 3)
    embeddings = _floats(1, vision.soft_tokens + 1, hidden_size)
    return {
        VISION_ENCODER: {"encode": SignatureShape({"images": images}, {"features": features})},
        VISION_ADAPTER: {
            "adapt": SignatureShape({"features": features}, {"embeddings": embeddings}),
            "embed_1": _embedder(1, "embeddings", (1, 1, hidden_size)),
        },
    }


def audio_shapes(audio: AudioRecord, hidden_size: int) -> dict[str, dict[str, SignatureShape]]:
    """The signatures of each file of the audio group, by file; `hidden_size`: the language model's."""
    encoder: dict[str, SignatureShape] = {}
    adapter = {
        "embed_1": _embedder(1, "embeddings", (1, 1, hidden_size)),
        "end_of_audio": SignatureShape({}, {"embeddings": _floats(1, 1, hidden_size)}),
    }
    for frames in audio.frame_lengths:
        tokens = ceil_div(frames, audio.frames_per_token)
        mel = {"src_inputs": _floats(1, frames, audio.mel_bins), "mask": TensorShape("BOOL", (1, frames))}
        features = {"features": _floats(1, tokens, audio.feature_size), "mask": TensorShape("BOOL", (1, tokens))}
        encoder[f"encode_{frames}"] = SignatureShape(mel, features)
        embeddings = {"embeddings": _floats(1, audio.soft_tokens, hidden_size)}
        adapter[f"adapt_{frames}"] = SignatureShape(features, embeddings)
    return {AUDIO_ENCODER: encoder, AUDIO_ADAPTER: adapter}


def bundle_signatures(manifest: Manifest) -> dict[str, Mapping[str, SignatureShape]]:
    """The signatures of each .tflite file of a bundle, by file."""
    text, shapes = manifest.text, TextShapes.of_record(manifest.text)
    decoder: dict[str, SignatureShape] = {}
    for size in manifest.sizes.values():
        decoder |= shapes.decoders(
            text.prefill_sizes, size.prefix, text.context_buckets, text.prefill_buckets, text.draft_tokens
        )
    found: dict[str, Mapping[str, SignatureShape]] = {TEXT_DECODER: decoder}
    found[EMBEDDER] = shapes.embedders(text.step_sizes)
    if manifest.vision is not None:
        found |= vision_shapes(manifest.vision, text.hidden_size)
    if manifest.audio is not None:
        found |= audio_shapes(manifest.audio, text.hidden_size)
    if manifest.drafter is not None:
        caches = manifest.drafter.caches
        found[DRAFTER] = shapes.drafter(caches, text.context_buckets if caches else ())
    return found


def text_shapes_of(decode: SubgraphRecord) -> TextShapes | None:
    """The dimensions of a decode signature; None if it lacks a tensor or one has the wrong rank."""
    found = shape_of(decode)
    shapes = {name: tensor.shape for name, tensor in {**found.inputs, **found.outputs}.items()}
    try:
        (_, _, hidden_size), (_, _, vocab_size) = shapes["embeddings"], shapes["logits"]
        (_, _, num_layers, ple_size), (_, _, _, context) = shapes["per_layer_embeddings"], shapes["mask"]
    except (KeyError, ValueError):
        return None
    caches = {name: shape for name, shape in shapes.items() if name.startswith(_CACHE_PREFIX)}
    return TextShapes(vocab_size, hidden_size, ple_size, num_layers, context, caches)


def checked_drafts(signatures: Mapping[str, SignatureShape]) -> int | None:
    """How many drafts the signature `verify` checks; None if there is no such signature."""
    positions = signatures[VERIFY].inputs.get("input_pos") if VERIFY in signatures else None
    return None if positions is None or not positions.shape else max(1, positions.shape[0] - 1)


def counts_of(signatures: Sequence[str], prefix: str) -> tuple[int, ...]:
    """The numbers N for which there is a signature named `prefix` + N, ascending.

    >>> counts_of(["prefill_8", "decode", "small_prefill_8", "prefill_128", "prefill_0"], "prefill_")
    (8, 128)
    """
    ends = (name[len(prefix) :] for name in signatures if name.startswith(prefix))
    return tuple(sorted(int(end) for end in ends if _COUNT.fullmatch(end)))


def shape_of(graph: SubgraphRecord) -> SignatureShape:
    """The names and shapes of the inputs and outputs of a graph."""

    def named(indices: Mapping[str, int]) -> dict[str, TensorShape]:
        return {name: TensorShape(graph.tensors[i].type, graph.tensors[i].shape) for name, i in indices.items()}

    return SignatureShape(named(graph.inputs), named(graph.outputs))


def shapes_of(content: TfliteContent) -> dict[str, SignatureShape]:
    """All signatures of a file, by name."""
    return {name: shape_of(content.graph(name)) for name in content.model.signatures}


def signature_faults(
    file: str, found: Mapping[str, SignatureShape], wanted: Mapping[str, SignatureShape]
) -> list[Fault]:
    """A fault for each input or output in which a file's signatures differ from the wanted ones."""
    faults = []
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            words = ("missing", "this signature") if name in wanted else ("present", "no such signature")
            faults.append(Fault(file, f"signature {name}", *words))
            continue
        pairs = (
            ("input", found[name].inputs, wanted[name].inputs),
            ("output", found[name].outputs, wanted[name].outputs),
        )
        for kind, have, want in pairs:
            for tensor in sorted(have.keys() | want.keys()):
                if have.get(tensor) != want.get(tensor):
                    here, there = str(have.get(tensor, "nothing")), str(want.get(tensor, "nothing"))
                    faults.append(Fault(file, f"signature {name} {kind} {tensor}", here, there))
    return faults


def buffer_faults(file: str, content: TfliteContent) -> list[Fault]:
    """A fault for each pair of weights that overlap in part; weights that share all their bytes are allowed."""
    spans = [
        Span(buffer.offset_bytes, buffer.offset_bytes + buffer.size_bytes, f"buffer {i}")
        for i, buffer in enumerate(content.model.buffers)
        if buffer.offset_bytes
    ]
    return [
        Fault(file, f"{b.name} overlaps {a.name}", f"bytes {b.begin} to {b.end}", f"none before byte {a.end}")
        for a, b in overlaps(spans)
    ]


def _embedder(tokens: int, output: str, shape: tuple[int, ...]) -> SignatureShape:
    return SignatureShape({"ids": TensorShape("INT32", (1, tokens))}, {output: _floats(*shape)})


def _floats(*shape: int) -> TensorShape:
    return TensorShape("FLOAT32", shape)
