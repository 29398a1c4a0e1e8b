"""Exports with towers in Google's own engine: the tokens that transformers gives to images and sounds."""

from __future__ import annotations

import functools
import io
import shutil
import struct
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import multimodal_oracle as oracle
import numpy as np
import pytest
from litert_lm_engine import Content, LmEngine, Picture, Recording, open_engine
from numpy.typing import NDArray
from PIL import Image

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.bench.memory import group_memory
from device_harness.runners.litert_lm.model import EngineModel
from toolkit.base.elements import ElementName
from toolkit.base.procfs import parse_smaps
from toolkit.check import check
from toolkit.litertlm import schema, tables
from toolkit.litertlm.check_towers import AUDIO, VISION
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.litertlm.reader import read_litertlm
from toolkit.media.prompt import IMAGE, SOUND, expand_placeholders
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import build_prompt, read_image, read_sound
from toolkit.runtime.session import Session, SessionSettings

pytestmark = [pytest.mark.lm, pytest.mark.reference]

SEED = 4  # of those tried, the one whose answers differ most between pictures and between sounds
NEW_TOKENS = 12
CLEAR_LEAD = 0.005
"""Logits that each token must be ahead of the next: float32 rounding moves those of this model by about 0.0001."""

F32 = NDArray[np.float32]


@functools.cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="gemma-edge-lm-media-"))


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    shutil.rmtree(scratch(), ignore_errors=True)
    scratch.cache_clear()


@functools.cache
def checkpoint() -> Path:
    return oracle.make_checkpoint(scratch() / "checkpoint", seed=SEED)


@functools.cache
def bundle(quant: ElementName = "f32") -> Path:
    path = scratch() / quant
    roles = ("text", "ple", "vision", "audio")
    request = ConvertRequest(checkpoint(), path, dict.fromkeys(roles, quant), context=256, prefill_sizes=(8, 64))
    convert(request, gate=None)
    return path


@functools.cache
def export_of(options: ExportOptions, quant: str = "f32") -> Path:
    path = scratch() / f"{quant}-{options.model_type}-{'-'.join(options.groups or ())}.litertlm"
    export_litertlm(bundle(quant), path, options)
    return path


@pytest.fixture(scope="module")
def engine() -> Iterator[LmEngine]:
    with open_engine(export_of(ExportOptions()), towers=True) as loaded:
        yield loaded


def pixels(seed: int) -> NDArray[np.uint8]:
    """A smooth picture of the tower's own size, so that no resizing comes between."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    size = (oracle.IMAGE_SIZE, oracle.IMAGE_SIZE)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def samples(seed: int, count: int) -> NDArray[np.int16]:
    """Chords that swell and fade, with some noise."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(count) / 16_000
    tones = [np.sin(2 * np.pi * hertz * seconds) for hertz in rng.uniform(100, 3000, 4)]
    chord = sum(0.15 * tone * np.sin(3 * n * seconds) ** 2 for n, tone in enumerate(tones, 1))
    wave: NDArray[np.float64] = np.clip(chord + 0.01 * rng.standard_normal(count), -1, 1)
    return np.round(32767 * wave).astype(np.int16)


def picture(seed: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return Picture(file.getvalue())


def recording(seed: int, count: int) -> Recording:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16_000, count, "NONE", ""))
        sound.writeframes(samples(seed, count).astype("<i2").tobytes())
    return Recording(file.getvalue())


@dataclass(frozen=True)
class Prompt:
    """One message; pictures and sounds by their seeds, sounds with their length."""

    name: str
    parts: tuple[str | int | tuple[int, int], ...]

    def __str__(self) -> str:
        return self.name

    @property
    def pictures(self) -> list[F32]:
        return [(pixels(part) / 255).astype(np.float32) for part in self.parts if isinstance(part, int)]

    @property
    def sounds(self) -> list[F32]:
        return [(samples(*part) / 32768).astype(np.float32) for part in self.parts if isinstance(part, tuple)]

    def contents(self) -> list[Content]:
        """As the engine takes it."""
        return [
            part if isinstance(part, str) else picture(part) if isinstance(part, int) else recording(*part)
            for part in self.parts
        ]

    def text(self) -> str:
        """In the model's chat template, with a placeholder for each picture and sound."""
        written = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": KINDS[type(part)]}
            for part in self.parts
        ]
        template = (checkpoint() / "chat_template.jinja").read_text()
        messages = [{"role": "user", "content": written}]
        rendered: str = jinja2.Template(template).render(
            messages=messages, add_generation_prompt=True, bos_token="<bos>"
        )
        return rendered

    def ids(self) -> list[int]:
        """As transformers' processor tokenises it."""
        image = replace(IMAGE, count=oracle.TOKENS["vision_soft_tokens_per_image"])
        sound = replace(SOUND, count=oracle.TOKENS["audio_soft_tokens_per_image"])
        text = expand_placeholders(self.text(), len(self.pictures), len(self.sounds), image=image, sound=sound)
        return Bundle(bundle()).tokenizer().encode(text, special=False)


