"""Google's drafters for Gemma 4 in exports: what they draft, by transformers, and what the engine makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gemma4_assistants import fit_head, hf_assisted, hf_drafts, make_assistant
from gemma4_models import write_random_model
from gemma4_oracle import hf_greedy
from litert_lm_engine import LmEngine, open_engine

import gemma_edge
from converters.assistant import assistant_for_export
from converters.convert import convert
from converters.families import open_checkpoint
from converters.rebuild import rebuild
from converters.request import ConvertRequest
from toolkit.base.errors import BundleError, CheckpointError, UsageError
from toolkit.base.files import hash_file
from toolkit.bundle.signatures import DRAFT
from toolkit.check import check
from toolkit.litertlm.reader import read_litertlm
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import BackendOptions, ModelFile
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.kv_buffers import BLOCKED
from toolkit.runtime.session import Session, SessionSettings
from toolkit.tflite.gpu import gpu_refusals
from toolkit.tflite.reader import read_tflite

pytestmark = pytest.mark.reference

SETTINGS = SessionSettings(threads=1, weight_cache="memory")
WINDOW = {"sliding_window": 16, "max_position_embeddings": 4096}
LONG = [2, *np.random.default_rng(5).integers(20, 300, 40).tolist()]
"""Longer than the window, and than the ring of a bundle with small prefills."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("gemma4") / "checkpoint")


@pytest.fixture(scope="module")
def assistant(checkpoint: Path) -> Path:
    return make_assistant(checkpoint.parent / "assistant", seed=3, **WINDOW)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    """With rings of 24 rows, and 3 drafts in a step."""
    path = checkpoint.parent / "bundle"
    request = ConvertRequest(checkpoint, path, {"text": "f32"}, context=256, prefill_sizes=(4, 8), draft_tokens=3)
    convert(request, gate=None)
    return path


