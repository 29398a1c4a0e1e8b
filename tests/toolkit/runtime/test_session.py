"""A session against the NumPy reference: prefill, decode, rewinding, sizes, limits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from bundles import OneTable
from numpy.typing import NDArray

from converters.gemma3n import reference
from converters.gemma3n.family import open_gemma3n
from converters.gemma3n.sizes.matformer import SlicedCheckpoint
from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.ple_shards import read_header, shard_name
from toolkit.bundle.ple_writer import write_ple_shards
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

TOLERANCE = 1e-4
IDS = [2, *np.random.default_rng(5).integers(0, 300, 39).tolist()]


@pytest.fixture(scope="module")
def shared(random_bundle: Path) -> Iterator[Session]:
    with Session(Bundle(random_bundle), SessionSettings(threads=1, weight_cache="memory")) as session:
        yield session


@pytest.fixture
def session(shared: Session) -> Session:
    shared.use("full")
    shared.truncate(0)
    return shared


@pytest.fixture(scope="module")
def expected(random_checkpoint: Path) -> dict[str, NDArray[np.float32]]:
    """Logits after each of IDS, for each size."""
    with open_gemma3n(random_checkpoint) as checkpoint:
        return {
            name: reference.forward(SlicedCheckpoint(checkpoint, checkpoint.slices[name]), [np.array(IDS, np.int32)])[0]
            for name in ("full", "small")
        }


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 16, 17, 18, 20, 21, 36, 37, 38, 39, 40])
def test_a_prompt_of_any_length_gives_the_references_logits(
    session: Session, expected: dict[str, NDArray[np.float32]], length: int
) -> None:
    assert_close(session.feed(IDS[:length]), expected["full"][length - 1])
    assert session.position == length


@pytest.mark.parametrize("size", ["full", "small"])
def test_every_size_gives_its_own_references_logits(
    session: Session, expected: dict[str, NDArray[np.float32]], size: str
) -> None:
    session.use(size)
    first, rows = session.logits_for(IDS)
    assert (first, rows.shape) == (20, (20, 300))
    assert_close(rows, expected[size][20:])


def test_logits_in_pieces_equal_logits_at_once(session: Session, expected: dict[str, NDArray[np.float32]]) -> None:
    session.feed(IDS[:7])
    session.prefill(IDS[7:12])
    assert_close(session.decode(IDS[12]), expected["full"][12])
    assert_close(session.feed(IDS[13:31]), expected["full"][30])


def test_a_forgotten_continuation_leaves_no_trace(session: Session, expected: dict[str, NDArray[np.float32]]) -> None:
    session.feed([*IDS[:10], *range(100, 106)])
    assert session.rewind_to(IDS[:30]) == 10
    assert_close(session.feed(IDS[10:30]), expected["full"][29])
    # So far back the caches of the sliding windows may not reach: then everything is computed again.
    kept = session.rewind_to(IDS[:3])
    assert kept in (0, 2)
    assert_close(session.feed(IDS[kept:3]), expected["full"][2])


def test_a_conversation_goes_on_in_another_size(session: Session) -> None:
    """Against a session that takes every token in one by one: the caches are shared, whoever wrote them."""
    session.use("small")
    session.prefill(IDS[:20])
    session.use("full")
    mixed = session.feed(IDS[20:24])
    session.truncate(0)
    session.use("small")
    for token in IDS[:20]:
        session.decode(token)
    session.use("full")
    for token in IDS[20:24]:
        single = session.decode(token)
    assert_close(mixed, single)


def test_weights_packed_by_signature_or_shared_give_equal_logits(session: Session, random_bundle: Path) -> None:
    wanted = session.feed(IDS[:20])
    with Session(Bundle(random_bundle), SessionSettings(threads=2, weight_cache="off")) as other:
        np.testing.assert_array_equal(other.feed(IDS[:20]), wanted)


@pytest.mark.parametrize("length", [1, 3, 17, 40])
def test_one_row_of_per_layer_embeddings_is_looked_up_for_each_token_and_none_for_padding(
    session: Session, length: int
) -> None:
    before = session.ple.statistics.rows
    session.feed(IDS[:length])
    assert session.ple.statistics.rows - before == length


def test_all_rows_of_a_prompt_are_asked_for_before_the_first_of_them_is_needed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []
    monkeypatch.setattr(session.ple, "prefetch", lambda ids: calls.append([session.position, *ids]))
    session.prefill(IDS)
    session.truncate(0)
    session.rewind_to(IDS[:9])
    session.prefill(IDS[:8])
    assert calls == [[0, *IDS], [0, *IDS[:8]]]


@pytest.mark.parametrize("ids", [[300], [-1], [5, 2**31]])
def test_ids_outside_the_vocabulary_are_refused_before_any_work(session: Session, ids: Sequence[int]) -> None:
    with pytest.raises(UsageError, match="token id"):
        session.feed(ids)
    assert session.position == 0


def test_a_conversation_longer_than_the_context_is_refused_before_any_work(session: Session) -> None:
    with pytest.raises(UsageError, match="found 41 tokens, wanted at most 40"):
        session.feed([*IDS, 5])
    assert session.position == 0
    session.feed(IDS)
    with pytest.raises(UsageError, match="context"):
        session.decode(5)
    assert session.ids == tuple(IDS)


def test_an_empty_prompt_and_a_position_ahead_are_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        session.feed([])
    with pytest.raises(UsageError, match="position"):
        session.truncate(1)
    for threads in (0, 1025, 3_000_000_000):
        with pytest.raises(UsageError, match=f"threads: found {threads}, wanted a number from 1 to 1024"):
            SessionSettings(threads=threads)


def test_an_unknown_size_is_refused_with_the_known_ones(session: Session, random_bundle: Path) -> None:
    with pytest.raises(BundleError, match="full or small"):
        session.use("E4B")
    assert session.size == "full"
    with pytest.raises(BundleError, match="full or small"):
        Session(Bundle(random_bundle), SessionSettings(size="E4B"))


@pytest.mark.parametrize("place", [0, -1])
def test_a_file_that_is_not_the_manifests_is_refused(random_bundle: Path, tmp_path: Path, place: int) -> None:
    """Its packed weights would be taken from the cache of the file that the manifest describes."""
    shutil.copytree(random_bundle, tmp_path / "b")
    data = bytearray((tmp_path / "b" / "text_decoder.tflite").read_bytes())
    data[place] ^= 1
    (tmp_path / "b" / "text_decoder.tflite").write_bytes(data)
    with pytest.raises(BundleError, match=r"text_decoder\.tflite, chunk 0"):
        Session(Bundle(tmp_path / "b"))
    (tmp_path / "b" / "text_decoder.tflite").write_bytes(data[:-1])
    with pytest.raises(BundleError, match="bytes"):
        Session(Bundle(tmp_path / "b"))
    (tmp_path / "b" / "text_decoder.tflite").unlink()
    with pytest.raises(BundleError, match=r"text_decoder\.tflite"):
        Session(Bundle(tmp_path / "b"))


@pytest.mark.parametrize("in_ram", [False, True])
def test_a_shard_of_another_conversion_is_refused(random_bundle: Path, tmp_path: Path, *, in_ram: bool) -> None:
    """Every checksum in it is right, and every embedding wrong."""
    shutil.copytree(random_bundle, tmp_path / "b")
    shard = tmp_path / "b" / shard_name(0)
    layout = read_header(shard).layout
    other = np.random.default_rng(1).standard_normal((layout.vocab_size, layout.layers * layout.width))
    write_ple_shards(shard.parent, OneTable(other.astype(np.float32)), "table", layout)
    with pytest.raises(BundleError, match=r"ple_00000\.bin, chunk 0"):
        Session(Bundle(tmp_path / "b"), SessionSettings(ple_in_ram=in_ram))


def test_a_file_in_place_of_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.litertlm").write_bytes(b"LITERTLM")
    with pytest.raises(BundleError, match="found a file"):
        Bundle(tmp_path / "x.litertlm")


def test_text_is_answered_without_a_quantiser_and_without_libraries_of_images_and_sounds(random_bundle: Path) -> None:
    program = (
        "import sys; from toolkit.runtime.bundle import Bundle; from toolkit.runtime.session import Session; "
        "Session(Bundle(sys.argv[1])).decode(2); "
        "print([name for name in ('PIL', 'soundfile', 'soxr', 'toolkit.quant.stream') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(random_bundle)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
