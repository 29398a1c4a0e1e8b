"""The runner in C gives the logits of our session in Python, bit for bit, and answers every mistake with one error."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from native_runner import NativeRunner, library_path, litert_path, runner_path
from paths import EXAMPLE
from waiting import PATIENCE_S

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.parsers.delegates import undelegated_nodes
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.generate import Generation
from toolkit.runtime.media_prompt import Medium, Span, read_image, read_sound
from toolkit.runtime.sampling import Sampler, Sampling
from toolkit.runtime.session import Session, SessionSettings

SETTINGS = SessionSettings(threads=1, weight_cache="memory")
SAMPLES = EXAMPLE / "samples"


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in int8, two sizes, in four shards, with a context bucket of decode."""
    path = tmp_path_factory.mktemp("tiny") / "bundle"
    request = ConvertRequest(EXAMPLE, path, sizes=("large", "small"), shard_bytes=1 << 20)
    convert(request, gate=None)
    return path


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """A random float model whose prefills have a context bucket too."""
    folder = tmp_path_factory.mktemp("long")
    shutil.copytree(random_checkpoint, folder / "checkpoint")
    config = json.loads((folder / "checkpoint" / "config.json").read_bytes())
    config["max_position_embeddings"] = 32_768
    (folder / "checkpoint" / "config.json").write_text(json.dumps(config))
    path = folder / "bundle"
    request = ConvertRequest(folder / "checkpoint", path, {"text": "f32"}, sizes=("full", "small"), context=32_768)
    convert(request, gate=None)
    return path


@pytest.fixture(params=["libLiteRt", pytest.param("liblitert-lm", marks=pytest.mark.lm)])
def library(request: pytest.FixtureRequest) -> Path:
    """LiteRT's own library, and the one of Google's engine, which exports the same functions."""
    return litert_path() if request.param == "libLiteRt" else library_path("litert_lm", "liblitert-lm.so")


@pytest.fixture
def native() -> Iterator[NativeRunner]:
    with NativeRunner([runner_path(), litert_path()]) as runner:
        yield runner


@pytest.fixture(scope="module")
def shared(tiny_bundle: Path) -> Iterator[NativeRunner]:
    """A process with the tiny model open, for tests that leave it as it was."""
    with NativeRunner([runner_path(), litert_path()]) as runner:
        runner.ok("open", bundle=str(tiny_bundle), threads=1)
        yield runner


def tokens_of(bundle: Path, seed: int, count: int) -> list[int]:
    most = Bundle(bundle).manifest.text.ple_vocab_size
    return [int(token) for token in np.random.default_rng(seed).integers(0, most, count)]


class Pair:
    """The same conversation in both."""

    def __init__(self, session: Session, native: NativeRunner) -> None:
        self.session, self.native = session, native
        native.ok("open", bundle=str(session.bundle.path), threads=1)

    def require_same(self, ids: Sequence[int]) -> None:
        """Feed tokens to both, by prefill and decode."""
        expected = self.session.feed(ids)
        found = self.native.logits(ids)
        assert (found.view(np.uint32) == expected.view(np.uint32)).all()

    def use(self, size: str) -> None:
        self.session.use(size)
        self.native.ok("size", name=size)

    def truncate(self, position: int) -> None:
        self.session.truncate(position)
        self.native.ok("truncate", position=position)


@pytest.mark.slow
def test_logits_have_the_same_bits_over_widths_buckets_sizes_and_truncations(tiny_bundle: Path, library: Path) -> None:
    text = Bundle(tiny_bundle).manifest.text
    assert text.context_buckets == (512,) and len(text.prefill_sizes) > 1
    with Session(Bundle(tiny_bundle), SETTINGS) as session, NativeRunner([runner_path(), library]) as native:
        pair = Pair(session, native)
        for seed, count in enumerate((1, 2, 9, 17, 100, 300, 2)):
            pair.require_same(tokens_of(tiny_bundle, seed, count))
        pair.use("small")
        pair.require_same(tokens_of(tiny_bundle, 10, 30))
        pair.truncate(session.position - 12)
        pair.require_same(tokens_of(tiny_bundle, 11, 1))
        pair.use("large")
        pair.require_same(tokens_of(tiny_bundle, 12, 512 - session.position))
        pair.require_same(tokens_of(tiny_bundle, 13, 2))
        pair.truncate(0)
        pair.require_same(tokens_of(tiny_bundle, 14, 5))


