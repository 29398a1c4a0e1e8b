"""`inspect` of a .litertlm, and what `export` tells apps: sampling, function calling, the minimum runtime."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from paths import EXAMPLE

import gemma_edge
from converters.convert import convert
from converters.request import ConvertRequest
from gemma_edge.cli import main
from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.manifest import SamplingRecord
from toolkit.bundle.prompting import Prompting
from toolkit.litertlm import export_sections
from toolkit.litertlm.chat_template import EnginePrompts, ExportedTemplate
from toolkit.litertlm.engine_tools import tools_fault
from toolkit.litertlm.header import read_header
from toolkit.litertlm.lock_section import read_lock
from toolkit.litertlm.schema import MOST_LIKELY, ModelType
from toolkit.runtime.bundle import Bundle

GEMMA = (EXAMPLE / "chat_template.jinja").read_text()
STATED = SamplingRecord(temperature=0.7, top_k=40, top_p=0.95)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "bundle"
    convert(ConvertRequest(EXAMPLE, path, sizes=("small",), context=512, prefill_sizes=(8,)), gate=None)
    return path


def exported(bundle: Path, path: Path, *words: str) -> Any:
    assert main(["export", str(bundle), "-o", str(path), *words]) == 0
    return gemma_edge.inspect_file(path).metadata


def test_what_a_file_and_a_bundle_have_no_use_for_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.litertlm").write_bytes(b"LITERTLM")
    for words, wanted in (("--plot x.svg", "a checkpoint or a bundle"), ("--adapter x", "a checkpoint"),
                          ("--revision v1", "a Hugging Face id")):  # fmt: skip
        assert main(["inspect", str(tmp_path / "x.litertlm"), *words.split()]) == 2
        option = words.split()[0]
        assert f"{option}: found it cannot be used with a file, wanted {wanted}" in capsys.readouterr().err
    assert main(["inspect", str(bundle), "--revision", "v1"]) == 2
    assert "revision: found v1 for" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], STATED),
        (["--temperature", "0.25"], SamplingRecord(0.25, 40, 0.95)),
        (["--top-k", "8", "--top-p", "0.5"], SamplingRecord(0.7, 8, 0.5)),
        (["--top-k", "0"], SamplingRecord(0.7, 3072, 0.95)),
        (["--temperature", "0"], MOST_LIKELY),
    ],
)
def test_sampling_is_the_checkpoints_or_what_is_given(
    bundle: Path, tmp_path: Path, words: list[str], wanted: SamplingRecord
) -> None:
    assert exported(bundle, tmp_path / "x.litertlm", *words).sampling == wanted


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 1e-6}, "temperature: found 1e-06, wanted 0, or a number from 0.001 to 1000"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1e-7}, "top-p: found 1e-07, wanted a number from 1e-06 to 1"),
        ({"top_k": 2**24 + 1}, "top-k: found 16777217, wanted an integer from 0 to 16777216"),
        ({"top_k": 10**11, "temperature": 0.0}, "top-k: found 100000000000"),
    ],
)
def test_impossible_sampling_is_refused_before_anything_is_written(
    bundle: Path, tmp_path: Path, options: dict[str, float], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        gemma_edge.export(bundle, tmp_path / "x.litertlm", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_lock_keeps_the_sampling_that_was_given(bundle: Path, tmp_path: Path) -> None:
    exported(bundle, tmp_path / "x.litertlm", "--top-k", "8")
    lock = read_lock(tmp_path / "x.litertlm", read_header(tmp_path / "x.litertlm").metadata)
    assert lock is not None and lock.export is not None
    assert lock.export.sampling == SamplingRecord(temperature=0.7, top_k=8, top_p=0.95)
    gemma_edge.rebuild(tmp_path / "x.litertlm", tmp_path / "y.litertlm", checkpoint=EXAMPLE)
    assert (tmp_path / "y.litertlm").read_bytes() == (tmp_path / "x.litertlm").read_bytes()


@pytest.mark.slow
def test_an_export_without_sound_says_that_gallery_refuses_it(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        gemma_edge.export(bundle, tmp_path / "sound.litertlm")
        assert caplog.text == ""
        gemma_edge.export(bundle, tmp_path / "x.litertlm", groups=["text", "vision"])
    assert "AI Edge Gallery refuses" in caplog.text


def test_inspect_shows_sections_and_metadata(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.litertlm"
    exported(bundle, path)
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for line in (
        "inputs: text, vision, audio", "model type: generic_model", "context: 512 tokens", "stop tokens: 1, 5",
        "sampler: temperature 0.7, top-k 40, top-p 0.95", "function calling: no", "minimum runtime: 0.14.0",
    ):  # fmt: skip
        assert line in text.splitlines()
    assert main(["inspect", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["kind"] == "litertlm" and value["system"]["size"] == "small"
    assert value["metadata"]["jinja_prompt_template"].startswith("{% set rendered_prompt %}")
    for section, record in zip(value["sections"], read_header(path).metadata.sections, strict=True):
        assert (section["begin"], section["begin"] + section["bytes"]) == (record.begin, record.end)


def test_a_file_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"\x1b[31m" * 40)
    with pytest.raises(BundleError, match="magic"):
        gemma_edge.inspect_file(tmp_path / "x")
    assert main(["inspect", str(tmp_path / "x")]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.lm
@pytest.mark.parametrize("words", [(), ("--groups", "text", "--temperature", "0.5"), ("--groups", "text,vision")])
def test_inspect_agrees_with_the_engine(bundle: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """`ModelInfo` is what `litert-lm describe` prints."""
    litert_lm: Any = pytest.importorskip("litert_lm", reason="needs litert-lm-api")
    path = tmp_path / "x.litertlm"
    metadata = exported(bundle, path, *words)
    with litert_lm.ModelInfo(str(path)) as info:
        inputs = [name for name in ("text", "vision", "audio") if getattr(info.input_modalities, name)]
        assert tuple(inputs) == gemma_edge.inspect_file(path).inputs
        assert info.max_context_tokens == metadata.max_num_tokens
        assert (info.min_runtime_version or "") == metadata.min_runtime_version
        assert info.llm.supports_function_calling() == metadata.supports_function_calling
        assert info.llm.supports_thinking() == metadata.supports_thinking
        sampler, sampling = info.llm.default_sampler_params, metadata.sampling
        assert (sampler.temperature, sampler.top_k, sampler.top_p) == pytest.approx(
            (sampling.temperature, sampling.top_k, sampling.top_p)
        )


WITH_TOOLS = "{% if tools %}{% for tool in tools %}TOOL{% endfor %}{% endif %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "model_type", "offered"),
    [
        ("{{ tool }}", "gemma3n", True),
        ("{{ tool }}", "generic_model", False),
        ("{{ tool.function.name }}", "gemma3n", False),
        ("", "gemma3n", False),
        # None is written otherwise in the engine.
        ("{{ tool }}{{ [messages[0].nothing] if messages[1] }}", "gemma3n", False),
    ],
)
def test_function_calling_is_offered_where_template_and_engine_have_it(
    bundle: Path, tmp_path: Path, written: str, model_type: ModelType, offered: bool,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    template = "{{ bos_token }}" + WITH_TOOLS.replace("TOOL", written) + GEMMA.replace("{{- bos_token -}}", "")
    prompting = Prompting.of(Bundle(bundle).tokenizer(), Bundle(bundle).manifest, ())
    engine = EnginePrompts(prompting, model_type)
    assert (tools_fault(template, template, engine) is None) == offered
    monkeypatch.setattr(export_sections, "_chat_template", lambda parts: template)
    monkeypatch.setattr(export_sections, "engine_template", lambda *_: ExportedTemplate(template, start_token=True))
    metadata = exported(bundle, tmp_path / "x.litertlm", "--model-type", model_type)
    assert metadata.supports_function_calling is offered
    assert ("does not offer function calling" in caplog.text) != offered


@pytest.mark.lm
def test_the_engine_describes_tools_as_the_gate_takes_them(bundle: Path, tmp_path: Path) -> None:
    litert_lm: Any = pytest.importorskip("litert_lm", reason="needs litert-lm-api")

    def get_weather(city: str) -> str:
        """Weather of a city.

        Args:
          city: its name
        """
        return city

    path = tmp_path / "x.litertlm"
    exported(bundle, path, "--model-type", "gemma3n")
    with litert_lm.Engine(str(path), backend=litert_lm.Backend.CPU(thread_count=1), cache_dir=str(tmp_path)) as engine:
        shown = "{% for tool in tools %}{{ tool }}{% endfor %}"
        with engine.create_conversation(tools=[get_weather], chat_template=shown) as conversation:
            text = conversation.render_message_to_string({"role": "user", "content": "x"})
    wanted = 'def get_weather(\n    city: str,\n) -> dict:\n  """Weather of a city.\n\n  Args:\n    city: its name'
    assert text.startswith(wanted)
