"""A lock makes the same bytes again, whatever the threads and the seed of hashes, or the error says what differs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapter_files import noise, write_adapter
from checkpoints import TINY, random_tensors, write_checkpoint, write_tokenizer
from paths import EXAMPLE

import gemma_edge
from converters.convert import convert
from converters.request import ConvertRequest
from gemma_edge import cli
from toolkit.base.environment import ENVIRONMENT
from toolkit.base.errors import BundleError, CheckpointError, UsageError
from toolkit.bundle.lock import dump_lock, read_lock
from toolkit.check import check

RECIPE = {
    "format": "gemma-edge-recipe/1",
    "name": "own",
    "base": "int8",
    "rules": [{"match": "lm_head.weight", "dtype": "int4", "block_size": 32}],
}


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a bundle of its text in two sizes, and an export of one of them."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(EXAMPLE, folder / "checkpoint")
    options = ["--sizes", "large,small", "--groups", "text", "--context", "64", "--search", "absmax", "--no-verify"]
    convert_ = ["convert", str(folder / "checkpoint"), "-o", str(folder / "bundle"), "--quant", "int4", *options]
    assert cli.main([*convert_, "-q"]) == 0
    export = [
        "export",
        str(folder / "bundle"),
        "-o",
        str(folder / "model.litertlm"),
        "--size",
        "small",
        "--target",
        "gpu",
        "-q",
    ]
    assert cli.main(export) == 0
    return folder


def rebuild(source: Path, checkpoint: Path, output: Path) -> int:
    return cli.main(["rebuild", str(source), "--checkpoint", str(checkpoint), "-o", str(output), "-q"])


@pytest.mark.slow
def test_a_bundle_is_made_again_from_it_and_from_its_lock_alone(made: Path, tmp_path: Path) -> None:
    # Neither the checkpoint's name nor any path is part of a bundle.
    elsewhere = shutil.copytree(made / "checkpoint", tmp_path / "another name")
    lock = shutil.copy(made / "bundle" / "lock.json", tmp_path / "renamed.json")
    for i, source in enumerate([made / "bundle", lock]):
        assert rebuild(Path(source), Path(elsewhere), tmp_path / str(i)) == 0
        assert hashes(tmp_path / str(i)) == hashes(made / "bundle")


@pytest.mark.slow
def test_an_export_is_made_again_from_it(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.litertlm"
    assert rebuild(made / "model.litertlm", made / "checkpoint", again) == 0
    assert again.read_bytes() == (made / "model.litertlm").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.litertlm", "again.litertlm.environment.json"]


@pytest.mark.slow
def test_a_recipe_of_ones_own_and_a_slice_of_ones_own_are_in_the_lock(made: Path, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps(RECIPE))
    result = gemma_edge.convert(
        made / "checkpoint", tmp_path / "a", quant=tmp_path / "own.json", budget="1.0B", groups=["text"], context=64,
        prefill_sizes=[4, 8], shard_mb=1, verify=False,
    )  # fmt: skip
    os.remove(tmp_path / "own.json")
    gemma_edge.rebuild(tmp_path / "a", tmp_path / "b", checkpoint=made / "checkpoint")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert result.manifest.quant["text"].recipe == "own"


@pytest.mark.slow
def test_adapters_are_named_again_and_their_hashes_compared(made: Path, tmp_path: Path) -> None:
    for folder, seed in (("pirate", 1), ("other", 2)):
        factors = {}
        for layer in range(10):
            name = f"base_model.model.model.language_model.layers.{layer}.self_attn.q_proj"
            factors[f"{name}.lora_A.weight"] = noise(2, 256, seed=seed)
            factors[f"{name}.lora_B.weight"] = noise(256, 2, seed=seed)
        write_adapter(tmp_path / folder, factors)
    pirate, other = (f"{tmp_path / folder}=0.5" for folder in ("pirate", "other"))
    options: dict[str, Any] = {"groups": ["text"], "context": 64, "sizes": ["small"], "verify": False}
    gemma_edge.convert(made / "checkpoint", tmp_path / "a", adapters=[pirate], **options)
    for wrong, found in ((), "none"), ((other,), r"other=0\.5 with sha256 \w{16}\.\.\."):
        with pytest.raises(CheckpointError, match=rf"adapters: found {found}, wanted pirate=0\.5 with sha256"):
            gemma_edge.rebuild(tmp_path / "a", tmp_path / "b", checkpoint=made / "checkpoint", adapters=wrong)
    (tmp_path / "pirate").rename(tmp_path / "renamed")
    renamed = [f"{tmp_path / 'renamed'}=0.5"]
    gemma_edge.rebuild(tmp_path / "a", tmp_path / "b", checkpoint=made / "checkpoint", adapters=renamed)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


@pytest.mark.slow
def test_a_lock_says_nothing_of_this_machine(made: Path) -> None:
    text = (made / "bundle" / "lock.json").read_text()
    assert str(made) not in text and "numpy" not in text
    beside = json.loads(ENVIRONMENT.path(made / "bundle").read_text())
    assert {"python", "numpy", "zlib", "processor", "system"} < beside.keys() and str(made) not in str(beside)


@pytest.mark.slow
def test_another_checkpoint_is_named_before_anything_is_converted(made: Path, tmp_path: Path) -> None:
    tensors = random_tensors(TINY, dtype="float32")
    write_checkpoint(tmp_path / "other", TINY, tensors)
    write_tokenizer(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other, fingerprint: found \w{64}, wanted \w{64}, as the lock says"):
        gemma_edge.rebuild(made / "bundle", tmp_path / "again", checkpoint=tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.slow
def test_a_lock_of_another_version_is_refused(made: Path, tmp_path: Path) -> None:
    lock = replace(read_lock(made / "bundle"), generator="gemma-edge 9.9.9")
    (tmp_path / "lock.json").write_bytes(dump_lock(lock))
    with pytest.raises(UsageError, match=r"wanted gemma-edge 9\.9\.9, which the lock was made with; install that"):
        gemma_edge.rebuild(tmp_path / "lock.json", tmp_path / "again", checkpoint=made / "checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("is_alone", [True, False])
def test_what_differs_is_named_and_nothing_is_written(
    is_alone: bool, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = made / "checkpoint" / "tokenizer.json"
    changed = shutil.copytree(made / "checkpoint", tmp_path / "changed")
    (Path(changed) / "tokenizer.json").write_bytes(tokenizer.read_bytes() + b" ")
    beside = json.loads(ENVIRONMENT.path(made / "bundle").read_text())
    (tmp_path / "b").mkdir()
    lock = Path(shutil.copy(made / "bundle" / "lock.json", tmp_path / "b" / "lock.json"))
    ENVIRONMENT.path(lock if is_alone else lock.parent).write_text(json.dumps({**beside, "numpy": "1.0"}))
    assert rebuild(lock, Path(changed), tmp_path / "again") == 1
    said = capsys.readouterr().err
    assert "other bytes than the lock's in files tokenizer.json, manifest" in said
    assert "rebuild it where it was made: numpy 1.0, here" in said
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{}", "format"), (b"{", "JSON"), (b'{"format": "gemma-edge-lock/2"}', "wanted gemma-edge-lock/1")],
)
def test_what_is_no_lock_is_refused(made: Path, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "lock.json").write_bytes(content)
    with pytest.raises(BundleError, match=said):
        gemma_edge.rebuild(tmp_path / "lock.json", tmp_path / "again", checkpoint=made / "checkpoint")


@pytest.mark.slow
def test_a_lock_that_is_not_the_bundles_is_a_fault(made: Path, tmp_path: Path) -> None:
    lock = read_lock(made / "bundle")
    bundle = Path(shutil.copytree(made / "bundle", tmp_path / "bundle"))
    (bundle / "lock.json").write_bytes(dump_lock(replace(lock, files={**lock.files, "tokenizer.json": "0" * 64})))
    assert ("lock.json", "files tokenizer.json") in [(fault.file, fault.fault) for fault in check(bundle)]


def test_a_file_that_is_no_environment_is_not_replaced(made: Path, tmp_path: Path) -> None:
    (tmp_path / "b.environment.json").write_text("mine")
    with pytest.raises(UsageError, match=r"b\.environment\.json"):
        gemma_edge.convert(made / "checkpoint", tmp_path / "b", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["b.environment.json"]


@pytest.mark.full
def test_threads_do_not_change_bytes(made: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        wanted = ConvertRequest(
            made / "checkpoint",
            tmp_path / str(workers),
            {"text": "int4"},
            groups=("text",),
            context=64,
            workers=workers,
        )
        convert(wanted, gate=None)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "3")


def _interpreters() -> list[str]:
    """This Python twice, and those that GEMMA_EDGE_PYTHONS names, which must have this package too."""
    return [sys.executable, *os.environ.get("GEMMA_EDGE_PYTHONS", "").split()]


@pytest.mark.full
def test_hash_seeds_and_versions_of_python_do_not_change_bytes(tmp_path: Path) -> None:
    found = []
    for i, python in enumerate(_interpreters()):
        for seed in ("0", "1"):
            bundle, export = tmp_path / f"{i}-{seed}", tmp_path / f"{i}-{seed}.litertlm"
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            for words in (
                ["convert", str(EXAMPLE), "-o", str(bundle), "--quant", "int4", "--context", "64", "--no-verify", "-q"],
                ["export", str(bundle), "-o", str(export), "-q"],
            ):
                subprocess.run([python, "-m", "gemma_edge", *words], check=True, env=environment, cwd=tmp_path)
            found.append({**hashes(bundle), "export": hashlib.sha256(export.read_bytes()).hexdigest()})
    assert all(one == found[0] for one in found)