@pytest.mark.slow
def test_per_layer_embeddings_of_two_bits_have_the_same_values(tmp_path: Path, random_checkpoint: Path) -> None:
    path = tmp_path / "bundle"
    convert(ConvertRequest(random_checkpoint, path, {"text": "f32", "ple": "int2"}, context=128), gate=None)
    with Session(Bundle(path), SETTINGS) as session, NativeRunner([runner_path(), litert_path()]) as native:
        Pair(session, native).require_same(tokens_of(path, 0, 20))


@pytest.mark.slow
def test_a_bundle_for_speculative_decoding_has_the_same_bits_in_plain_decoding(
    drafting_bundle: Path, native: NativeRunner
) -> None:
    with Session(Bundle(drafting_bundle), SETTINGS) as session:
        pair = Pair(session, native)
        for size in ("full", "small"):
            pair.use(size)
            pair.require_same(tokens_of(drafting_bundle, 3, 9))


@pytest.mark.full
def test_logits_have_the_same_bits_within_and_past_a_bucket_of_prefills(
    long_bundle: Path, native: NativeRunner
) -> None:
    with Session(Bundle(long_bundle), SETTINGS) as session:
        (bucket,) = session.text.prefill_buckets
        pair = Pair(session, native)
        pair.require_same(tokens_of(long_bundle, 0, bucket - 20))
        pair.use("small")
        for seed, count in enumerate((30, 200, 3)):
            pair.require_same(tokens_of(long_bundle, seed, count))


@pytest.mark.slow
def test_a_float_model_has_the_same_bits_up_to_the_end_of_its_context(
    random_bundle: Path, native: NativeRunner
) -> None:
    with Session(Bundle(random_bundle), SETTINGS) as session:
        pair = Pair(session, native)
        for seed, count in enumerate(
            (3, 18, 5, 7, 6, 1)
        ):  # 40 positions in all; ids beyond the PLE table are among them
            most = session.text.vocab_size
            pair.require_same([int(token) for token in np.random.default_rng(seed).integers(0, most, count)])
        assert native.ask("decode", ids=[1])["error"] == {
            "kind": "usage", "file": None, "place": "conversation", "found": "41 tokens",
            "wanted": "at most 40, the bundle's context",
        }  # fmt: skip
        pair.truncate(0)
        pair.require_same([2, 3])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "random"])
def test_images_and_sounds_have_the_same_bits(
    name: str, tiny_bundle: Path, multimodal_bundle: Path, native: NativeRunner
) -> None:
    bundle = Bundle(tiny_bundle if name == "tiny" else multimodal_bundle)
    manifest = bundle.manifest
    assert manifest.vision is not None and manifest.audio is not None
    media = [read_image(SAMPLES / "red-circle.png", manifest.vision), *read_sound(SAMPLES / "yes.wav", manifest.audio)]
    ids, spans = [2, 7, 8], []
    lengths = manifest.vision.soft_tokens, manifest.audio.soft_tokens
    for medium, record, length in zip(media, (manifest.vision, manifest.audio), lengths, strict=True):
        ids.append(record.begin_token_id)
        spans.append(Span(len(ids), length, medium))
        ids += [record.soft_token_id] * length + [record.end_token_id, 9]
    with Session(bundle, SETTINGS) as session:
        native.ok("open", bundle=str(bundle.path), threads=1)
        for medium in media:
            send_medium(native, medium)
        uses = [{"key": span.medium.key, "at": span.start} for span in spans]
        assert session.rewind_to(ids, spans) == 0
        expected = session.feed(ids)
        native.ok("prefill", ids=ids[:-1], media=uses)
        assert (native.floats(native.ok("decode", ids=ids[-1:], logits=True)) == expected).all()
        assert native.ok("stats")["tower_loads"] == {"vision": 1, "audio": 1}
        # Again from the middle of the sound.
        cut = spans[1].start + 1
        native.ok("truncate", position=cut)
        session.truncate(cut)
        session.rewind_to(ids, spans)
        assert session.position == cut
        moved = [{"key": uses[1]["key"], "at": spans[1].start - cut}]
        native.ok("prefill", ids=ids[cut:-1], media=moved)
        assert (native.floats(native.ok("decode", ids=ids[-1:], logits=True)) == session.feed(ids[cut:])).all()


