"""The file of a drafter computes what its matrices say, as the group of a bundle and as a section of an export."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import gemma_edge
from converters.convert import convert
from converters.rebuild import rebuild
from converters.request import ConvertRequest
from toolkit.base.errors import BundleError, UsageError
from toolkit.base.files import hash_file
from toolkit.bundle.check import check_directory
from toolkit.bundle.lock import DrafterSettings, read_lock
from toolkit.bundle.manifest import DRAFTER, DRAFTER_TEXT, TOKENIZER
from toolkit.bundle.manifest_json import dump_manifest, read_manifest
from toolkit.bundle.signatures import DRAFT
from toolkit.drafting.fit import Drafter
from toolkit.drafting.graph import NEVER, RECIPE, write_drafter
from toolkit.drafting.make import Drafting, make_drafter
from toolkit.litertlm.check import check_litertlm
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import Scheme
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import BackendOptions, ModelFile
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.conversation import AnswerRequest, SessionConversation
from toolkit.runtime.drafts.drafter import DrafterSource, Embeddings
from toolkit.runtime.drafts.prompt_lookup import PromptLookup
from toolkit.runtime.drafts.sources import DraftSources
from toolkit.runtime.generate import Generation
from toolkit.runtime.sampling import Sampler, Sampling
from toolkit.runtime.session import Session, SessionSettings
from toolkit.tflite.judge import judge
from toolkit.tflite.judge import read_header as read_tflite_header

F32 = NDArray[np.float32]
ONE_THREAD = SessionSettings(threads=1, weight_cache="memory")
EVEN_BAD = Drafting(ONE_THREAD, least_accepted=0.0)
FLOATS = Recipe("floats", (Rule("*", Scheme("f32")),))


def random_drafter(hidden: int, seed: int = 0) -> Drafter:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> F32:
        return random.standard_normal((rows, columns), np.float32)

    ids = np.array([3, 5, 8, 13, 21, 34, 55, 89])
    scale, head = np.abs(matrix(1, 2 * hidden)[0]), matrix(8, hidden)
    return Drafter(scale, matrix(48, 2 * hidden + 1) / np.float32(8), matrix(hidden, 2 * hidden + 48 + 1), head, ids)


def drafted(path: Path, activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logits and the state that a drafter's file gives."""
    found = hash_file(path)
    runtime = BACKENDS[0].start(BackendOptions(1, "memory"))
    try:
        model = runtime.open(ModelFile(path, found.sha256, found.size), "small")
        inputs = {name: model.input_buffer(DRAFT, name) for name in model.signature(DRAFT).inputs}
        outputs = {name: model.output_buffer(DRAFT, name) for name in model.signature(DRAFT).outputs}
        for buffer in inputs.values():
            buffer.write(np.zeros(buffer.info.shape, buffer.info.dtype))
        inputs["activations"].write(activations)
        model.bind(DRAFT, inputs, outputs)()
        return outputs["logits"].read().reshape(-1), outputs["projected_activations"].read().reshape(-1)
    finally:
        runtime.close()


def cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(found @ wanted / np.sqrt((found @ found) * (wanted @ wanted)))


# Random matrices are the worst case for int4.
@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "least"), [(FLOATS, 1 - 1e-6), (RECIPE, 0.9)], ids=["floats", "int4"])
def test_the_graph_computes_the_drafter(drafting_bundle: Path, tmp_path: Path, recipe: Recipe, least: float) -> None:
    text = read_manifest(drafting_bundle).text
    drafter = random_drafter(text.hidden_size)
    path = tmp_path / DRAFTER
    write_drafter(path, drafter, text, recipe)
    judge(read_tflite_header(path))
    both = np.random.default_rng(1).standard_normal(2 * text.hidden_size).astype(np.float32)
    wanted = drafter.states(both[None])[0]
    logits, state = drafted(path, both)
    assert cosine(state, wanted) > least
    assert cosine(logits[drafter.head_ids], drafter.head @ wanted) > least
    others = np.setdiff1d(np.arange(text.vocab_size), drafter.head_ids)
    assert (logits[others] == np.float32(NEVER)).all()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """A bundle of random weights with a drafter, however bad it is."""
    path = tmp_path_factory.mktemp("fitted") / "bundle"
    settings = DrafterSettings(tokens=600, hidden_units=16)
    request = ConvertRequest(random_checkpoint, path, context=120, prefill_sizes=(4, 16), drafter=settings)
    convert(request, gate=None, drafting=EVEN_BAD)
    return path


