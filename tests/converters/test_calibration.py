"""A calibrated bundle: same bytes for any threads, after an interrupt, and from its lock; errors before the work."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, random_tensors, write_checkpoint
from toy_family import TOY, write_toy_checkpoint

from converters.calibration.budget import MixPlan
from converters.calibration.calibrate import is_work_of, mark_work, restore_text, sequences_of, work_directory
from converters.calibration.own_text import text_written_by
from converters.calibration.rounding import Rounding, decoder_pieces, pieces_of
from converters.calibration.text import (
    CalibrationChoice,
    CalibrationText,
    built_in_calibration_text,
    calibration_file,
    dump_calibration_text,
    locked_calibration_text,
    read_calibration_text,
    write_calibration_text,
)
from converters.calibration.towers import media_directory
from converters.convert import convert
from converters.families import open_checkpoint
from converters.family import Checkpoint, Family
from converters.gemma3n.family import GEMMA3N
from converters.plan import GraphFiles, PlanRequest
from converters.rebuild import rebuild
from converters.request import ConvertRequest
from converters.verify import built_in_text
from toolkit.base.environment import ENVIRONMENT, environment_differences, libraries, write_environment
from toolkit.base.errors import QualityError, UsageError
from toolkit.base.outputs import Output
from toolkit.bundle.lock import LockedMedia, read_lock
from toolkit.bundle.manifest import EMBEDDER, TEXT_DECODER
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.write import BUNDLE
from toolkit.check import check
from toolkit.quant.recipe import Rule
from toolkit.quant.scheme import Scheme

FAMILIES: tuple[Family, ...] = (GEMMA3N, TOY)
TEXT = CalibrationText(built_in_calibration_text().text[:3000])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("toy") / "checkpoint", tokenizer_json)


def request(checkpoint: Path, output: Path) -> ConvertRequest:
    return ConvertRequest(checkpoint, output, context=64, prefill_sizes=(4,), calibration=TEXT)


def plan_request(checkpoint: Checkpoint) -> PlanRequest:
    return PlanRequest((checkpoint.default_slice,), checkpoint.recipes({}, ()), (), 64, (4,), 1 << 20, ())


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "bundle"
    convert(request(checkpoint, path), families=FAMILIES, gate=None)
    return path


@pytest.mark.slow
def test_the_decoder_alone_differs_and_the_lock_names_the_text(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    convert(replace(request(checkpoint, plain), calibration=None), families=FAMILIES, gate=None)
    one, other = hashes(bundle), hashes(plain)
    assert one[TEXT_DECODER] != other[TEXT_DECODER] and one[EMBEDDER] == other[EMBEDDER]
    assert read_lock(bundle).calibration == TEXT.sha256 and read_lock(plain).calibration is None
    assert (bundle / TEXT_DECODER).stat().st_size == (plain / TEXT_DECODER).stat().st_size
    assert check(bundle) == []


@pytest.mark.slow
def test_bytes_do_not_depend_on_threads(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    convert(replace(request(checkpoint, tmp_path / "b"), workers=5), families=FAMILIES, gate=None)
    assert hashes(tmp_path / "b") == hashes(bundle)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    wanted, work = request(checkpoint, tmp_path / "b"), work_directory(tmp_path / "b")

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(wanted, families=FAMILIES, gate=None, calibration_progress=interrupt)
    assert not (tmp_path / "b").exists()
    before = {path: path.stat().st_mtime_ns for path in work.glob("*.rows.npy")}
    assert len(before) > 5
    seen: list[dict[Path, int]] = []

    def look(done: int, total: int) -> None:
        seen.append({path: path.stat().st_mtime_ns for path in before})
        assert done <= total

    convert(wanted, families=FAMILIES, gate=None, calibration_progress=look)
    assert seen and all(times == before for times in seen), "what was rounded is not rounded again"
    assert hashes(tmp_path / "b") == hashes(bundle)
    assert not work.exists()


@pytest.mark.slow
def test_work_for_a_bundle_that_is_rejected_is_removed(checkpoint: Path, tmp_path: Path) -> None:
    def reject(directory: Path) -> None:
        raise QualityError(found="other bytes")

    media_directory(tmp_path / "b").mkdir()
    with pytest.raises(QualityError, match="other bytes"):
        convert(request(checkpoint, tmp_path / "b"), families=FAMILIES, gate=None, accept=reject)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_another_calibration_left_is_not_used(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    other = replace(request(checkpoint, tmp_path / "b"), calibration=built_in_calibration_text())
    with pytest.raises(KeyboardInterrupt):
        convert(other, families=FAMILIES, gate=None, calibration_progress=interrupt)
    convert(request(checkpoint, tmp_path / "b"), families=FAMILIES, gate=None)
    assert hashes(tmp_path / "b") == hashes(bundle)


def test_work_for_another_tokenizer_is_not_used(checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    other = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    work = work_directory(tmp_path / "b")
    keys = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            convert(request(other, tmp_path / "b"), families=FAMILIES, gate=None, calibration_progress=interrupt)
        keys.append((work / "key").read_text())
        tokenizer = json.loads((other / "tokenizer.json").read_text())
        tokenizer["normalizer"] = {"type": "Lowercase"}
        (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("library", libraries())
def test_work_of_other_versions_is_not_used_and_the_environment_names_them(
    library: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, output = read_lock(bundle), Output(tmp_path / "b", BUNDLE)
    towers = replace(text, calibration_media=LockedMedia("0" * 64, 1, 1))
    for name, lock in (("text", text), ("towers", towers)):
        (tmp_path / name).mkdir()
        mark_work(tmp_path / name, lock)
        assert is_work_of(tmp_path / name, lock)
    write_environment(output)
    assert environment_differences(output.path) == []
    older = {**libraries(), library: "0.1"}
    monkeypatch.setattr("converters.calibration.calibrate.libraries", lambda: older)
    monkeypatch.setattr("toolkit.base.environment.libraries", lambda: older)
    assert not is_work_of(tmp_path / "towers", towers)
    decodes_media = library in ("pillow", "soundfile", "soxr")
    assert is_work_of(tmp_path / "text", text) == decodes_media, "a text needs no decoder"
    assert environment_differences(output.path) == [f"{library} {ENVIRONMENT.read(output.path)[library]}, here 0.1"]


@pytest.mark.slow
def test_a_lock_makes_the_same_bytes_again_with_the_text(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(bundle, tmp_path / "alone"))
    with pytest.raises(UsageError, match="a text other than the built-in one"):
        rebuild(alone, checkpoint, tmp_path / "none", families=FAMILIES)
    page = tmp_path / "page.txt"
    page.write_text(TEXT.text, encoding="utf-8")
    rebuild(alone, checkpoint, tmp_path / "given", calibration=page, families=FAMILIES)
    assert hashes(tmp_path / "given") == hashes(bundle)
    page.write_text(TEXT.text + "x", encoding="utf-8")
    with pytest.raises(UsageError, match="as the lock says"):
        rebuild(alone, checkpoint, tmp_path / "other", calibration=page, families=FAMILIES)


@pytest.mark.slow
def test_the_text_is_found_beside_the_bundle(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert rebuild(bundle, checkpoint, tmp_path / "again", families=FAMILIES).calibration == TEXT
    assert hashes(tmp_path / "again") == hashes(bundle)
    assert read_calibration_text(calibration_file(tmp_path / "again")) == TEXT


def test_a_bundle_whose_work_cannot_be_looked_for_has_none(tmp_path: Path) -> None:
    restore_text(tmp_path / ("b" * 250))


@pytest.mark.slow
def test_a_kill_between_the_bundle_and_its_text_loses_neither(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    made = tmp_path / "b"
    wanted = replace(request(checkpoint, made), workers=1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("converters.convert.write_calibration_text", killed)
        convert(wanted, families=FAMILIES, gate=None)
    assert read_lock(made).calibration == TEXT.sha256 and not calibration_file(made).exists()
    left = Path(shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-left"))) / "b"
    monkeypatch.chdir(left)
    assert rebuild(Path(), checkpoint, tmp_path / "again", families=FAMILIES).calibration == TEXT
    assert read_calibration_text(calibration_file(left)) == TEXT
    other = replace(wanted, calibration=CalibrationText(TEXT.text[:1500]))
    with pytest.raises(KeyboardInterrupt):
        convert(other, families=FAMILIES, gate=None, calibration_progress=killed)
    assert read_calibration_text(calibration_file(made)) == TEXT


@pytest.mark.parametrize("source", [".", "lock.json", "../b", "../b/lock.json", "inner/..", "../../b/lock.json"])
def test_the_text_beside_a_bundle_is_found_from_inside_it(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "b"
    (bundle / "inner").mkdir(parents=True)
    monkeypatch.chdir(bundle / "inner" if source.startswith("../..") else bundle)
    with pytest.raises(UsageError, match=r"or put it where convert wrote it: .*b\.calibration\.json"):
        locked_calibration_text(TEXT.sha256, Path(source), None)
    calibration_file(bundle).write_bytes(dump_calibration_text(TEXT))
    assert locked_calibration_text(TEXT.sha256, Path(source), None) == TEXT


@pytest.mark.slow
def test_every_quantised_matrix_of_every_size_is_rounded(tmp_path: Path, tokenizer_json: Path) -> None:
    source = write_checkpoint(tmp_path / "c", TINY, random_tensors(TINY, dtype="float32"))
    (source / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    with open_checkpoint(source) as opened:
        whole = opened.default_slice
        narrow = replace(whole, name="narrow", ffn_sizes=tuple(size // 2 for size in whole.ffn_sizes))
        seen: list[tuple[int, int]] = []
        wanted = ConvertRequest(
            opened, tmp_path / "b", sizes=(whole, narrow), context=64, prefill_sizes=(4,), calibration=TEXT
        )
        result = convert(wanted, gate=None, calibration_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1], "each piece once, and all of them"
    assert list(result.manifest.sizes) == [whole.name, "narrow"]


def test_pieces_cover_the_decoders_matrices_alone(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint, FAMILIES) as opened:
        plan = opened.plan(plan_request(opened))
    files = next(item for item in plan.files if isinstance(item, GraphFiles))
    pieces = pieces_of(files.layouts[TEXT_DECODER], files.source.shape)
    assert "head" in pieces and "embed" not in pieces
    assert pieces["layers.0.up"][0].codes == 64 * 32


def test_what_is_computed_from_several_tensors_is_not_calibrated(random_checkpoint: Path) -> None:
    with open_checkpoint(random_checkpoint) as opened:
        text = opened.recipes({}, ())["text"].changed("own", [Rule("layers.*.altup.router.weight", Scheme("int8"))])
        plan = opened.plan(replace(plan_request(opened), recipes=opened.recipes({"text": text}, ())))
    pieces = decoder_pieces(plan)
    assert "layers.0.laurel.linear_left.weight" in pieces and "layers.0.altup.router.weight" not in pieces
    assert MixPlan.of(plan).shapes.keys() == {piece.weight for some in pieces.values() for piece in some}


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"\xff\xfe\xff", "not text"), (b" \n", "no text"), (b"a few words", "11 tokens|3 tokens|tokens")],
)
def test_a_text_that_cannot_be_used_is_said_at_once(checkpoint: Path, tmp_path: Path, data: bytes, found: str) -> None:
    (tmp_path / "page.txt").write_bytes(data)
    with pytest.raises(UsageError, match=found):
        text = read_calibration_text(tmp_path / "page.txt")
        convert(replace(request(checkpoint, tmp_path / "b"), calibration=text), families=FAMILIES, gate=None)
    assert not (tmp_path / "b").exists() and not work_directory(tmp_path / "b").exists()


def test_a_float_recipe_and_a_search_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    wanted = request(checkpoint, tmp_path / "b")
    with pytest.raises(UsageError, match="without quantised matrices"):
        convert(replace(wanted, recipes={"text": "f32"}), families=FAMILIES, gate=None)
    with pytest.raises(UsageError, match="calibration chooses scales"):
        convert(replace(wanted, search="absmax"), families=FAMILIES, gate=None)


@pytest.mark.parametrize("choice", ["self", CalibrationText("a few words")])
def test_what_cannot_be_calibrated_is_said_before_a_weight_is_read(
    choice: CalibrationChoice, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("begun")

    monkeypatch.setattr("converters.convert._own_text", never)
    monkeypatch.setattr("converters.convert.TowerCalibration", never)
    monkeypatch.setattr("converters.convert._calibrated", never)
    recipe = "f32" if choice == "self" else "int8"
    wanted = replace(request(checkpoint, tmp_path / "b"), calibration=choice, recipes={"text": recipe})
    with pytest.raises(UsageError, match=r"without quantised matrices|tokens, wanted at least"):
        convert(wanted, families=FAMILIES, gate=None)


def test_a_file_that_is_not_ours_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    calibration_file(tmp_path / "b").write_text("mine")
    with pytest.raises(UsageError, match="something other than a calibration text"):
        write_calibration_text(request(checkpoint, tmp_path / "b").bundle_output(), TEXT)
    assert calibration_file(tmp_path / "b").read_text() == "mine"


@pytest.mark.slow
def test_a_rebuild_asks_for_the_place_of_its_text_before_it_works(
    bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    page, again = tmp_path / "page.txt", tmp_path / "again"
    page.write_text(TEXT.text, encoding="utf-8")
    calibration_file(again).write_text("mine")
    with pytest.raises(UsageError, match="something other than a calibration text"):
        rebuild(bundle, checkpoint, again, calibration=page, families=FAMILIES)
    assert not again.exists() and calibration_file(again).read_text() == "mine"


@pytest.mark.slow
def test_a_model_writes_its_own_text_which_an_interrupted_run_keeps(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[CalibrationText] = []

    def write(path: Path, **options: Any) -> CalibrationText:
        assert check(path) == [], "a whole bundle writes it"
        written.append(text_written_by(path, tokens=900, **options))
        return written[-1]

    def interrupt(done: int, total: int) -> None:
        if written:
            raise KeyboardInterrupt

    monkeypatch.setattr("converters.convert.text_written_by", write)
    wanted = replace(request(checkpoint, tmp_path / "b"), calibration="self")
    with pytest.raises(KeyboardInterrupt):
        convert(wanted, families=FAMILIES, gate=None, calibration_progress=interrupt)
    result = convert(wanted, families=FAMILIES, gate=None)
    assert len(written) == 1 and result.calibration == written[0]
    assert read_lock(tmp_path / "b").calibration == written[0].sha256
    assert read_calibration_text(calibration_file(tmp_path / "b")) == written[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "b.calibration.json"], "the writer is gone"
    again = replace(wanted, output=tmp_path / "again", calibration=result.calibration)
    convert(again, families=FAMILIES, gate=None)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "b")


def test_the_built_in_text_is_not_that_of_the_gate() -> None:
    ours = {line for line in built_in_calibration_text().text.splitlines() if len(line) > 40}
    assert len(ours) > 40 and not ours & set(built_in_text().splitlines())


def test_sequences_are_spread_over_a_long_text(checkpoint: Path) -> None:
    tokenizer = Tokenizer(checkpoint / "tokenizer.json")
    sequences = sequences_of(CalibrationText("a" * 20000 + "b" * 20000), tokenizer, 2)
    assert [len(sequence) for sequence in sequences] == [512] * 16
    assert all(sequence[0] == 2 for sequence in sequences)
    assert len(np.unique(sequences[0])) <= 3 and sequences[0][5] != sequences[-1][5]


def test_inputs_are_measured_once_though_others_come_in_between() -> None:
    first, between = np.random.default_rng(0).standard_normal((2, 40, 16), np.float32)
    with ThreadPoolExecutor(2) as pool:
        rounding = Rounding(pool)
        measured = rounding.measure(first, (0, 16), (20, 40), (0, 20))
        other = rounding.measure(between, (0, 16), (20, 40), (0, 20))
        assert rounding.measure(first, (0, 16), (20, 40), (0, 20)) is measured
        assert other is not measured


def test_of_wide_inputs_those_of_one_matrix_are_kept() -> None:
    wide, narrow = np.ones((4, 2056), np.float32), np.ones((4, 8), np.float32)
    with ThreadPoolExecutor(2) as pool:
        rounding = Rounding(pool)
        measured = rounding.measure(narrow, (0, 8), (0, 4))
        rounding.measure(wide, (0, 2056), (0, 4))
        assert rounding.measure(narrow, (0, 8), (0, 4)) is not measured
