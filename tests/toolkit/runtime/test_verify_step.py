"""A verify step computes for several tokens what decode steps compute for each in turn, to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.bundle.check import check_directory
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.signatures import bundle_signatures, shapes_of, signature_faults
from toolkit.litertlm.check import check_litertlm
from toolkit.litertlm.export import export_litertlm
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings
from toolkit.tflite.reader import read_tflite

DRAFTS = 3
F32 = NDArray[np.float32]


def tokens(count: int, seed: int = 0) -> list[int]:
    return [2, *np.random.default_rng(seed).integers(10, 288, count - 1).tolist()]


def by_decoding(session: Session, ids: Sequence[int]) -> list[tuple[F32, F32]]:
    """Logits and activations of each token, by decode steps."""
    return [(session.decode(token), session.activations()[0]) for token in ids]


def cached(session: Session) -> dict[str, F32]:
    return {name: buffer.read().copy() for name, buffer in session._caches.buffers.items()}


@pytest.fixture(scope="module")
def session(drafting_bundle: Path) -> Iterator[Session]:
    with Session(Bundle(drafting_bundle), SessionSettings(threads=1, weight_cache="memory")) as opened:
        yield opened


@pytest.mark.parametrize("size", ["full", "small"])
# From the first position on; in the middle; where it wraps around the rings' 20 rows; up to the end of the context.
@pytest.mark.parametrize("before", [1, 9, 18, 59, 116])
def test_rows_and_caches_are_those_of_decode_steps(session: Session, size: str, before: int) -> None:
    session.use(size)
    session.truncate(0)
    ids = tokens(before + DRAFTS + 1)
    session.prefill(ids[:before])
    expected, caches = by_decoding(session, ids[before:]), cached(session)
    session.truncate(before)
    logits, activations = session.verify(ids[before:]), session.activations()
    assert logits.shape == (DRAFTS + 1, 300) and session.ids == tuple(ids)
    for row, (wanted, hidden) in enumerate(expected):
        assert (logits[row] == wanted).all() and (activations[row] == hidden).all()
    for name, found in cached(session).items():
        np.testing.assert_array_equal(found, caches[name])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_step_may_check_fewer_drafts_than_it_holds(session: Session, count: int) -> None:
    session.use("full")
    session.truncate(0)
    ids = tokens(40 + count)
    session.prefill(ids[:40])
    expected = by_decoding(session, ids[40:])
    session.truncate(40)
    logits = session.verify(ids[40:])
    assert logits.shape == (count, 300) and session.activations().shape == (count, 32)
    assert all((row == wanted).all() for row, (wanted, _) in zip(logits, expected, strict=True))


def test_what_was_refused_leaves_no_trace(session: Session) -> None:
    session.use("full")
    session.truncate(0)
    ids = tokens(42)
    session.prefill(ids[:30])
    expected = by_decoding(session, ids[30:])
    session.truncate(30)
    for at in range(30, 42):
        logits = session.verify([ids[at], *tokens(DRAFTS, seed=at)])
        session.truncate(at + 1)
        assert (logits[0] == expected[at - 30][0]).all()
    assert session.ids == tuple(ids)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int4", pytest.param("f32", marks=pytest.mark.full)])
def test_contexts_with_signatures_of_their_own_have_a_verify_too(tmp_path: Path, quant: str) -> None:
    path = tmp_path / "bundle"
    request = ConvertRequest(EXAMPLE, path, {"text": quant}, groups=("text",), context=2048, draft_tokens=DRAFTS)
    convert(replace(request, sizes=("small",)), gate=None)
    with Session(Bundle(path), SessionSettings(threads=1, weight_cache="memory")) as session:
        assert session.text.context_buckets == (512,)
        for before in (200, 508, 509, 700):
            session.truncate(0)
            ids = tokens(before + DRAFTS + 1, seed=before)
            session.prefill(ids[:before])
            expected = by_decoding(session, ids[before:])
            session.truncate(before)
            logits = session.verify(ids[before:])
            assert all((row == wanted).all() for row, (wanted, _) in zip(logits, expected, strict=True)), before


@pytest.mark.full
def test_the_bundle_and_its_export_have_no_faults(drafting_bundle: Path, tmp_path: Path) -> None:
    assert read_manifest(drafting_bundle).text.draft_tokens == DRAFTS
    assert check_directory(drafting_bundle) == []
    export_litertlm(drafting_bundle, tmp_path / "model.litertlm")
    assert check_litertlm(tmp_path / "model.litertlm") == []


def test_a_decoder_without_these_signatures_is_a_fault(drafting_bundle: Path, random_bundle: Path) -> None:
    wanted = bundle_signatures(read_manifest(drafting_bundle))["text_decoder.tflite"]
    faults = signature_faults("f", shapes_of(read_tflite(random_bundle / "text_decoder.tflite")), wanted)
    named = {fault.fault for fault in faults if fault.found in ("missing", "nothing")}
    assert {"signature verify", "signature small_verify", "signature decode output activations"} <= named