KINDS = {int: "image", tuple: "audio"}

SECOND = 16_000
PROMPTS = (
    Prompt("an image", ("What is", 0, "in this picture?")),
    Prompt("another image", ("What is", 1, "in this picture?")),
    Prompt("an image alone", (2,)),
    Prompt("two images side by side", ("Which of", 0, 1, "is the larger one?")),
    Prompt("a sound", ("What do you", (0, SECOND), "hear?")),
    Prompt("another sound", ("What do you", (1, SECOND), "hear?")),
    Prompt("the longest sound", ("What do you", (1, 3 * SECOND + 3200), "hear?")),
    Prompt("a sound shorter than its places", ("What do you", (1, 1600), "hear?")),
    Prompt("an image and a sound", ("Look at", 0, "and listen to", (1, 2 * SECOND), "now.")),
    Prompt("a sound behind an image", (0, (0, 2 * SECOND), "What is this?")),
    Prompt("an image behind two sounds", ("Here are", (0, 4800), (1, 8000), 2)),
)


@functools.cache
def expected(prompt: Prompt) -> tuple[int, ...]:
    answer, lead = oracle.hf_greedy(
        checkpoint(), prompt.ids(), NEW_TOKENS, images=prompt.pictures, sounds=prompt.sounds
    )
    assert lead > CLEAR_LEAD, "rounding may decide: choose another prompt"
    return tuple(answer)


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_the_engine_answers_as_transformers_does(engine: LmEngine, prompt: Prompt) -> None:
    answer, positions = engine.converse([prompt.contents()], NEW_TOKENS)
    assert answer == "".join(engine.pieces(list(expected(prompt))))
    assert positions == len(prompt.ids()) + len(expected(prompt))


def test_what_is_seen_and_heard_decides_the_answers() -> None:
    by_name = {prompt.name: expected(prompt) for prompt in PROMPTS}
    assert by_name["an image"] != by_name["another image"]
    assert by_name["a sound"] != by_name["another sound"]
    assert len(set(by_name.values())) > len(PROMPTS) / 2


@pytest.mark.parametrize(("seconds", "times"), [(0.02, 1), (3.3, 2), (7, 3)])
def test_a_sound_fills_its_places_once_for_each_piece_that_the_encoder_takes(
    engine: LmEngine, seconds: float, times: int
) -> None:
    prompt = Prompt("a sound", ("What do you", (0, int(SECOND * seconds)), "hear?"))
    _, positions = engine.converse([prompt.contents()], 1)
    assert positions == len(prompt.ids()) + (times - 1) * oracle.TOKENS["audio_soft_tokens_per_image"] + 1


# --- quantised -------------------------------------------------------------------------------------------------------


def session_greedy(session: Session, prompt: Prompt) -> tuple[list[int], float]:
    """What our own session answers, and the smallest lead of a token over the next."""
    bundle = session.bundle
    vision, audio = bundle.manifest.vision, bundle.manifest.audio
    assert vision is not None and audio is not None
    media = [
        medium
        for part in prompt.contents()
        if not isinstance(part, str)
        for medium in ([read_image(part.data, vision)] if isinstance(part, Picture) else read_sound(part.data, audio))
    ]
    asked = build_prompt(bundle, bundle.tokenizer(), prompt.text(), media)
    session.rewind_to(asked.ids, asked.spans)
    logits, answer, lead = session.feed(asked.ids[session.position :]), list[int](), float("inf")
    while len(answer) < NEW_TOKENS and (token := int(np.argmax(logits))) not in session.text.stop_token_ids:
        next_best, best = np.sort(logits)[-2:]
        lead = min(lead, float(best - next_best))
        answer.append(token)
        logits = session.decode(token)
    return answer, lead


