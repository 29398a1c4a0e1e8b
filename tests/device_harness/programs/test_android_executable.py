"""The Android executable of bundle_runner with Google's library for Android: it computes what the session does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from android_program import android_command, android_runner
from logits import divergence
from native_runner import NativeRunner
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import Span, read_image
from toolkit.runtime.session import Session, SessionSettings

pytestmark = pytest.mark.full

IDS = [2, *(int(token) for token in np.random.default_rng(0).integers(0, 3000, 19))]


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "max"])
def test_it_computes_the_logits_of_the_session_but_for_rounding(cpu: str, tmp_path: Path) -> None:
    """In float32 to 1e-5; in int8 with other kernels, of dot products and of matrix products, the same likely token."""
    runner, library = android_runner()
    is_float = cpu == "cortex-a53"
    path = tmp_path / "bundle"
    recipes = {"text": "f32"} if is_float else {}
    convert(ConvertRequest(EXAMPLE, path, sizes=("large", "small"), context=128, recipes=recipes), gate=None)
    with Session(Bundle(path), SessionSettings(threads=1, weight_cache="memory")) as session:
        expected = [session.feed(IDS)]
        session.use("small")
        expected.append(session.feed(IDS[:3]))
        session.truncate(5)
        expected.append(session.feed(IDS[5:]))
    cache, found, states = {"folder": str(tmp_path / "cache"), "runtime": "android"}, [], []
    for _ in range(2):  # with a file of packed weights that the first writes and the second maps
        with NativeRunner([*android_command(cpu, tmp_path), runner, library]) as native:
            states.append(native.ok("open", bundle=str(path), threads=1, weight_cache=cache)["weight_cache"])
            found = [native.logits(IDS)]
            native.ok("size", name="small")
            found.append(native.logits(IDS[:3]))
            native.ok("truncate", position=5)
            found.append(native.logits(IDS[5:]))
    assert states == ["built", "kept"]
    for one, other in zip(expected, found, strict=True):
        assert one.argmax() == other.argmax() and divergence(one, other) < 1e-3
        assert not is_float or abs(one - other).max() < 1e-5 * abs(one).max()


def test_it_sees_images(tmp_path: Path) -> None:
    runner, library = android_runner()
    path = tmp_path / "bundle"
    convert(ConvertRequest(EXAMPLE, path, context=512, recipes={"text": "f32", "vision": "f32"}), gate=None)
    record = Bundle(path).manifest.vision
    assert record is not None
    image = read_image(EXAMPLE / "samples" / "red-circle.png", record)
    ids = [2, record.begin_token_id, *[record.soft_token_id] * record.soft_tokens, record.end_token_id, 9]
    with Session(Bundle(path), SessionSettings(threads=1, weight_cache="memory")) as session:
        session.rewind_to(ids, [Span(2, record.soft_tokens, image)])
        expected = session.feed(ids)
    with NativeRunner([*android_command("cortex-a53", tmp_path), runner, library]) as native:
        native.ok("open", bundle=str(path), threads=1)
        pixels = image.values.astype(np.uint8).tobytes()
        native.ok("image", pixels, key=image.key, bytes=len(pixels))
        native.ok("prefill", ids=ids[:-1], media=[{"key": image.key, "at": 2}])
        found = native.floats(native.ok("decode", ids=ids[-1:], logits=True))
    assert abs(found - expected).max() < 1e-5 * abs(expected).max()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"/system/bin/linker64\0", b"/system/bin/linker46\0", "no program for /system/bin/linker64"),
        (b"\0libdl.so\0", b"\0liblx.so\0", "library not found: liblx.so"),
        (b"\0posix_fadvise\0", b"\0posix_fedvise\0", "cannot locate symbol posix_fedvise"),
    ],
)
def test_the_stand_in_refuses_what_androids_linker_refuses(old: bytes, new: bytes, said: str, tmp_path: Path) -> None:
    runner, library = android_runner()
    data = runner.read_bytes()
    assert data.count(old) == 1
    (tmp_path / "program").write_bytes(data.replace(old, new))
    command = [*android_command("cortex-a53", tmp_path), str(tmp_path / "program"), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 127 and said in done.stderr