def send_medium(native: NativeRunner, medium: Medium) -> None:
    if medium.group == "vision":
        data = medium.values.astype(np.uint8).tobytes()
        native.ok("image", data, key=medium.key, bytes=len(data))
        return
    assert medium.mask is not None
    data = medium.values.astype("<f4").tobytes() + medium.mask.astype(np.uint8).tobytes()
    native.ok("sound", data, key=medium.key, bytes=len(data), frames=len(medium.values))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(1.0, 64, 0.95, 7),
        Sampling(1.5, 0, 0.9, 8),
        Sampling(0.7, 0, 1.0, 2**40 + 3),
        Sampling(1.5, 0, 1.0, 9, min_p=0.1, repeat_penalty=1.3),
        Sampling(2.0, 50, 0.99, 9, min_p=0.05),
        Sampling(repeat_penalty=1.5),
    ],
)
def test_a_generation_draws_the_tokens_of_the_session(
    sampling: Sampling, tiny_bundle: Path, shared: NativeRunner
) -> None:
    prompt = tokens_of(tiny_bundle, 5, 20)
    with Session(Bundle(tiny_bundle), SETTINGS) as session:
        session.prefill(prompt[:3])
        sampler = Sampler(sampling, session.text.text_ids)
        expected = list(Generation(session, prompt, sampler, limit=24, stops=(1, 5)))
    shared.ok("truncate", position=0)
    shared.ok("prefill", ids=prompt[:3])
    tokens, answer = shared.generated(ids=prompt[3:], earlier=prompt[:3], limit=24, stop=[1, 5], **asdict(sampling))
    assert tokens == expected
    assert answer["tokens"] == len(tokens) and answer["position"] == 19 + len(tokens)


@pytest.mark.slow
def test_a_generation_ends_when_it_is_asked_to(shared: NativeRunner) -> None:
    shared.ok("truncate", position=0)
    first = shared.ask("generate", ids=[2, 3], stop=[])
    shared.send(b'{"do": "stop"}\n')
    count = 1
    while "token" in (answer := shared.line()):
        count += 1
    assert first.keys() == {"token"} and answer["ending"] == "interrupted" and answer["tokens"] == count < 4000
    shared.send(b'{"do": "stop"}\n')  # too late, and without an answer
    assert shared.ok("truncate", position=0)["position"] == 0


@pytest.mark.slow
def test_a_stop_that_comes_in_two_pieces_ends_a_generation(shared: NativeRunner) -> None:
    shared.ok("truncate", position=0)
    shared.ask("generate", ids=[2, 3], stop=[])
    shared.send(b'{"do": "st')
    for _ in range(3):  # the program has looked at the first piece alone
        assert "token" in shared.line()
    shared.send(b'op"}\n')
    while "token" in (answer := shared.line()):
        pass
    assert answer["ending"] == "interrupted"


@pytest.mark.slow
def test_prefill_decode_and_a_generation_s_prefill_end_after_the_step_in_which_a_stop_comes(
    tiny_bundle: Path, shared: NativeRunner
) -> None:
    ids = tokens_of(tiny_bundle, 6, 400)
    widest = max(Bundle(tiny_bundle).manifest.text.prefill_sizes)
    for do, position in (("prefill", widest), ("generate", widest), ("decode", 1)):
        shared.ok("truncate", position=0)
        shared.send(json.dumps({"do": do, "ids": ids}).encode() + b'\n{"do": "stop"}\n')
        answer = shared.line()
        assert (answer["ok"], answer["position"], answer["ending"]) == (do, position, "interrupted")
        assert do != "generate" or (answer["tokens"], answer["prefill_s"], answer["first_s"]) == (0, 0, 0)
    shared.ok("truncate", position=0)
    assert "ending" not in shared.ok("prefill", ids=ids)


@pytest.mark.slow
def test_the_largest_and_smallest_settings_of_the_session_are_taken(tiny_bundle: Path, shared: NativeRunner) -> None:
    sampling = Sampling(1e300, 2**24, 5e-324, 2**63 - 1)
    with Session(Bundle(tiny_bundle), SETTINGS) as session:
        expected = list(Generation(session, [2, 3], Sampler(sampling, session.text.text_ids), limit=3, stops=()))
    shared.ok("truncate", position=0)
    tokens, _ = shared.generated(ids=[2, 3], limit=3, stop=[], **asdict(sampling))
    assert tokens == expected
    shared.ok("truncate", position=0)
    assert "token" in shared.ask("generate", ids=[2], limit=2**63 - 1)
    shared.send(b'{"do": "stop"}\n')
    while "token" in shared.line():
        pass


