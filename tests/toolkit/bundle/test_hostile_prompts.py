"""Chat templates and tokenizers that do harm: each is one error, in bounded time and memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from paths import EXAMPLE

from converters.convert import convert
from converters.huggingface.chat_template import find_template, read_chat_template
from converters.huggingface.prompt_files import read_prompt_files
from converters.huggingface.transformers_tokenizer import as_transformers_loads
from converters.request import ConvertRequest
from gemma_edge.cli import main
from toolkit.base.errors import BundleError, CheckpointError, ToolkitError, UsageError
from toolkit.base.limited import Limits, limited
from toolkit.bundle.chat import MAX_TEMPLATE_BYTES, ChatTemplate, Message, free_variables, turn_end
from toolkit.bundle.manifest import CHAT_TEMPLATE, LOCK, TOKENIZER
from toolkit.bundle.manifest_json import encode_manifest
from toolkit.bundle.prompting import Prompting
from toolkit.bundle.tokenizer import MAX_TOKENIZER_BYTES, Tokenizer
from toolkit.bundle.tokenizer_file import tokenizer_faults
from toolkit.check import check
from toolkit.litertlm.chat_template import engine_template
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import chat_prompt

SMALL = Limits(seconds=2, memory_bytes=256 << 20, output_bytes=4 << 20)
USER = [Message("user", "Hello")]

DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
MACROS = "{% macro m0() %}x{% endmacro %}" + "".join(
    f"{{% macro m{i}() %}}{{{{ m{i - 1}() }}}}{{{{ m{i - 1}() }}}}{{% endmacro %}}" for i in range(1, 60)
)
LARGE = {
    "a constant of 3 GB": "{{ 'A' * 3000000000 }}",
    "a constant of 3 GB in a branch": "{% if messages %}{{ 'A' * 3000000000 }}{% endif %}x",
    "a list of 3 GB": "{{ ([0] * 3000000000) | length }}",
    "a width of 3 GB": "{{ '{:>3000000000}'.format('x') }}",
    "a width of 3 GB by a filter": "{{ 'x' | center(3000000000) }}",
    "a width of 3 GB by a percent sign": "{{ '%3000000000d' % 1 }}",
    "a text that doubles": DOUBLING,
    "50 MB of text": "{% for i in range(50) %}{{ 'A' * 1000000 }}{% endfor %}",
    "an indent of 3 GB": "{{ 'a\nb' | indent(3000000000) }}",
}
ENDLESS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros that call two each": MACROS + "{{ m59() }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "a power in a macro": "{% macro f() %}{{ 10 ** (10 ** 9) }}{% endmacro %}{{ f() }}",
}
FAILING = {
    "nested brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "nested blocks": "{% if 1 %}" * 2000 + "x" + "{% endif %}" * 2000,
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "half of a character": "{{ '\\ud800' }}x",
    "Python's insides": "{{ ''.__class__.__mro__ }}{{ x.y.z }}",
    "no template": "{% if %}",
}


def render(template: str) -> str:
    return limited("chat template", partial(ChatTemplate(template).render, USER), SMALL)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", [*LARGE, *FAILING])
def test_a_template_that_takes_or_gives_too_much_is_one_error(name: str) -> None:
    before = peak_bytes()
    with pytest.raises(ToolkitError) as caught:
        assert not render((LARGE | FAILING)[name])
        raise UsageError(found="nothing")  # nothing was rendered
    assert "\n" not in str(caught.value)
    assert peak_bytes() - before < 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_ended(name: str) -> None:
    with pytest.raises(BundleError, match=r"it took more than 2 s|it did not finish within|it failed, or needed more"):
        render(ENDLESS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LARGE, *FAILING])
def test_the_gates_survive_it_too(name: str, tmp_path: Path) -> None:
    """turn_end and free_variables are what `convert` and `check` ask first, engine_template what `export` does."""
    source = (LARGE | FAILING)[name]
    prompting = Prompting.with_towers(Tokenizer(EXAMPLE / TOKENIZER), 2, None, None)
    before = peak_bytes()
    for work in (
        lambda: free_variables(source),
        lambda: turn_end(ChatTemplate(source)),
        lambda: engine_template(source, prompting, "gemma3n"),
    ):
        try:
            work()
        except (BundleError, UsageError):
            continue
    assert peak_bytes() - before < 64 << 20


def test_limits_leave_a_good_template_alone() -> None:
    template = ChatTemplate((EXAMPLE / CHAT_TEMPLATE).read_text())
    assert limited("chat template", partial(template.render, USER)) == template.render(USER)


def test_a_child_hands_over_values_and_errors() -> None:
    assert limited("x", lambda: [1, "a", None]) == [1, "a", None]
    assert limited("x", lambda: time.sleep(0.3), Limits(seconds=0.1)) is None, "waiting is no work"
    given = CheckpointError("p", file="f", found="a", wanted="b", remedy="r")

    def fail() -> None:
        raise given

    with pytest.raises(CheckpointError) as caught:
        limited("x", fail)
    assert caught.value.to_json() == given.to_json()
    with pytest.raises(BundleError, match="it crashed \\(SIGSEGV\\)"):
        limited("x", lambda: os.kill(os.getpid(), 11))


@pytest.mark.slow
def test_only_time_of_the_processor_counts_which_a_busy_machine_gives_now_and_then() -> None:
    limits = Limits(seconds=1)
    assert limited("x", partial(time.sleep, 1.1), limits) is None
    with pytest.raises(BundleError, match="it took more than 1 s"):
        limited("x", partial(sum, itertools.count()), limits)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "checkpoint"))


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["fifo", "zero", "directory", "sparse"])
def test_only_regular_files_of_bounded_size_are_templates(checkpoint: Path, name: str, kind: str) -> None:
    for other in ("chat_template.jinja", name):
        (checkpoint / other).unlink(missing_ok=True)
    path = checkpoint / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"not a regular file|over .* bytes"):
        read_chat_template(checkpoint, "<bos>")
    if name == CHAT_TEMPLATE:
        with pytest.raises(BundleError, match=r"not a regular file|over .* bytes"):
            ChatTemplate.open(path)


def test_a_template_within_a_json_is_bounded_too(checkpoint: Path) -> None:
    (checkpoint / CHAT_TEMPLATE).unlink()
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": "x" * (MAX_TEMPLATE_BYTES + 1)}))
    with pytest.raises(CheckpointError, match="chat template: found 1,048,577 bytes"):
        find_template(checkpoint)


def test_a_tokenizer_of_a_terabyte_is_refused(checkpoint: Path) -> None:
    with open(checkpoint / TOKENIZER, "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=f"at most {MAX_TOKENIZER_BYTES:,}"):
        Tokenizer(checkpoint / TOKENIZER)
    assert main(["convert", str(checkpoint), "-o", str(checkpoint.parent / "bundle")]) == 2
    assert not (checkpoint.parent / "bundle").exists()


@pytest.mark.parametrize("data", [b"[],", b'"ab",'], ids=["lists", "texts"])
def test_a_tokenizer_of_more_values_than_any_has_is_refused_unparsed(data: bytes) -> None:
    text = b'{"model": {"vocab": [' + data * (MAX_TOKENIZER_BYTES // len(data) - 20) + b"0]}}"
    before = peak_bytes()
    (fault,) = tokenizer_faults(TOKENIZER, text, 4096)
    assert fault.wanted == "at most 5,000,000" and peak_bytes() - before < 64 << 20


def test_a_vocabulary_that_no_model_has_is_refused() -> None:
    text = b'{"model": {"vocab": [' + b"0," * (1 << 20) + b"0]}}"
    (fault,) = tokenizer_faults(TOKENIZER, text, 4096)
    assert (fault.fault, fault.found) == ("tokens", "1,048,577")


def test_tokens_that_a_config_adds_take_linear_time(checkpoint: Path) -> None:
    names = [f"<more_{i}>" for i in range(20_000)]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": names}))
    before = time.process_time()
    data = (checkpoint / TOKENIZER).read_bytes()
    added = json.loads(as_transformers_loads(data, checkpoint))["added_tokens"][-len(names) :]
    assert time.process_time() - before < 5
    assert [item["content"] for item in added] == names
    assert [item["id"] - added[0]["id"] for item in added] == list(range(len(names)))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.json"])
def test_a_config_of_more_than_16_mb_is_refused_unparsed(checkpoint: Path, name: str) -> None:
    (checkpoint / CHAT_TEMPLATE).unlink(missing_ok=True)
    (checkpoint / name).write_bytes(b'{"a": [' + b"[]," * 6_000_000 + b"0]}")
    before = peak_bytes()
    with pytest.raises(CheckpointError, match=f"{name}: found over 16,000,000 bytes"):
        read_prompt_files(checkpoint, 4096)
    assert peak_bytes() - before < 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a constant of 3 GB", "a text that doubles", "nested lists"])
def test_convert_refuses_a_harmful_template(checkpoint: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / CHAT_TEMPLATE).write_text((LARGE | FAILING)[name])
    before = peak_bytes()
    assert main(["convert", str(checkpoint), "-o", str(checkpoint.parent / "bundle"), "--no-verify"]) in (0, 2)
    assert peak_bytes() - before < 512 << 20
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) <= 1


# --- tokenizers -------------------------------------------------------------------------------------------------------


def tokenizer(tmp_path: Path, **parts: object) -> Path:
    base = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    path = tmp_path / TOKENIZER
    path.write_text(json.dumps({**base, **empty, "added_tokens": [], **parts}))
    return path


def replace(text: str, content: str, kind: str = "String") -> dict[str, object]:
    return {"type": "Replace", "pattern": {kind: text}, "content": content}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}},
        {"normalizer": replace("a", "a" * 1000)},
        {"normalizer": replace("", "a" * 100)},
        {"normalizer": replace("a?", "a" * 100, "Regex")},
        {"decoder": {"type": "Sequence", "decoders": [replace("a", "aa")] * 40}},
    ],
    ids=["doubling", "one rule", "an empty pattern", "a regular expression", "decoding"],
)
def test_rules_that_make_text_grow_without_bound_are_refused(tmp_path: Path, parts: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="rules that can make a text"):
        Tokenizer(tokenizer(tmp_path, **parts))


@pytest.mark.parametrize(
    "parts",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"],
                   "continuing_subword_prefix": "####"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 5}},
    ],
    ids=["a prefix", "a charsmap", "an id"],
)  # fmt: skip
def test_a_tokenizer_at_which_the_library_panics_is_one_error(tmp_path: Path, parts: dict[str, object]) -> None:
    with pytest.raises(BundleError, match=r"not a Hugging Face tokenizer\.json"):
        Tokenizer(tokenizer(tmp_path, **parts))


def test_a_panic_while_decoding_is_one_error(tmp_path: Path) -> None:
    opened = Tokenizer(tokenizer(tmp_path, decoder={"type": "Strip", "content": "a", "start": 5, "stop": 5}))
    with pytest.raises(BundleError, match="index out of bounds"):
        opened.decode([0, 1])


def test_padding_of_any_length_is_reset(tmp_path: Path) -> None:
    padding = {
        "strategy": {"Fixed": 1 << 40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "a",
    }  # fmt: skip
    assert Tokenizer(tokenizer(tmp_path, padding=padding)).encode_limited("a") == [0]


@pytest.mark.slow
def test_a_regular_expression_without_end_is_ended(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a|aa|aaa)+(?<!a)$"}, "behavior": "Isolated", "invert": False}
    opened = Tokenizer(tokenizer(tmp_path, pre_tokenizer=split))
    started = time.monotonic()
    try:
        limited("tokenizer", partial(opened.encode, "a" * 5000 + "b", special=False), SMALL)
    except BundleError as error:
        assert "tokenizer" in str(error)
    assert time.monotonic() - started < 60  # not a measurement: without a limit it would not end today


# --- bundles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "bundle"
    convert(
        ConvertRequest(EXAMPLE, path, groups=("text",), sizes=("small",), context=64, prefill_sizes=(8,)), gate=None
    )
    return path


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


@pytest.mark.parametrize("name", [CHAT_TEMPLATE, TOKENIZER])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_changed_small_file_is_found_when_a_session_opens(bundle: Path, name: str, place: float) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (bundle / name).write_bytes(data)
    assert main(["run", str(bundle), "Hello", "-n", "1"]) == 2
    opened = Bundle(bundle)
    with pytest.raises(BundleError, match=f"{name}.*as in the manifest"):
        chat_prompt(opened, opened.tokenizer(), USER)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a constant of 3 GB", "nested lists", "half of a character", "50 MB of text"])
def test_a_strangers_bundle_with_a_harmful_template_is_one_error(
    bundle: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    template = (LARGE | FAILING)[name].encode()
    (bundle / CHAT_TEMPLATE).write_bytes(template)
    (bundle / LOCK).unlink()
    value = json.loads((bundle / "manifest.json").read_bytes())
    digest = hashlib.sha256(template).hexdigest()
    value["files"][CHAT_TEMPLATE] = {"bytes": len(template), "chunks": [digest], "sha256": digest}
    del value["files"][LOCK]
    (bundle / "manifest.json").write_bytes(encode_manifest(value))
    before = peak_bytes()
    assert main(["run", str(bundle), "Hello", "-n", "1"]) == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if line]) == 1
    check(bundle)
    assert peak_bytes() - before < 256 << 20