class OurDrafter:
    """The file of a drafter, on the caches of a session that has processed some tokens."""

    def __init__(self, bundle: Path, file: Path) -> None:
        self.session = Session(Bundle(bundle), SETTINGS)
        found = hash_file(file)
        self._runtime = BACKENDS[0].start(BackendOptions(1, "memory"))
        self._model = self._runtime.open(ModelFile(file, found.sha256, found.size), "small")
        info = self._model.signature(DRAFT)
        self._inputs = {name: self._model.input_buffer(DRAFT, name) for name in info.inputs}
        self._outputs = {name: self._model.output_buffer(DRAFT, name) for name in info.outputs}
        self._call = self._model.bind(DRAFT, self._inputs, self._outputs)

    def close(self) -> None:
        self._runtime.close()
        self.session.close()

    def drafts(self, ids: Sequence[int], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Logits and states of the drafts after `ids`, of which the session processes all but the last."""
        session = self.session
        session.truncate(0)
        session.feed(list(ids[:-1]))
        return self.further(ids[-1], session.activations()[0], count)

    def further(self, token: int, state: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same after what the session has processed already, and a token that this state gave."""
        session = self.session
        last = session.position - 1
        mask = np.full(session.context, BLOCKED, np.float32)
        mask[: last + 1] = 0
        self._inputs["mask"].write(mask)
        self._inputs["input_pos"].write(np.array([last], np.int32))
        for name, buffer in self._inputs.items():
            if name.startswith("kv_cache_"):
                buffer.write(session._caches.buffers[name].read())
        embeddings = session._embedder
        found = []
        for _ in range(count):
            embedding = _embedding(embeddings, token)
            self._inputs["activations"].write(np.concatenate([embedding, state]))
            self._call()
            logits = self._outputs["logits"].read().reshape(-1)
            state = self._outputs["projected_activations"].read().reshape(-1)
            token = int(logits.argmax())
            found.append((logits, state))
        return found


def _embedding(embedder: object, token: int) -> np.ndarray:
    ids = embedder.input_buffer("embed_1", "ids")  # type: ignore[attr-defined]
    rows = embedder.output_buffer("embed_1", "embeddings")  # type: ignore[attr-defined]
    ids.write(np.array([token], np.int32))
    embedder.bind("embed_1", {"ids": ids}, {"embeddings": rows})()  # type: ignore[attr-defined]
    found: np.ndarray = rows.read().reshape(-1)
    return found


@pytest.fixture(scope="module")
def ours(bundle: Path, assistant: Path) -> Iterator[OurDrafter]:
    scratch = bundle.parent / "drafter"
    scratch.mkdir()
    drafter = OurDrafter(bundle, assistant_for_export(bundle, assistant, scratch).path)
    yield drafter
    drafter.close()


def require_same_drafts(ours: OurDrafter, checkpoint: Path, assistant: Path, ids: Sequence[int]) -> None:
    for (logits, state), wanted in zip(ours.drafts(ids, 3), hf_drafts(checkpoint, assistant, ids, 3), strict=True):
        np.testing.assert_allclose(logits, wanted.logits, atol=2e-4)
        np.testing.assert_allclose(state, wanted.state, atol=2e-4)


# The window of 16 and one more key, the ring of 24 rows.
@pytest.mark.parametrize("length", [3, 17, 18, 19, 41], ids="{} tokens".format)
def test_drafts_are_those_of_transformers(ours: OurDrafter, checkpoint: Path, assistant: Path, length: int) -> None:
    require_same_drafts(ours, checkpoint, assistant, LONG[:length])


def test_rejected_drafts_in_the_ring_change_no_draft(ours: OurDrafter, checkpoint: Path, assistant: Path) -> None:
    session, ids = ours.session, LONG[:34]
    session.truncate(0)
    session.feed(ids[:-1])
    first = session.verify([ids[-1], 7, 8, 9])[0]
    state, token = session.activations()[0], int(first.argmax())
    session.truncate(len(ids))
    for (logits, _), wanted in zip(
        ours.further(token, state, 3), hf_drafts(checkpoint, assistant, [*ids, token], 3), strict=True
    ):
        np.testing.assert_allclose(logits, wanted.logits, atol=2e-4)


def test_caches_without_rings_are_told_apart_by_their_heads(checkpoint: Path, assistant: Path, tmp_path: Path) -> None:
    request = ConvertRequest(checkpoint, tmp_path / "bundle", {"text": "f32"}, context=24, prefill_sizes=(8,))
    convert(replace(request, draft_tokens=3), gate=None)
    drafter = OurDrafter(tmp_path / "bundle", assistant_for_export(tmp_path / "bundle", assistant, tmp_path).path)
    require_same_drafts(drafter, checkpoint, assistant, LONG[:20])
    drafter.close()


def test_clusters_are_left_out_so_that_every_token_is_scored(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    clustered = make_assistant(tmp_path / "clustered", seed=4, clusters=30, **WINDOW)
    drafter = OurDrafter(bundle, assistant_for_export(bundle, clustered, tmp_path).path)
    require_same_drafts(drafter, checkpoint, clustered, LONG[:9])
    drafter.close()


# --- acceptance ------------------------------------------------------------------------------------------------------

PROMPT, TOKENS = LONG[:6], 40


@pytest.fixture(scope="module")
def fitted(checkpoint: Path) -> Path:
    """A random drafter whose output matrix was fitted to the target's greedy text, so that it is often right."""
    path = make_assistant(checkpoint.parent / "fitted", seed=6, **WINDOW)
    return fit_head(path, checkpoint, [*PROMPT, *hf_greedy(checkpoint, PROMPT, TOKENS)], first=len(PROMPT))


def accepted(drafts: Callable[[list[int], int], list[int]], text: Sequence[int]) -> list[int]:
    """How many drafts of each step are right, where `text` follows the prompt."""
    ids, left, found = [*PROMPT, text[0]], list(text[1:]), []
    while len(left) > 3:
        right = next((n for n, (a, b) in enumerate(zip(drafts(ids, 3), left, strict=False)) if a != b), 3)
        found.append(right)
        ids, left = ids + left[: right + 1], left[right + 1 :]
    return found


@pytest.mark.slow
def test_as_many_drafts_are_accepted_as_of_transformers(
    bundle: Path, checkpoint: Path, fitted: Path, tmp_path: Path
) -> None:
    text = hf_greedy(checkpoint, PROMPT, TOKENS)
    own, seen = hf_assisted(checkpoint, fitted, PROMPT, TOKENS, 3)
    assert own == text
    drafter = OurDrafter(bundle, assistant_for_export(bundle, fitted, tmp_path).path)
    ours = accepted(lambda ids, count: [int(x.argmax()) for x, _ in drafter.drafts(ids, count)], text)
    wanted = accepted(
        lambda ids, count: [int(x.logits.argmax()) for x in hf_drafts(checkpoint, fitted, ids, count)], text
    )
    drafter.close()
    assert ours == wanted and sum(ours) > len(ours)
    # Of the first step: later, transformers leaves the row of a rejected draft in its keys.
    assert [int(x.logits.argmax()) for x in hf_drafts(checkpoint, fitted, [*PROMPT, text[0]], 3)] == seen


# --- exports ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def exported(bundle: Path, fitted: Path, request: pytest.FixtureRequest) -> Path:
    path = bundle.parent / f"{request.param}.litertlm"
    result = gemma_edge.export(bundle, path, drafter=fitted, target=request.param)
    assert result.groups == ("text", "drafter")
    return path


def test_an_export_with_a_drafter_is_sound_and_a_gpu_takes_its_graph(exported: Path) -> None:
    assert check(exported) == []
    section = next(s for s in read_litertlm(exported).sections if s.label == "tf_lite_mtp_drafter")
    content = read_tflite(exported, (section.begin, section.end))
    # The last sliding owner's cache, and that of the last with full attention.
    caches = {name for name in content.graph(DRAFT).inputs if name.startswith("kv_cache")}
    assert caches == {"kv_cache_k_2", "kv_cache_v_2", "kv_cache_k_3", "kv_cache_v_3"}
    assert gpu_refusals(content.model) == []
    builtins = {op.builtin for op in content.graph(DRAFT).operators}
    norm, other = ("RSQRT", "STABLEHLO_COMPOSITE") if exported.stem == "cpu" else ("STABLEHLO_COMPOSITE", "RSQRT")
    assert norm in builtins and other not in builtins


@pytest.mark.lm
@pytest.mark.slow
def test_the_engine_says_the_same_with_drafts(exported: Path, bundle: Path) -> None:
    prompts = ["the cat", "a b c", "the cat " * 12, "on a mat"]
    with open_engine(exported) as engine:
        plain = texts(engine, prompts)
    with open_engine(exported, drafts=True) as engine:
        drafted = texts(engine, prompts)
    assert [text[: len(other)] for text, other in zip(drafted, plain, strict=True)] == plain
    assert len(set(plain)) > 1


def texts(engine: LmEngine, prompts: Sequence[str]) -> list[str]:
    return ["".join(engine.greedy(prompt, 32)) for prompt in prompts]


@pytest.mark.full
def test_an_export_is_made_again_with_the_same_drafter(
    exported: Path, checkpoint: Path, fitted: Path, assistant: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.litertlm"
    with pytest.raises(UsageError, match="drafter: found none, wanted fitted, as the lock says"):
        rebuild(exported, checkpoint, again)
    with pytest.raises(CheckpointError, match="fingerprint"):
        rebuild(exported, checkpoint, again, assistants=[assistant])
    rebuild(exported, checkpoint, again, assistants=[fitted])
    assert again.read_bytes() == exported.read_bytes()


def test_a_quantised_bundle_gets_a_quantised_drafter(
    checkpoint: Path, ours: OurDrafter, assistant: Path, tmp_path: Path
) -> None:
    request = ConvertRequest(checkpoint, tmp_path / "bundle", {"text": "int8"}, context=64, prefill_sizes=(8,))
    convert(replace(request, draft_tokens=3), gate=None)
    file = assistant_for_export(tmp_path / "bundle", assistant, tmp_path).path
    types = {tensor.name: tensor.type for tensor in read_tflite(file).graph(DRAFT).tensors}
    assert types["lm_head.weight"] == "INT4" and types["layers.0.mlp.up_proj.weight"] == "INT8"
    drafter = OurDrafter(tmp_path / "bundle", file)
    (found, state), (wanted, other) = drafter.drafts(LONG[:9], 1)[0], ours.drafts(LONG[:9], 1)[0]
    drafter.close()
    assert np.corrcoef(state, other)[0, 1] > 0.98 and np.corrcoef(found, wanted)[0, 1] > 0.95


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backbone_hidden_size": 64}, "tensors: found .*pre_projection.weight .* instead of"),
        ({"num_centroids": 7, "use_ordered_embeddings": True}, "num_centroids: found 7, wanted a divisor"),
        ({"quantization_config": {"quant_method": "gemma"}}, "quantised weights, wanted a drafter in 16 or 32"),
        ({"surprise": 1}, "surprise"),
        ({"text_config.num_kv_shared_layers": 2}, "num_kv_shared_layers: found 2, wanted 4, all layers"),
        ({"text_config.hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input: found 8, wanted 0"),
        ({"text_config.sliding_window": 32}, "sliding_window: found 32, wanted 16, as the bundle"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_no_drafter_for_the_model_is_refused(
    bundle: Path, assistant: Path, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    path = Path(shutil.copytree(assistant, tmp_path / "changed"))
    config = json.loads((path / "config.json").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        assistant_for_export(bundle, path, tmp_path)


def test_a_drafter_for_other_heads_or_another_width_is_refused(bundle: Path, tmp_path: Path) -> None:
    wide = make_assistant(tmp_path / "wide", seed=1, backbone=48, **WINDOW)
    with pytest.raises(CheckpointError, match="backbone_hidden_size: found 48, wanted 32, as the bundle"):
        assistant_for_export(bundle, wide, tmp_path)
    heads = make_assistant(tmp_path / "heads", seed=1, num_key_value_heads=1, **WINDOW)
    with pytest.raises(CheckpointError, match="num_key_value_heads: found 1, wanted 2, as the bundle"):
        assistant_for_export(bundle, heads, tmp_path)


def test_a_drafter_is_no_model_and_a_model_no_drafter(
    checkpoint: Path, bundle: Path, assistant: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"a drafter for another model; put it .* --drafter DIR"):
        open_checkpoint(assistant)
    with pytest.raises(CheckpointError, match="wanted a drafter's: Gemma4AssistantForCausalLM"):
        assistant_for_export(bundle, checkpoint, tmp_path)


def test_a_bundle_that_checks_no_drafts_gets_no_drafter(checkpoint: Path, assistant: Path, tmp_path: Path) -> None:
    convert(ConvertRequest(checkpoint, tmp_path / "bundle", context=64, prefill_sizes=(8,)), gate=None)
    with pytest.raises(BundleError, match=r"no signature verify.*--draft-tokens 3"):
        gemma_edge.export(tmp_path / "bundle", tmp_path / "model.litertlm", drafter=assistant)
