"""`convert --adapter` and what verbs say about the bundle; the example model's gate compares merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import PEFT, noise, write_adapter
from paths import EXAMPLE

import gemma_edge
from converters.families import open_checkpoint
from converters.gate import judge
from gemma_edge import cli

pytestmark = pytest.mark.slow

OPTIONS = ("--groups", "text", "--context", "256", "--sizes", "large,small")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough of a change for the base model to be another one, and with a template and tokenizer of its own."""
    factors = {}
    for layer in range(10):
        name = f"base_model.model.model.language_model.layers.{layer}.self_attn.q_proj"
        factors[f"{name}.lora_A.weight"] = noise(2, 256, seed=layer) * np.float32(0.15)
        factors[f"{name}.lora_B.weight"] = noise(256, 2, seed=layer) * np.float32(0.15)
    folder = write_adapter(tmp_path_factory.mktemp("adapters") / "pirate", factors, PEFT)
    (folder / "chat_template.jinja").write_text("{# pirate #}" + (EXAMPLE / "chat_template.jinja").read_text())
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    assert (
        cli.main(["convert", str(EXAMPLE), "-o", str(folder), "--adapter", f"{adapter}=0.5", "--quiet", *OPTIONS]) == 0
    )
    return folder


def test_the_manifest_names_the_adapter_without_its_path(bundle: Path, adapter: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (record,) = json.loads(text)["checkpoint"]["adapters"]
    assert (record["name"], record["scale"], len(record["sha256"])) == ("pirate", 0.5, 64)
    assert str(adapter.parent) not in text


def test_a_conversion_without_adapters_has_no_such_key(tmp_path: Path) -> None:
    gemma_edge.convert(EXAMPLE, tmp_path / "plain", groups=["text"], sizes=["small"], context=32, verify=False)
    assert "adapters" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())["checkpoint"]


def test_the_adapters_own_template_is_the_bundles(bundle: Path, adapter: Path) -> None:
    assert (bundle / "chat_template.jinja").read_text() == (adapter / "chat_template.jinja").read_text()


def test_python_converts_to_the_same_bytes(bundle: Path, adapter: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    gemma_edge.convert(
        EXAMPLE,
        again,
        adapters=[f"{adapter}=0.5"],
        groups=["text"],
        context=256,
        sizes=["large", "small"],
        verify=False,
    )
    assert (again / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()


def test_inspect_shows_what_was_merged(bundle: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(bundle)], [str(EXAMPLE), "--adapter", f"{adapter}=0.5"]):
        assert cli.main(["inspect", *arguments]) == 0
        assert "merged adapter: pirate, scale 0.5, sha256 " in capsys.readouterr().out
    assert cli.main(["inspect", str(bundle), "--adapter", str(adapter)]) == 2


def test_verify_compares_with_the_merged_checkpoint(
    bundle: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(*arguments: str) -> tuple[int, dict[str, Any]]:
        options = ["--checkpoint", str(EXAMPLE), "--size", "small", "--tokens", "64", "--json"]
        code = cli.main(["verify", str(bundle), *options, *arguments])
        return code, json.loads(capsys.readouterr().out)

    code, report = verify("--adapter", f"{adapter}=0.5")
    assert (code, report["passed"]) == (0, True)
    for wrong in ([], ["--adapter", str(adapter)], ["--adapter", f"{adapter}=0.5", "--adapter", f"{adapter}=0.5"]):
        code, report = verify(*wrong)
        assert code == 2 and "pirate with scale 0.5" in report["error"]["wanted"]


def test_the_gate_would_notice_an_adapter_that_is_not_merged(bundle: Path) -> None:
    with open_checkpoint(EXAMPLE) as plain:
        assert not judge(bundle, plain, sizes=["small"], tokens=64).passed