@pytest.mark.slow
def test_a_bundle_with_a_drafter_is_sound_and_says_how_good_it_is(fitted: Path) -> None:
    manifest = read_manifest(fitted)
    assert check_directory(fitted) == []
    drafter = manifest.drafter
    assert drafter is not None and drafter.size == "full" and len(drafter.acceptance) == 3
    assert list(drafter.acceptance) == sorted(drafter.acceptance, reverse=True)
    lines = [json.loads(line) for line in (fitted / DRAFTER_TEXT).read_text().splitlines()]
    assert sum(len(line["ids"]) - line["opening"] for line in lines) >= 600
    assert read_lock(fitted).drafter == DrafterSettings(600, 16)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=20, seed=3)])
def test_our_session_drafts_with_it_and_says_the_same(fitted: Path, sampling: Sampling) -> None:
    bundle, prompt = Bundle(fitted), [2, 7, 9, 4, 11]
    words = bundle.manifest.text.text_ids
    with Session(bundle, ONE_THREAD) as session, closing(DraftSources(session)) as sources:
        reports = []
        for source in (None, sources.for_answer()):
            session.truncate(0)
            answer = Generation(session, prompt, Sampler(sampling, words), limit=40, stops=(), drafts=source)
            assert tuple(answer) == answer.report().token_ids
            reports.append(answer.report())
    assert reports[0].token_ids == reports[1].token_ids and len(reports[0].token_ids) == 40
    assert reports[1].drafts is not None and reports[1].drafts.offered > 0


def test_drafts_are_those_of_the_file_one_after_another(fitted: Path) -> None:
    bundle = Bundle(fitted)
    state = np.random.default_rng(2).standard_normal(bundle.manifest.text.hidden_size).astype(np.float32)
    with closing(DrafterSource.beside(bundle, ONE_THREAD.backend_options)) as drafter:
        assert drafter.propose([2, 7], None, 3) == ()
        found = list(drafter.propose([2, 7], state, 3))
    embedder = BACKENDS[0].start(ONE_THREAD.backend_options)
    try:
        embedding, token, wanted = Embeddings.of_bundle(bundle, embedder), 7, []
        for _ in range(3):
            logits, state = drafted(fitted / DRAFTER, np.concatenate([embedding(np.array([token]))[0], state]))
            wanted.append(token := int(logits.argmax()))
    finally:
        embedder.close()
    assert found == wanted


def test_it_is_loaded_for_the_first_answer_that_is_drafted(fitted: Path) -> None:
    settings = replace(ONE_THREAD, size="full")
    with closing(SessionConversation(Bundle(fitted), settings)) as conversation:
        assert "drafter" not in conversation.groups_loaded
        words = Bundle(fitted).manifest.text.text_ids
        request = AnswerRequest([2, 7, 9], Sampler(Sampling(), words), limit=4, stops=(), spans=(), speculative=True)
        assert len(tuple(conversation.answer(request))) == 4
        assert "drafter" in conversation.groups_loaded


def test_it_stays_on_disk_if_its_group_may_not_be_loaded(fitted: Path) -> None:
    found = []
    for groups in (None, ["text"], ["text", "drafter"]):
        with gemma_edge.load(fitted, groups=groups, threads=1, weight_cache="memory") as model:
            answer = model.generate("the cat", raw=True, max_tokens=4, speculative=True)
            found.append(("drafter" in model.groups_loaded, answer.token_ids))
    assert [loaded for loaded, _ in found] == [True, False, True]
    assert found[0][1] == found[1][1] == found[2][1]


