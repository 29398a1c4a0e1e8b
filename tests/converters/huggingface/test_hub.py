"""Checkpoints and adapters on the Hub, against a server that speaks its protocol: looks, downloads, cuts, refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import noise, write_adapter
from checkpoints import TINY, TINY_MULTIMODAL, random_tensors, write_checkpoint, write_tokenizer
from hub_server import COMMIT, OLD_COMMIT, HubServer
from numpy.typing import NDArray
from towers import write_multimodal_checkpoint

import gemma_edge
from converters.convert import convert
from converters.families import open_checkpoint, open_headers
from converters.huggingface.adapters.choice import AdapterChoice
from converters.huggingface.hub.ranges import _FIRST_READ_BYTES
from converters.request import ConvertRequest
from gemma_edge import cli
from toolkit.base.errors import CheckpointError, EnvironmentFault, SliceError, ToolkitError, UsageError

ID = "someone/gemma-3n-tiny"
NO_TEMPLATE = "has no chat template"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, and files that no conversion needs."""
    tensors = random_tensors(TINY, dtype="float32")
    names = sorted(tensors)
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    write_checkpoint(folder, TINY, tensors, shards=[names[::2], names[1::2]])
    write_tokenizer(folder)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "tiny-Q4.gguf"):
        (folder / name).write_bytes(b"x" * 100_000)
    return folder


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with HubServer() as server:
        server.publish(ID, checkpoint)
        server.use(monkeypatch, tmp_path / "cache")
        yield server


def shard_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("model-*.safetensors"))


def first_look(checkpoint: Path) -> int:
    """What is read of files for their headers."""
    return sum(min(_FIRST_READ_BYTES, path.stat().st_size) for path in checkpoint.glob("model-*.safetensors"))


def parts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.gemma-edge-part"))


def test_inspect_downloads_headers_alone(hub: HubServer, checkpoint: Path) -> None:
    found = gemma_edge.inspect(ID)
    assert found == gemma_edge.inspect(checkpoint)
    assert sum(hub.sent.values()) == first_look(checkpoint) < shard_bytes(checkpoint)
    assert not any(name in request for request in hub.requests for name in (".bin", ".gguf", "consolidated", "README"))


def test_tensors_can_be_read_by_ranges_of_which_empty_ones_ask_for_nothing(hub: HubServer, checkpoint: Path) -> None:
    name = "layers.1.mlp.up_proj.weight"
    with open_headers(ID) as remote, open_checkpoint(checkpoint) as local:
        for part in (None, (3, 9), (3, 3)):
            asked = len(hub.requests)
            np.testing.assert_array_equal(remote.read(name, part), local.read(name, part))  # type: ignore[attr-defined]
            assert (len(hub.requests) == asked) == (part == (3, 3))