@pytest.mark.slow
def test_a_weight_file_is_the_one_of_the_session(tiny_bundle: Path, tmp_path: Path) -> None:
    from importlib.metadata import version

    folder, old = tmp_path / "a" / "cache", f"{'0' * 16}-{'f' * 16}.xnnpack"
    cache = {"folder": str(folder), "runtime": version("ai-edge-litert"), "limit_bytes": 0}
    others = [".mine.partial", "mine.xnnpack", f"{old}.txt"]
    folder.mkdir(parents=True)
    for name in (*others, old, f".{old}.9.partial"):
        (folder / name).touch()
    states = []
    for _ in range(2):
        with NativeRunner([runner_path(), litert_path()]) as native:
            opened = native.ok("open", bundle=str(tiny_bundle), threads=1, weight_cache=cache)
            states.append(opened["weight_cache"])
            found = native.logits([2, 3, 4])
    assert states == ["built", "kept"]
    path = Path(str(opened["weight_file"]))
    before = path.stat().st_ino
    with Session(Bundle(tiny_bundle), SessionSettings(threads=1, weight_cache=path.parent)) as session:
        assert (session.feed([2, 3, 4]) == found).all()
    assert path.stat().st_ino == before and {p.name for p in folder.iterdir()} == {path.name, "lock", *others}