@pytest.mark.full
def test_an_int8_export_answers_as_our_session_does() -> None:
    """Both round activations to 8 bits, so the last bit of a mel frame moves logits by hundredths here."""
    with Session(Bundle(bundle("int8")), SessionSettings(threads=1, weight_cache="memory")) as session:
        answers = {prompt: session_greedy(session, prompt) for prompt in PROMPTS}
    clear = {prompt: answer for prompt, (answer, lead) in answers.items() if lead > 10 * CLEAR_LEAD}
    assert len(clear) > len(PROMPTS) / 2
    with open_engine(export_of(ExportOptions(), "int8"), towers=True) as engine:
        for prompt, answer in clear.items():
            assert engine.converse([prompt.contents()], NEW_TOKENS)[0] == "".join(engine.pieces(answer)), prompt


# --- the engine's own way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma3n() -> Iterator[LmEngine]:
    with open_engine(export_of(ExportOptions(model_type="gemma3n")), towers=True) as loaded:
        yield loaded


@pytest.mark.parametrize("prompt", PROMPTS[:3], ids=str)
def test_gemma3n_sees_an_image_as_transformers_does(gemma3n: LmEngine, prompt: Prompt) -> None:
    answer, positions = gemma3n.converse([prompt.contents()], NEW_TOKENS)
    assert answer == "".join(gemma3n.pieces(list(expected(prompt))))
    assert positions == len(prompt.ids()) + len(expected(prompt))


def test_gemma3n_writes_the_newlines_between_two_images_as_two_tokens(gemma3n: LmEngine) -> None:
    prompt = next(prompt for prompt in PROMPTS if prompt.name == "two images side by side")
    _, positions = gemma3n.converse([prompt.contents()], 1)
    assert positions == len(prompt.ids()) + 1 + 1


@pytest.mark.parametrize(("frames", "rows"), [(8, 1), (97, 7), (317, 20)])
def test_gemma3n_gives_a_sound_as_many_rows_as_it_has_tokens(gemma3n: LmEngine, frames: int, rows: int) -> None:
    prompt = Prompt("a sound", ("What do you", (0, 512 + 160 * (frames - 1)), "hear?"))
    _, positions = gemma3n.converse([prompt.contents()], 1)
    assert positions == len(prompt.ids()) - oracle.TOKENS["audio_soft_tokens_per_image"] + rows + 1


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(groups=("text",))], ids=["all groups", "text"])
def test_text_needs_no_tower(options: ExportOptions) -> None:
    prompt = Prompt("text", ("Tell me of the sea.",))
    with open_engine(export_of(options)) as words:
        answer, positions = words.converse([prompt.contents()], NEW_TOKENS)
        assert answer == "".join(words.pieces(list(expected(prompt))))
        assert positions == len(prompt.ids()) + len(expected(prompt))
        with pytest.raises(RuntimeError, match="send_message failed"):
            words.converse([PROMPTS[0].contents()], NEW_TOKENS)


def mapped_sections(path: Path) -> set[str]:
    """The graphs of a file that lie in this process's memory map, if only in part."""
    with open(path, "rb") as file:
        (end,) = struct.unpack_from("<Q", file.read(32), 24)
        sections = tables.unpack_container_metadata(file.read(end - 32), path.name).sections
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, offset, _, _, *name = line.split(maxsplit=5)
        if name == [str(path)]:
            first, last = (int(address, 16) for address in addresses.split("-"))
            begin = int(offset, 16)
            found |= {s.label for s in sections if begin < s.end and s.begin < begin + last - first}
    return {label for label in found if label.startswith("tf_lite_")}


def memory_groups(path: Path) -> set[str]:
    """The groups that a benchmark finds in this process's memory."""
    mappings = parse_smaps(Path("/proc/self/smaps").read_text())
    groups = EngineModel(read_litertlm(path), None).groups(str(path))
    return {name for name in group_memory(mappings, groups, ()) if name in groups}


def test_a_tower_is_mapped_only_if_its_backend_was_given() -> None:
    path = Path(shutil.copy(export_of(ExportOptions()), scratch() / "mapped.litertlm"))  # other engines map that one
    # The engine takes the small model for the end of a sound to be one of the embedder's.
    text = {schema.EMBEDDER, schema.PREFILL_DECODE, schema.PER_LAYER_EMBEDDER, schema.END_OF_AUDIO}
    for towers in (False, True):
        with open_engine(path, towers=towers) as engine:
            engine.chat("Tell me of the sea.", 1)
            assert mapped_sections(path) == (text | {*VISION, *AUDIO} if towers else text)
            known = {"token_embedding", "text", "per_layer_embedding", "audio", "model"}
            assert memory_groups(path) == (known | {"vision"} if towers else known)


def test_exports_of_all_groups_have_no_fault() -> None:
    for options in (ExportOptions(), ExportOptions(model_type="gemma3n"), ExportOptions(groups=("text",))):
        assert check(export_of(options)) == []
