"""Towers on demand: what a request does not need is never touched, and what it needed is gone afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.manifest import TOWER_FILES
from toolkit.media.mel import num_frames
from toolkit.runtime import towers as towers_module
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import Medium, Prompt, build_prompt, longest_seconds, read_image, read_sound
from toolkit.runtime.memory import page_cache_bytes
from toolkit.runtime.session import Session, SessionSettings

PICTURE, SOUND = "<image_soft_token>", "<audio_soft_token>"


@pytest.fixture
def bundle(multimodal_bundle: Path) -> Bundle:
    return Bundle(multimodal_bundle)


@pytest.fixture
def session(bundle: Bundle, tmp_path: Path) -> Iterator[Session]:
    with Session(bundle, SessionSettings(threads=1, weight_cache=tmp_path / "packed")) as session:
        yield session


def image(bundle: Bundle, seed: int = 0) -> Medium:
    assert bundle.manifest.vision is not None
    path = bundle.path.parent / f"image_{seed}.png"
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return read_image(path, bundle.manifest.vision)


def sound(bundle: Bundle, seconds: float = 0.3) -> tuple[Medium, ...]:
    assert bundle.manifest.audio is not None
    path = bundle.path.parent / f"sound_{seconds}.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16_000)), 16_000)
    return read_sound(path, bundle.manifest.audio)


def prompt(bundle: Bundle, text: str, *media: Medium) -> Prompt:
    return build_prompt(bundle, bundle.tokenizer(), text, media).beginning_with(2)


def answer(session: Session, asked: Prompt) -> np.ndarray:
    session.rewind_to(asked.ids, asked.spans)
    return session.feed(asked.ids[session.position :])


def tower_files(bundle: Bundle, *groups: str) -> list[Path]:
    return [bundle.path / name for group in groups for name in TOWER_FILES[group]]


def forget_pages(paths: list[Path]) -> None:
    """Out of the kernel's cache; skips where the file system keeps what it has."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(page_cache_bytes(path) for path in paths):
        pytest.skip("this file system does not let go of cached pages")