def test_a_conversion_downloads_what_it_reads_once(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def request(source: str | Path, place: str) -> ConvertRequest:
        return ConvertRequest(source, tmp_path / place, context=32, groups=("text",))

    convert(request(ID, "a"), gate=None, download_progress=lambda *done: told.append(done))
    assert told[-1] == (shard_bytes(checkpoint),) * 2
    sent = dict(hub.sent)
    convert(request(ID, "b"), gate=None)
    convert(request(checkpoint, "c"), gate=None)
    assert hub.sent == sent and set(sent) == {path.name for path in checkpoint.glob("model-*.safetensors")}
    names = [json.loads((tmp_path / place / "manifest.json").read_text())["checkpoint"]["name"] for place in "abc"]
    assert names == [f"{ID}@{COMMIT}", f"{ID}@{COMMIT}", "tiny"]
    for place in "bc":
        assert (tmp_path / "a" / "text_decoder.tflite").read_bytes() == (
            tmp_path / place / "text_decoder.tflite"
        ).read_bytes()


@pytest.mark.slow
def test_what_was_made_from_it_is_rebuilt_from_it_and_the_download_is_shown(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    made = convert(ConvertRequest(checkpoint, tmp_path / "made", context=32, groups=("text",)), gate=None).path
    told: list[tuple[int, int]] = []
    gemma_edge.rebuild(made, tmp_path / "again", checkpoint=ID, download_progress=lambda *done: told.append(done))
    assert told[-1] == (shard_bytes(checkpoint),) * 2
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (made / "manifest.json").read_bytes()


def test_what_it_cannot_have_made_is_said_before_its_weights_are_downloaded(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    narrow = {**TINY, "intermediate_size": [40] * 7}
    other = write_checkpoint(tmp_path / "other", narrow, random_tensors(narrow, dtype="float32"))
    write_tokenizer(other)
    made = convert(ConvertRequest(checkpoint, tmp_path / "made", context=32, groups=("text",)), gate=None).path
    hub.publish(ID, other)
    for read in (
        lambda: gemma_edge.rebuild(made, tmp_path / "again", checkpoint=ID),
        lambda: gemma_edge.verify(made, ID),
    ):
        with pytest.raises(SliceError):
            read()
    assert list(hub.sent.values()) == [2 * _FIRST_READ_BYTES] and not parts(tmp_path)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: HubServer, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "old", TINY, random_tensors(TINY, dtype="float32", seed=1))
    write_tokenizer(other)
    hub.publish(ID, other, OLD_COMMIT)
    expected = {"": COMMIT, "@main": COMMIT, "@v1": OLD_COMMIT, f"@{OLD_COMMIT}": OLD_COMMIT}
    for revision, commit in expected.items():
        with open_headers(ID + revision) as found:
            assert found.name == f"{ID}@{commit}"
    assert gemma_edge.inspect(ID, revision="v1") == gemma_edge.inspect(f"{ID}@v1")
    with pytest.raises(CheckpointError, match=f"{ID}@v9: found no revision v9, wanted a branch, tag or commit of {ID}"):
        open_headers(f"{ID}@v9")
    for path in (str(other), f"{ID}@v1"):
        with pytest.raises(UsageError, match=r"revision: found v1 for .* wanted a Hugging Face id without a revision"):
            gemma_edge.inspect(path, revision="v1")


def test_a_directory_of_exactly_that_name_wins(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "someone").mkdir()
    (tmp_path / f"{ID}@v1").symlink_to(checkpoint)
    with open_checkpoint(f"{ID}@v1") as found:
        assert found.name == "tiny" and not hub.requests


def test_a_cut_download_goes_on_where_it_ended(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    headers = 2  # requests of the first look
    hub.cut_at = [1 << 30] * headers + [40_000, 1, 0, 25_000]
    with open_checkpoint(ID) as found:
        assert found.fingerprint() == fingerprint(checkpoint)
    assert sum(hub.sent.values()) == first_look(checkpoint) + shard_bytes(checkpoint)
    assert not parts(tmp_path)


def fingerprint(checkpoint: Path) -> str:
    with open_checkpoint(checkpoint) as opened:
        return opened.fingerprint()


def test_an_interrupted_download_is_taken_up_by_the_next_process(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    """huggingface_hub itself begins again."""
    hub.cut_at = [1 << 30] * 2 + [40_000, 50_000] + [0] * 20
    with pytest.raises(
        EnvironmentFault, match=r"breaks at byte \d+ of model-0000.-of-00002.safetensors, 5 times in a row"
    ):
        open_checkpoint(ID)
    kept = sum(path.stat().st_size for path in parts(tmp_path))
    assert kept == 90_000
    hub.cut_at, hub.sent = [], {}
    told: list[tuple[int, int]] = []
    with open_checkpoint(ID, progress=lambda *done: told.append(done)) as found:
        assert found.fingerprint() == fingerprint(checkpoint)
    assert sum(hub.sent.values()) == first_look(checkpoint) + shard_bytes(checkpoint) - kept
    assert told[-1] == (shard_bytes(checkpoint),) * 2 and not parts(tmp_path)


def test_a_file_with_other_bytes_than_the_hub_states_is_refused(hub: HubServer, tmp_path: Path) -> None:
    located = open_headers(ID)
    located.close()
    hub.corrupts = True
    with pytest.raises(CheckpointError):
        open_checkpoint(ID)
    hub.corrupts = False
    with open_checkpoint(ID) as found:
        assert found.vocab_size == 300


def test_a_server_without_ranges_is_named(hub: HubServer) -> None:
    hub.ignores_ranges = True
    with pytest.raises(EnvironmentFault, match="a server that sends whole files instead of the ranges asked for"):
        open_checkpoint(ID)
    assert len(hub.sent) == 1


# --- refusals --------------------------------------------------------------------------------------------------------


def error_of(name: str) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        open_headers(name)
    return caught.value


def test_a_gated_repository_says_where_its_licence_is(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated, hub.token = {ID}, "hf_right"
    error = error_of(ID)
    assert (type(error), error.exit_code) == (EnvironmentFault, 3)
    assert f"accept the licence on {hub.url}/{ID}, then log in: hf auth login" in str(error)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "gated" in str(error_of(ID))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with open_headers(ID) as found:
        assert found.vocab_size == 300


def test_a_repository_that_there_is_not_is_bad_input(hub: HubServer) -> None:
    error = error_of("someone/gemma-4n")
    assert (error.exit_code, error.found) == (2, "no such directory, and no such repository on the Hub")


def test_a_server_in_trouble_is_one_error(hub: HubServer) -> None:
    hub.status = 403
    assert "refused access (403)" in str(error_of(ID))


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_cache_is_used(
    hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    def cut_off() -> None:
        if offline:
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        else:
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")

    cut_off()
    error = error_of(ID)
    assert error.exit_code == 3 and ("offline mode is on" if offline else "no download") in str(error)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    open_headers(ID).close()
    cut_off()
    assert "a partial download, while offline" in str(error_of(ID))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    open_checkpoint(ID).close()
    cut_off()
    with open_checkpoint(ID) as found:
        assert found.name == f"{ID}@{COMMIT}"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["m-Q4_K_M.gguf", "README.md"], "GGUF holds weights that are quantised already"),
        (["gemma-3n-E2B-it-int4.litertlm"], r"a .litertlm is converted already: gemma-edge check"),
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA adapter: name its base model, and this with --ad"),
        (["manifest.json", "text_decoder.tflite"], "this looks like a bundle"),
        (["checkpoint-500/config.json", "README.md"], "download one of its folders and name that: checkpoint-500"),
        (["README.md"], "found no config.json, wanted a checkpoint in Hugging Face's form"),
    ],
)
def test_repositories_of_something_else_get_the_hints_that_folders_get(
    hub: HubServer, tmp_path: Path, files: list[str], says: str
) -> None:
    for name in files:
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text("{}")
    hub.publish("someone/other", tmp_path / "other")
    with pytest.raises(CheckpointError, match=says):
        open_headers("someone/other")
    assert not hub.sent


def without_weights(name: str, config: dict[str, Any], tmp_path: Path, hub: HubServer) -> None:
    folder = write_checkpoint(tmp_path / "refused", config, random_tensors(TINY, dtype="float32"))
    write_tokenizer(folder)
    hub.publish(name, folder)


def test_what_would_be_refused_is_refused_before_weights_are_downloaded(hub: HubServer, tmp_path: Path) -> None:
    without_weights("someone/wider", {**TINY, "hidden_size": 64}, tmp_path, hub)
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        open_checkpoint("someone/wider")
    with pytest.raises(UsageError, match="context: found 99999"):
        convert(ConvertRequest(ID, tmp_path / "b", context=99_999), gate=None)
    assert not parts(tmp_path) and not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.slow
def test_inspect_judges_tokenizer_and_template_without_a_download(
    hub: HubServer, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    hub.publish("someone/none", folder)
    (folder / "chat_template.jinja").write_text("{% for %}")
    hub.publish("someone/template", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["beyond"] = 10**6
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    hub.publish("someone/tokenizer", folder)
    assert gemma_edge.inspect("someone/none").faults == {}
    for name, says in {"template": "not a Jinja template", "tokenizer": "tokenizer.json"}.items():
        found = gemma_edge.inspect(f"someone/{name}")
        assert list(found.faults) == ["text"] and says in str(found.faults["text"])
        assert f"this checkpoint cannot be converted: {found.faults['text']}" in caplog.text
        with pytest.raises(type(found.faults["text"])) as refused:
            convert(ConvertRequest(f"someone/{name}", tmp_path / "b", context=32), gate=None)
        assert str(refused.value) == str(found.faults["text"])
    assert not parts(tmp_path) and not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_a_conversion_warns_of_is_said_once(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(ConvertRequest(ID, tmp_path / "b", context=32, groups=("text",)), gate=None)
    assert caplog.text.count(NO_TEMPLATE) == 1


def test_a_missing_shard_is_named_before_the_others_are_downloaded(hub: HubServer, checkpoint: Path) -> None:
    name = next(checkpoint.glob("model-00002*")).name
    del hub.repositories[ID][COMMIT][name]
    with pytest.raises(CheckpointError, match=f"found no {name}, wanted it, as model.safetensors.index.json says"):
        open_checkpoint(ID)


# --- adapters, and the command ---------------------------------------------------------------------------------------


def test_an_adapter_may_be_on_the_hub_with_a_revision(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    factors: dict[str, NDArray[np.float32]] = {}
    for layer in range(7):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        factors |= {f"{name}.lora_A.weight": noise(2, 32), f"{name}.lora_B.weight": noise(32, 2)}
    folder = write_adapter(tmp_path / "pirate", factors)
    (folder / "optimizer.pt").write_bytes(b"x" * 1000)
    hub.publish("someone/pirate", folder, OLD_COMMIT)
    results = []
    for base in (ID, checkpoint):
        for source in ("someone/pirate@v1", folder):
            with open_checkpoint(base, adapters=[AdapterChoice(source, 0.5)]) as merged:
                results.append(merged.read("layers.1.self_attn.q_proj.weight"))  # type: ignore[attr-defined]
                (adapter,) = merged.adapters
                expected = f"someone/pirate@{OLD_COMMIT}" if isinstance(source, str) else "pirate"
                assert adapter.record.name == expected
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert not any("optimizer" in request for request in hub.requests)
    with pytest.raises(CheckpointError, match=r"no config.json.*LoRA adapter"):
        open_checkpoint("someone/pirate@v1")
    with pytest.raises(CheckpointError, match="a repository without an adapter"):
        open_checkpoint(checkpoint, adapters=[AdapterChoice(ID)])


def test_a_multimodal_id_without_its_towers_files_says_so(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_tensors(TINY, prefix="model.language_model.", dtype="float32")
    tensors["model.vision_tower.timm_model.conv_stem.conv.weight"] = noise(8, 3, 3, 3)
    folder = write_checkpoint(tmp_path / "eyes", TINY_MULTIMODAL, tensors)
    write_tokenizer(folder)
    hub.publish("someone/eyes", folder)
    gemma_edge.inspect("someone/eyes")
    assert "vision cannot be converted" in caplog.text


@pytest.mark.slow
def test_the_command_follows_hf_endpoint_and_shows_one_error(hub: HubServer, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_TOKEN", None)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gemma_edge", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    shown = run("inspect", ID, "--revision", "main", "--json")
    assert shown.returncode == 0 and json.loads(shown.stdout)["kind"] == "checkpoint"
    assert shown.stderr.splitlines() == [line for line in shown.stderr.splitlines() if NO_TEMPLATE in line]
    refused = run("inspect", f"{ID}@v9")
    assert (
        refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1 and "no revision v9" in refused.stderr
    )


def test_the_command_takes_a_revision(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", ID, "--revision", "v1"]) == 2
    assert "no revision v1" in capsys.readouterr().err


@pytest.mark.slow
def test_towers_are_judged_by_their_headers_before_a_download(hub: HubServer, tmp_path: Path) -> None:
    folder = write_multimodal_checkpoint(tmp_path / "media")
    hub.publish("someone/media", folder)
    size = (folder / "model.safetensors").stat().st_size
    convert(ConvertRequest("someone/media", tmp_path / "bundle", context=160), gate=None)
    assert hub.sent == {"model.safetensors": min(size, _FIRST_READ_BYTES) + _header_rest(folder) + size}
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["conf_attention_context_right"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    hub.publish("someone/refused", folder)
    hub.sent.clear()
    with pytest.raises(CheckpointError, match="conf_attention_context_right"):
        convert(ConvertRequest("someone/refused", tmp_path / "other", context=160), gate=None)
    assert hub.sent["model.safetensors"] < size


def _header_rest(folder: Path) -> int:
    """The header, if it is longer than what is read at first."""
    with (folder / "model.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    return length if 8 + length > _FIRST_READ_BYTES else 0