def test_a_copy_without_its_group_is_drafted_by_look_up(fitted: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(fitted, tmp_path / "copy", ignore=shutil.ignore_patterns(DRAFTER, DRAFTER_TEXT))
    assert check_directory(copy) == []
    with Session(Bundle(copy), ONE_THREAD) as session, closing(DraftSources(session)) as sources:
        assert isinstance(sources.for_answer(), PromptLookup) and not sources.loaded


def test_a_size_that_it_was_not_fitted_to_is_drafted_by_look_up(fitted: Path) -> None:
    bundle = Bundle(fitted)
    with Session(bundle, ONE_THREAD) as session, closing(DraftSources(session)) as sources:
        manifest, group = bundle.manifest, bundle.manifest.groups["drafter"]
        assert manifest.drafter is not None
        for_another = replace(group, runtime=replace(manifest.drafter, size="small"))
        bundle.manifest = replace(manifest, groups={**manifest.groups, "drafter": for_another})
        assert isinstance(sources.for_answer(), PromptLookup) and not sources.loaded
        bundle.manifest = manifest
        assert sources.for_answer().propose([5, 6, 7, 5, 6], None, 1) == [7] and sources.loaded


@pytest.mark.slow
def test_an_export_has_it_with_what_it_needs_of_the_decoder(fitted: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    assert export_litertlm(fitted, path).groups == ("text", "drafter")
    assert check_litertlm(path) == []
    without = tmp_path / "without.litertlm"
    assert export_litertlm(fitted, without, ExportOptions(groups=("text",))).groups == ("text",)
    assert check_litertlm(without) == [] and without.stat().st_size < path.stat().st_size


@pytest.mark.full
def test_bundle_and_export_are_made_again(fitted: Path, random_checkpoint: Path, tmp_path: Path) -> None:
    export_litertlm(fitted, tmp_path / "model.litertlm")
    rebuild(tmp_path / "model.litertlm", random_checkpoint, tmp_path / "again.litertlm", drafting=EVEN_BAD)
    assert (tmp_path / "again.litertlm").read_bytes() == (tmp_path / "model.litertlm").read_bytes()


def test_a_drafter_needs_a_bundle_that_checks_drafts(random_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no signature verify.*--draft"):
        make_drafter(random_bundle, tmp_path, DrafterSettings())
    with pytest.raises(UsageError, match="at least 600"):
        DrafterSettings(tokens=10)


def test_one_that_does_not_pay_is_left_out(
    drafting_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = DrafterSettings(tokens=600, hidden_units=2)
    assert make_drafter(drafting_bundle, tmp_path, settings, how=Drafting(ONE_THREAD, least_accepted=4.0)) is None
    assert "no drafter: the model would accept" in caplog.text and not list(tmp_path.iterdir())


@pytest.mark.parametrize("groups", [None, ("text",), ("text", "drafter")])
def test_an_export_whose_own_does_not_pay_has_none(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: tuple[str, ...] | None
) -> None:
    monkeypatch.setattr("gemma_edge.api.export.drafter_for_export", lambda *_, **__: None)
    result = gemma_edge.export(fitted, tmp_path / "model.litertlm", groups=groups, drafter="fit")
    assert result.groups == ("text",) and check_litertlm(result.path) == []


def test_what_an_export_cannot_have_is_said_before_a_drafter_is_fitted(
    drafting_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("it was fitted first")

    monkeypatch.setattr("gemma_edge.api.export.drafter_for_export", too_late)
    with pytest.raises(BundleError, match="no group vison"):
        gemma_edge.export(drafting_bundle, tmp_path / "model.litertlm", groups=("text", "vison"), drafter="fit")
    with pytest.raises(BundleError, match="found huge"):
        gemma_edge.export(drafting_bundle, tmp_path / "model.litertlm", size="huge", drafter="fit")
    damaged = Path(shutil.copytree(drafting_bundle, tmp_path / "bundle"))
    (damaged / TOKENIZER).write_bytes((damaged / TOKENIZER).read_bytes() + b" ")
    with pytest.raises(BundleError, match=rf"{TOKENIZER}: found"):
        gemma_edge.export(damaged, tmp_path / "model.litertlm", drafter="fit")


@pytest.mark.parametrize("fault", ["size", "acceptance", "files"])
def test_a_manifest_that_contradicts_itself_is_refused(fitted: Path, tmp_path: Path, fault: str) -> None:
    manifest = read_manifest(fitted)
    group = manifest.groups["drafter"]
    assert manifest.drafter is not None
    changed = {
        "size": replace(group, runtime=replace(manifest.drafter, size="none")),
        "acceptance": replace(group, runtime=replace(manifest.drafter, acceptance=(0.5,))),
        "files": replace(group, files=(DRAFTER,), bytes=manifest.files[DRAFTER].bytes),
    }[fault]
    with pytest.raises(BundleError, match=f"groups drafter .*{fault}"):
        dump_manifest(replace(manifest, groups={**manifest.groups, "drafter": changed}))


def test_a_drafter_of_another_model_is_a_fault(fitted: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(fitted, tmp_path / "bundle"))
    text = replace(read_manifest(bundle).text, hidden_size=8)
    write_drafter(bundle / DRAFTER, random_drafter(8), text)
    places = " ".join(fault.fault for fault in check_directory(bundle))
    assert "signature draft input activations" in places