@pytest.mark.slow
def test_a_folder_for_weights_that_is_full_or_no_folder_is_not_used_and_named(tiny_bundle: Path) -> None:
    """XNNPACK would end the process when it cannot write."""
    bwrap = ["bwrap", "--dev-bind", "/", "/", "--size", str(1 << 14), "--tmpfs", "/mnt"]
    if shutil.which("bwrap") is None or subprocess.run([*bwrap, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs bubblewrap (apt-get install bubblewrap) that may make namespaces and small file systems")
    record = Bundle(tiny_bundle).manifest.vision
    assert record is not None
    pixels = read_image(SAMPLES / "red-circle.png", record).values.astype(np.uint8).tobytes()
    with NativeRunner([*bwrap, runner_path(), litert_path()]) as native:
        for folder, fault in (("/mnt/cache", "bytes free, wanted"), ("/dev/null/cache", "Not a directory")):
            cache = {"folder": folder, "runtime": "1"}
            opened = native.ok("open", bundle=str(tiny_bundle), threads=1, weight_cache=cache)
            answers = [opened, native.ok("image", pixels, key="a", bytes=len(pixels))]
            assert opened["weight_cache"] == "memory" and "weight_file" not in opened
            for answer in answers:
                said = str(answer["weight_cache_fault"])
                assert said.startswith(f"{folder}: ") and fault in said
            native.ok("close")


@pytest.mark.slow
def test_random_tokens_are_those_of_the_benchmarked_session(tiny_bundle: Path, native: NativeRunner) -> None:
    native.ok("open", bundle=str(tiny_bundle), threads=1)
    native.ok("prefill", random=3)
    found = native.floats(native.ok("decode", random=1, logits=True))
    native.ok("truncate", position=0)
    assert (native.logits(tokens_of(tiny_bundle, 0, 4)) == found).all()


@pytest.mark.slow
def test_statistics_count_memory_by_group_and_rows(tiny_bundle: Path, native: NativeRunner) -> None:
    native.ok("open", bundle=str(tiny_bundle), threads=1)
    native.ok("prefill", ids=[2, 3, 4])
    stats = json.loads(json.dumps(native.ok("stats")))
    groups = stats["memory"]["groups"]
    assert set(groups) == set(Bundle(tiny_bundle).manifest.groups)
    assert groups["text"]["mapped_bytes"] > 9e6 and groups["per_layer_embedding"]["mapped_bytes"] == 0
    assert stats["memory"]["rss_bytes"] > 1e7 and stats["faults"]["minor"] > 0
    assert stats["ple"] == {"rows": 3, "bytes_read": 3 * 1024}
    native.ok("close")
    assert native.ask("stats").keys() == {"ok", "memory", "faults", "seconds", "uptime_s"}


@pytest.mark.slow
def test_a_profile_names_the_nodes_that_no_delegate_took_and_empties_the_conversation(shared: NativeRunner) -> None:
    shared.ok("truncate", position=0)
    before = shared.logits([2, 3])
    profile = shared.ok("profile")
    assert profile["size"] == "large" and undelegated_nodes(str(profile["summary"])) > 0
    assert shared.ok("stats")["position"] == 0 and (shared.logits([2, 3]) == before).all()


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "place", "found"),
    [
        (b"", "byte 0", "its end"),
        (b"{", "byte 1", "its end"),
        (b'{"do": "size", "do": "size"}', "key do", "the key twice in an object"),
        (b'{"do": "\xff"}', "byte 8", "byte 0xff"),
        (b'{"do": "a\\u0000"}', "byte 15", "byte 0x22"),
        (b'{"do": "a\x01"}', "byte 9", "byte 0x01"),
        (b'{"do": "close"} x', "byte 16", "byte 0x78"),
        (b"[]", "do", "no text"),
        (b'{"do": "fly"}', "do", "fly"),
        (b'{"do": "close", "now": true}', "close", "the key now"),
        (b'{"do": "decode", "ids": [1]}', "decode", "no bundle is open"),
        (b'{"do": "open"}', "open", "a missing key"),
        (b'{"do": "open", "bundle": "/nowhere", "threads": 0}', "open threads", "0"),
        (b'{"do": "open", "bundle": "/nowhere", "threads": 1.5}', "open threads", "no whole number"),
        (b'{"do": "open", "bundle": "/nowhere", "weight_cache": "disk"}', "weight_cache", "disk"),
        (b'{"do": "open", "bundle": "/nowhere", "backend": "npu"}', "backend", "npu"),
        (b'{"do": "open", "bundle": "/nowhere", "activations": "fp8"}', "activations", "fp8"),
        (b'{"do": "open", "bundle": "/nowhere", "activations": "fp16"}', "activations", "fp16 on the CPU"),
        (b"[" * 40 + b"]" * 40, "byte 16", "byte 0x5b"),
    ],
)
def test_a_wrong_command_has_one_error_and_the_next_is_read(
    line: bytes, place: str, found: str, native: NativeRunner
) -> None:
    native.send(line + b"\n")
    error = native.line()["error"]
    assert isinstance(error, dict) and (error["kind"], error["place"], error["found"]) == ("usage", place, found)
    assert native.ask("stats")["ok"] == "stats"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "place", "found"),
    [
        ({"do": "decode", "ids": []}, "decode ids", "no tokens"),
        ({"do": "decode", "ids": [3328]}, "decode ids[0]", "3328"),
        ({"do": "prefill", "ids": [1], "random": 2}, "prefill", "both ids and random"),
        ({"do": "prefill", "ids": [1] * 5000}, "conversation", "5000 tokens"),
        ({"do": "prefill", "ids": [1], "media": [{"key": "a", "at": 0}]}, "medium a", "no such image or sound"),
        ({"do": "truncate", "position": 1}, "position", "1"),
        ({"do": "size", "name": "huge"}, "size", "huge"),
        ({"do": "generate", "ids": [1], "top_p": 0}, "generate top_p", "0"),
        ({"do": "generate", "ids": [1], "temperature": "hot"}, "generate temperature", "no number"),
        ({"do": "generate", "ids": [1], "seed": 2**63}, "JSON", str(2**63)),
        ({"do": "decode", "ids": [1], "logits": 1}, "decode logits", "another value"),
        ({"do": "forget", "key": "a"}, "medium a", "no such image or sound"),
        ({"do": "open", "bundle": "/"}, "open", "a bundle is open"),
    ],
)
def test_a_command_that_the_bundle_cannot_do_changes_nothing(
    fields: dict[str, object], place: str, found: str, shared: NativeRunner
) -> None:
    shared.ok("truncate", position=0)
    before = shared.logits([2, 3])
    shared.ok("truncate", position=0)
    error = shared.ask(str(fields["do"]), **{key: fields[key] for key in fields if key != "do"})["error"]
    assert isinstance(error, dict) and (error["place"], error["found"]) == (place, found)
    assert (shared.logits([2, 3]) == before).all()


def test_bytes_of_a_refused_image_are_not_taken_for_commands(native: NativeRunner) -> None:
    assert "error" in native.ask("image", b'{"do"\n', key="a", bytes=6)
    assert native.ask("stats")["ok"] == "stats"


def test_without_the_number_of_bytes_the_program_ends(native: NativeRunner) -> None:
    assert "error" in native.ask("image", key="a")
    assert native.end() == 2


