"""The behaviour gate: prompts of bundles against transformers', and what is said about those that differ."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from litert_lm_engine import LmEngine, open_engine
from paths import EXAMPLE

import gemma_edge
from converters.behaviour import bundle_errors, require_same_prompts
from converters.convert import convert
from converters.huggingface.prompt_files import read_prompt_files
from converters.request import ConvertRequest
from gemma_edge.cli import main
from toolkit.base.errors import CheckpointError
from toolkit.bundle.chat import ChatTemplate
from toolkit.bundle.conversations import TEXTS, WITH_TOOLS, Conversation, with_media
from toolkit.bundle.manifest import CHAT_TEMPLATE, LOCK
from toolkit.bundle.manifest_json import encode_manifest
from toolkit.bundle.prompting import Prompting
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.check import check
from toolkit.litertlm.chat_template import EnginePrompts
from toolkit.litertlm.engine_template import EngineTemplate
from toolkit.litertlm.export import export_litertlm
from toolkit.runtime.bundle import Bundle

GEMMA = (EXAMPLE / "chat_template.jinja").read_text()
CHATML = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The trained example."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "checkpoint"))


def converted(checkpoint: Path, *groups: str) -> Path:
    path = checkpoint.parent / "bundle"
    request = ConvertRequest(
        checkpoint, path, groups=("text", *groups), sizes=("small",), context=512, prefill_sizes=(8, 64)
    )  # fmt: skip
    convert(request, gate=None)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example converted whole."""
    checkpoint = Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("behaviour") / "checkpoint"))
    return converted(checkpoint, "vision", "audio")


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((bundle / "manifest.json").read_bytes())
    edit(value)
    (bundle / "manifest.json").write_bytes(encode_manifest(value))


def rewrite_template(bundle: Path, template: str) -> None:
    """Another template, with a manifest that says so."""
    (bundle / CHAT_TEMPLATE).write_text(template)
    digest = hashlib.sha256(template.encode()).hexdigest()
    record = {"bytes": len(template.encode()), "chunks": [digest], "sha256": digest}
    edit_manifest(bundle, lambda value: value["files"].update({CHAT_TEMPLATE: record}))
    assert [fault for fault in check(bundle) if fault.file != CHAT_TEMPLATE] == []


# --- against transformers and the engine ------------------------------------------------------------------------------

TOOLS = (
    "{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "<end_of_turn>\n{% endfor %}"
)