def mapped_or_open(paths: list[Path]) -> list[str]:
    """What of the files this process maps or holds open."""
    held = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            held.append(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    return [str(path) for path in paths if str(path) in held]


# --- conditional loading, shown by page counts ------------------------------------------------------------------------


def test_text_reads_no_page_of_the_towers(bundle: Bundle, tmp_path: Path) -> None:
    files = tower_files(bundle, "vision", "audio")
    forget_pages(files)
    with Session(bundle, SessionSettings(threads=1, weight_cache=tmp_path / "packed")) as session:
        answer(session, prompt(bundle, "Once upon a time"))
        session.memory()
        assert session.towers.loaded == set()
    assert [page_cache_bytes(path) for path in files] == [0, 0, 0, 0]


def test_an_image_reads_the_pages_of_vision_and_none_of_audio(session: Session) -> None:
    vision, audio = (tower_files(session.bundle, group) for group in ("vision", "audio"))
    forget_pages([*vision, *audio])
    answer(session, prompt(session.bundle, f"See {PICTURE}", image(session.bundle)))
    assert session.towers.loaded == {"vision"}
    assert all(page_cache_bytes(path) for path in vision)
    assert [page_cache_bytes(path) for path in audio] == [0, 0]


def test_text_needs_no_file_of_the_towers(multimodal_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(multimodal_bundle, tmp_path / "bundle"))
    for path in tower_files(bundle, "vision", "audio"):
        path.unlink()
    with Session(bundle, SessionSettings(threads=1, weight_cache="memory")) as session:
        answer(session, prompt(bundle, "Once upon a time"))
        with pytest.raises(BundleError, match="vision_encoder"):
            answer(session, prompt(bundle, PICTURE, image(session.bundle)))


def test_a_tower_is_gone_when_its_work_is_done(session: Session) -> None:
    seen: list[tuple[str, list[str]]] = []
    files = tower_files(session.bundle, "vision", "audio")
    session.towers._ended = lambda group: seen.append((group, mapped_or_open(files)))
    answer(session, prompt(session.bundle, f"{PICTURE} {SOUND}", image(session.bundle), *sound(session.bundle)))
    assert seen == [("vision", []), ("audio", [])], "one after the other, never both"
    packed = [
        session._backend.kept_file(session.bundle.described_file(path.name), session.backend_options) for path in files
    ]
    assert mapped_or_open([path for path in packed if path is not None]) == []


def test_a_tower_that_fails_is_gone_too(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(towers_module._Vision, "embed", fail)
    with pytest.raises(RuntimeError, match="no"):
        answer(session, prompt(session.bundle, PICTURE, image(session.bundle)))
    assert mapped_or_open(tower_files(session.bundle, "vision")) == []
    assert np.isfinite(answer(session, prompt(session.bundle, "Once"))).all()


# --- what a conversation keeps ----------------------------------------------------------------------------------------


def test_the_same_image_is_embedded_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(session.towers, "_ended", opened.append)
    one = image(session.bundle)
    twice = prompt(session.bundle, f"{PICTURE} and {PICTURE}", one, one)
    first = answer(session, twice)
    session.truncate(0)
    again = answer(session, twice)
    np.testing.assert_array_equal(first, again)
    assert opened == ["vision", "vision"], "its own tokens, which are not kept, the second time"


def test_another_image_at_the_same_place_is_another_conversation(session: Session) -> None:
    bundle = session.bundle
    asked = [prompt(bundle, f"Once {PICTURE} upon", image(bundle, seed)) for seed in (0, 1)]
    assert asked[0].ids == asked[1].ids
    first = answer(session, asked[0])
    start = asked[0].spans[0].start
    assert session.rewind_to(asked[1].ids, asked[1].spans) == start
    second = session.feed(asked[1].ids[start:])
    assert np.abs(first - second).max() > 1e-3
    session.truncate(0)
    np.testing.assert_allclose(answer(session, asked[1]), second, atol=1e-4)


def test_a_longer_conversation_goes_on_behind_its_images(session: Session) -> None:
    bundle, one = session.bundle, image(session.bundle)
    answer(session, prompt(bundle, f"See {PICTURE}", one))
    longer = prompt(bundle, f"See {PICTURE} and hear {SOUND}", one, *sound(bundle))
    kept = session.rewind_to(longer.ids, longer.spans)
    assert kept > longer.spans[0].end
    session.feed(longer.ids[kept:])
    assert session.towers.loaded == {"vision", "audio"}


def test_kept_embeddings_are_bounded(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers_module, "CACHE_BYTES", 16 * 32 * 4 * 2)
    for seed in range(5):
        session.truncate(0)
        answer(session, prompt(session.bundle, PICTURE, image(session.bundle, seed)))
    assert len(session.towers._cache) == 2


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_long_sound_becomes_pieces_of_about_equal_length(bundle: Bundle) -> None:
    audio = bundle.manifest.audio
    assert audio is not None and longest_seconds(audio) == 3.232
    pieces = sound(bundle, 7.0)
    assert len(pieces) == 3
    assert {len(piece.values) for piece in pieces} == {num_frames(7 * 16_000 // 3)}
    asked = prompt(bundle, SOUND * 3, *pieces)
    assert [span.count for span in asked.spans] == [20, 20, 20]
    assert [span.medium for span in asked.spans] == list(pieces)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no place", "found 0 placeholders"),
        (PICTURE * 2, "found 2 placeholders"),
        (f"{PICTURE}<end_of_image>", "'<end_of_image>', which stands for an image or a sound"),
        (f"{PICTURE}{SOUND}", "sounds: found 1 placeholders"),
    ],
)
def test_a_prompt_has_one_place_for_each_medium(bundle: Bundle, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        prompt(bundle, text, image(bundle))