def test_a_switch_of_an_image_that_is_neither_true_nor_false_is_refused(shared: NativeRunner) -> None:
    error = shared.ask("image", b"123", key="a", bytes=3, rows="true")["error"]
    assert isinstance(error, dict) and (error["place"], error["wanted"]) == ("image rows", "true or false")


@pytest.mark.slow
def test_input_that_ends_within_a_line_is_an_error_and_ends_a_generation(
    tiny_bundle: Path, native: NativeRunner
) -> None:
    native.ok("open", bundle=str(tiny_bundle), threads=1)
    native.ask("generate", ids=[2, 3], stop=[])
    native.send(b'{"do": "sta')
    output = native.rest()
    assert (output[-2]["ending"], native.end()) == ("interrupted", 2)
    error = output[-1]["error"]
    assert isinstance(error, dict) and error["found"] == "the end of input in the middle of a line"


def test_bytes_that_are_missing_at_the_end_are_an_error_and_what_came_of_them_is_no_command(
    native: NativeRunner,
) -> None:
    native.send(b'{"do": "image", "key": "a", "bytes": 100}\n{"do": "stats"}\n')
    (answer,) = native.rest()
    assert isinstance(answer["error"], dict) and answer["error"]["wanted"] == "100 bytes after the line"
    assert native.end() == 2


def test_answers_that_nobody_reads_have_an_exit_code_of_their_own() -> None:
    command = [runner_path(), litert_path()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"\n" and process.stdout.readline().startswith(b'{"ok": "start"')
        process.stdout.close()
        process.stdin.write(b'{"do": "stats"}\n')
        process.stdin.flush()
        assert process.wait(PATIENCE_S) == 3


def test_texts_of_an_answer_are_utf_8_even_where_a_path_is_not() -> None:
    done = subprocess.run([runner_path(), b"/no\xff\xc3\xa4\t/\xe2\x82"], stdout=subprocess.PIPE, check=False)
    assert json.loads(done.stdout.decode())["error"]["file"] == "/no\xff\xe4\t/\xe2\x82" and "ä".encode() in done.stdout


def test_a_library_without_the_functions_is_refused_by_name() -> None:
    with NativeRunner([runner_path(), "libz.so.1"]) as native:
        error = native.start["error"]
        assert isinstance(error, dict) and error["kind"] == "machine" and "LiteRt" in str(error["found"])
        assert native.end() == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_decoder.tflite", "embedder.tflite", "ple_00001.bin"])
def test_a_file_that_differs_from_the_manifest_is_named(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    data = bytearray((broken / name).read_bytes())
    data[5000] ^= 1
    (broken / name).write_bytes(data)
    with NativeRunner([runner_path(), litert_path()]) as native:
        error = native.ask("open", bundle=str(broken))["error"]
        assert isinstance(error, dict) and error["kind"] == "bundle" and error["file"] == str(broken / name)
        assert "sha256" in str(error["found"])


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        (b'"kind": "audio"', b'"kind": "sound"', "groups audio kind"),
        (b'"context": 4096', b'"context": 0', "groups text runtime context"),
        (b'"default_size": "large"', b'"default_size": "small"', "default_size"),
        (b'"generator": "', b'"generator": "x', "sha256"),
        (b'"files": [', b'"files": ["a", ', "groups audio files"),
        (b'gemma-edge-bundle/3', b'gemma-edge-bundle/9', "format"),
    ],
)  # fmt: skip
def test_a_changed_manifest_is_refused(old: bytes, new: bytes, place: str, tiny_bundle: Path, tmp_path: Path) -> None:
    data = (tiny_bundle / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(data.replace(old, new, 1))
    with NativeRunner([runner_path(), litert_path()]) as native:
        error = native.ask("open", bundle=str(tmp_path))["error"]
        assert isinstance(error, dict) and error["file"] == str(tmp_path / "manifest.json")
        assert (error["kind"], error["place"]) == ("bundle", place)


@pytest.mark.slow
def test_a_row_that_was_damaged_after_opening_is_found_when_it_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    with NativeRunner([runner_path(), litert_path()]) as native:
        native.ok("open", bundle=str(broken), threads=1)
        with open(broken / "ple_00000.bin", "r+b") as file:
            file.seek(4096 + 7 * 1024 + 3)
            file.write(b"\xa5\x5a\xa5")
        error = native.ask("prefill", ids=[2, 7, 3])["error"]
        assert isinstance(error, dict) and error["place"] == "row of token 7" and error["found"] == "damaged bytes"
        native.ok("prefill", ids=[2, 3])