@pytest.mark.reference
@pytest.mark.parametrize("template", [GEMMA, CHATML, TOOLS], ids=["gemma", "chatml", "tools"])
def test_conversations_have_the_token_ids_of_transformers(template: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    model = transformers.PreTrainedTokenizerFast.from_pretrained(EXAMPLE)
    prompting = Prompting.with_towers(Tokenizer(EXAMPLE / "tokenizer.json"), 2, None, None)
    ours, compared = ChatTemplate(template, bos_token="<bos>"), 0
    for conversation in [*TEXTS, *(WITH_TOOLS if template == TOOLS else ())]:
        turns, tools = [dict(turn) for turn in conversation.turns], list(conversation.tools) or None
        options = {"tools": tools, "chat_template": template, "add_generation_prompt": True, "return_dict": False}
        try:
            wanted = model.apply_chat_template(turns, **options)
        except Exception:  # jinja2's, raised by the template
            with pytest.raises(Exception, match="must alternate"):
                ours.render_turns(turns)
            continue
        assert prompting.ids(ours.render_turns(turns, conversation.tools), conversation) == wanted
        compared += 1
    assert compared >= len(TEXTS) - 1


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Any:
    """The text of the example in Google's engine."""
    path = bundle.parent / "text.litertlm"
    export_litertlm(bundle, path)
    with open_engine(path) as opened:
        yield opened


@pytest.mark.lm
@pytest.mark.parametrize("conversation", TEXTS, ids=lambda conversation: conversation.name)
def test_the_engine_has_as_many_tokens_of_a_conversation(
    engine: LmEngine, bundle: Path, conversation: Conversation
) -> None:
    manifest = Bundle(bundle).manifest
    prompting = Prompting.of(Bundle(bundle).tokenizer(), manifest, ())
    # Of a long one there are more than the context holds.
    cut = [{**turn, "content": str(turn["content"])[:60]} for turn in conversation.turns]
    template = GEMMA if len({turn["role"] for turn in cut}) > 1 or len(cut) == 1 else CHAT_OF_PARTS
    ids = EnginePrompts(prompting, "gemma3n").ids(EngineTemplate(template).render(replace(conversation, turns=cut)))
    options = {"messages": cut[:-1] or None, "chat_template": template, "max_output_tokens": 1}
    with engine.engine.create_conversation(**options) as opened:
        opened.send_message(cut[-1])
        assert opened.token_count == len(ids) + 1


CHAT_OF_PARTS = "{% for m in messages %}{{ m.role }}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_good_checkpoint_gets_no_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert bundle_errors(converted(checkpoint, "vision", "audio"), checkpoint) == []
    assert caplog.text == ""


@pytest.mark.slow
def test_another_prompt_than_transformers_has_is_refused_with_both_texts(bundle: Path) -> None:
    files = read_prompt_files(EXAMPLE, 3328, 2)
    text = Bundle(bundle).manifest.text
    require_same_prompts(files, text, None, None, "Gemma3nForCausalLM")
    wrong = replace(files, template=GEMMA.replace(r"+ '\n\n'", "+ ' '"))
    with pytest.raises(CheckpointError, match=r"a system message: found .*Be brief\. Où.*wanted .*Be brief\.\\n\\nOù"):
        require_same_prompts(wrong, text, None, None, "Gemma3nForCausalLM")


def test_a_template_that_writes_a_token_of_images_is_refused(checkpoint: Path) -> None:
    (checkpoint / CHAT_TEMPLATE).write_text(CHATML + "<end_of_audio>")
    with pytest.raises(CheckpointError, match=r"<end_of_audio> \(3200\), an id of images and sounds, wanted ids below"):
        converted(checkpoint)


@pytest.mark.slow
def test_what_the_engine_will_not_render_is_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    (checkpoint / CHAT_TEMPLATE).write_text(CHATML.replace("m['content']", "m['content'].title()"))
    path = converted(checkpoint)
    assert "export will refuse this bundle: chat template in LiteRT-LM" in caplog.text and ".title()" in caplog.text
    assert check(path) == []


@pytest.mark.slow
def test_images_that_the_template_does_not_place_are_a_warning(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (checkpoint / CHAT_TEMPLATE).write_text(CHATML)
    converted(checkpoint, "vision")
    assert "the chat template does not place an image" in caplog.text
    assert "a sound" not in caplog.text


@pytest.fixture
def spoilt(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to change, without the lock, which has hashes of its own."""
    path = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (path / LOCK).unlink()
    edit_manifest(path, lambda value: value["files"].pop(LOCK))
    return path


@pytest.mark.slow
def test_verify_finds_another_template(spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_template(spoilt, GEMMA.replace("'<end_of_turn>", "' <end_of_turn>"))
    report = gemma_edge.verify(spoilt, EXAMPLE, tokens=16, groups=["text"])
    assert not report.passed and "chat template with one turn" in report.prompts[0]
    command = ["verify", str(spoilt), "--checkpoint", str(EXAMPLE), "--tokens", "16", "--groups", "text"]
    assert main(command) == 1
    assert "prompts: " in capsys.readouterr().out


@pytest.mark.slow
def test_verify_and_check_find_an_end_of_turn_that_stops_nothing(spoilt: Path) -> None:
    edit_manifest(spoilt, lambda value: value["groups"]["text"]["runtime"].update(stop_token_ids=[1]))
    assert [fault.fault for fault in check(spoilt)] == ["the end of a turn"]
    assert [error.place for error in bundle_errors(spoilt, EXAMPLE)] == ["the end of a turn"]


@pytest.mark.slow
def test_check_finds_a_template_that_writes_tokens_of_images(spoilt: Path) -> None:
    rewrite_template(spoilt, GEMMA + "<end_of_image>")
    assert [(fault.fault, fault.found) for fault in check(spoilt)] == [("one turn", "token 3072")]


@pytest.mark.slow
def test_check_notes_what_export_would_refuse(spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_template(spoilt, CHATML + "{{ [1] }}{{ none }}")
    assert main(["check", str(spoilt)]) == 0
    assert "note: export refuses this bundle: chat template in LiteRT-LM with" in capsys.readouterr().out


def test_the_conversations_have_what_templates_stumble_over() -> None:
    media = with_media(["vision", "audio"])
    names = [conversation.name for conversation in (*TEXTS, *WITH_TOOLS, *media)]
    assert len(set(names)) == len(names)
    assert {(c.count("image"), c.count("audio")) for c in media} == {(1, 0), (0, 1), (2, 2)}
    assert all(conversation.tools for conversation in WITH_TOOLS)
