"""Pictures of every kind as pixels: transformers' where its are right, and one error for what is no picture."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from toolkit.base.errors import ToolkitError, UsageError
from toolkit.media.image import IMAGE_SIZE, load_levels
from toolkit.media.limits import MAX_PIXELS
from toolkit.media.pixels import pixels
from toolkit.media.source import MediaSource

SIZE = 48
ORIENTATION = 0x0112
LOSSLESS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}}

# What other tests have left to the collector is not of these.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def load_image(source: MediaSource, size: int = IMAGE_SIZE) -> NDArray[np.float32]:
    """What the tower sees: f32[1, size, size, 3], RGB in [0, 1]."""
    return pixels(load_levels(source, size))


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise, different in every corner."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    noise = np.random.default_rng(width * 4096 + height).normal(0, 20, (height, width, 3))
    colours = np.stack([255 * x, 255 * y, 128 + 100 * np.sin(9 * x * y)], axis=-1) + noise
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def transformers_pixels(path: Path, size: int) -> NDArray[np.float32]:
    """What the processor of google/gemma-3n-E2B-it makes of a file, with its PIL backend: [1, size, size, 3]."""
    pytest.importorskip("transformers")
    from transformers.image_utils import load_image as load
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    side = {"height": size, "width": size}
    processor = SiglipImageProcessorPil(size=side, resample=2, do_normalize=False, do_convert_rgb=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = processor(load(str(path)), return_tensors="np")["pixel_values"]
    return np.asarray(pixels, np.float32).transpose(0, 2, 3, 1)


FILES = {
    "PNG": encoded(photo(90, 61), "PNG"),
    "one pixel": encoded(photo(1, 1), "PNG"),
    "one row": encoded(photo(700, 1), "PNG"),
    "smaller": encoded(photo(17, 30), "BMP"),
    "black and white": encoded(photo(90, 61, "1"), "PNG"),
    "grey": encoded(photo(90, 61, "L"), "PNG"),
    "grey with alpha": encoded(photo(90, 61, "LA"), "PNG"),
    "palette": encoded(photo(90, 61, "P"), "PNG"),
    "transparent palette": encoded(photo(90, 61, "P"), "PNG", transparency=bytes(range(256))),
    "transparent colour": encoded(photo(90, 61, "P"), "GIF", transparency=3),
    "alpha": encoded(photo(90, 61, "RGBA"), "PNG"),
    "JPEG": encoded(photo(90, 61), "JPEG"),
    "CMYK": encoded(photo(90, 61, "CMYK"), "JPEG"),
    "YCbCr": encoded(photo(90, 61, "YCbCr"), "TIFF"),
    "Lab": encoded(photo(90, 61, "LAB"), "TIFF"),
    "WebP": encoded(photo(90, 61), "WEBP"),
    "JPEG 2000": encoded(photo(90, 61), "JPEG2000"),
    "animated GIF": encoded(photo(90, 61), "GIF", save_all=True, append_images=[photo(90, 61).rotate(90)]),
    "animated WebP": encoded(photo(90, 61), "WEBP", save_all=True, append_images=[photo(90, 61).rotate(90)]),
    "two pictures": encoded(photo(90, 61), "MPO", save_all=True, append_images=[photo(40, 40)]),
    "float of Pillow's range": encoded(Image.fromarray(np.asarray(photo(90, 61, "L"), np.float32)), "TIFF"),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", FILES)
def test_pixels_are_transformers(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(FILES[name])
    assert np.array_equal(load_image(FILES[name], SIZE), transformers_pixels(tmp_path / "file", SIZE))


@pytest.mark.reference
def test_pixels_of_a_photo_at_full_size_are_transformers(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(photo(1600, 900), "JPEG"))
    pixels = load_image(path)
    assert pixels.shape == (1, 768, 768, 3) and pixels.dtype == np.float32
    assert np.array_equal(pixels, transformers_pixels(path, 768))


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_applied_as_transformers_does(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "file"
    path.write_bytes(encoded(photo(60, 41), kind, exif=exif))
    assert np.array_equal(load_image(path, SIZE), transformers_pixels(path, SIZE))


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [(1, "abcd"), (2, "badc"), (3, "dcba"), (4, "cdab"), (5, "acbd"), (6, "bdac"), (7, "dbca"), (8, "cadb")],
)
def test_a_picture_of_each_orientation_stands_upright(orientation: int, stored: str) -> None:
    """The picture is ab over cd; a camera stores its pixels in another order, and says which."""
    pixels = np.array([50 * "abcd".index(letter) + 50 for letter in stored], np.uint8).reshape(2, 2)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    loaded = load_image(encoded(Image.fromarray(pixels), "PNG", exif=exif), 2)
    assert np.rint(loaded[0, :, :, 0] * 255).ravel().tolist() == [50, 100, 150, 200]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_greys_keep_their_range(kind: str) -> None:
    levels = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    loaded = load_image(encoded(Image.fromarray(levels), kind), 16)
    assert np.array_equal(np.rint(loaded[0] * 255), np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


def test_big_endian_sixteen_bit_greys_keep_their_range() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 0x0400, 0xFFFF))
    assert np.rint(load_image(encoded(image, "TIFF"), 2)[0, 0, :, 0] * 255).tolist() == [4, 255]


def test_float_pixels_up_to_one_fill_the_range() -> None:
    image = Image.fromarray(np.array([[0, 0.5], [0.25, 1]], np.float32))
    assert np.rint(load_image(encoded(image, "TIFF"), 2)[0, :, :, 1] * 255).tolist() == [[0, 128], [64, 255]]


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **LOSSLESS.get(kind, {}))
        assert np.array_equal(load_image(data, 4)[0, 2, 2], [1, 0, 0]), kind


def test_a_path_a_name_and_bytes_are_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(FILES["PNG"])
    loaded = load_image(FILES["PNG"], SIZE)
    assert np.array_equal(load_image(path, SIZE), loaded)
    assert np.array_equal(load_image(str(path), SIZE), loaded)
    assert loaded.min() >= 0 and loaded.max() <= 1


def png_of(width: int, height: int) -> bytes:
    """A header that promises pixels, and hardly any behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 20_000, 2_000_000_000])
def test_a_huge_picture_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(UsageError, match=r"pixels.*wanted at most 120,000,000 pixels; scale it down"):
        load_image(png_of(side, side))


@pytest.mark.parametrize(("width", "height"), [(1, 119_999_999), (100, 1_000_000), (11, 1_000_000)])
def test_a_narrow_picture_of_many_rows_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    """Scaling makes each row 768 pixels wide first: one of 233 kB took over 3 GB."""
    with pytest.raises(UsageError, match=r"bytes to decode and scale.*wanted at most 1,073,741,824; scale it down"):
        load_levels(png_of(width, height))


def test_a_picture_of_a_phone_is_within_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened(Exception):
        pass

    def load(image: Image.Image) -> None:
        raise Opened

    monkeypatch.setattr("toolkit.media.image._to_rgb", load)
    for width, height in ((12_000, 9_000), (9_000, 12_000), (30_000, 3_000)):
        with pytest.raises(UsageError, match="cannot be decoded"):  # it has no pixels, but is opened
            load_levels(png_of(width, height))


def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    for content, found in ((b"", "an empty file"), (b"hello, world", "not an image of a known format")):
        path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            load_image(path)
        remedy = "give a whole image in a format such as PNG, JPEG, WebP, GIF, BMP or TIFF"
        assert str(caught.value) == f"{path}: {found}; {remedy}"


def test_bytes_that_are_no_picture_are_refused_by_their_size() -> None:
    with pytest.raises(UsageError, match=r"^image of 1,000 bytes: not an image"):
        load_image(bytes(1000))


def test_no_program_is_run_for_a_picture() -> None:
    """Pillow hands EPS to Ghostscript."""
    with pytest.raises(UsageError, match="not an image of a known format"):
        load_image(encoded(photo(8, 8), "EPS"))


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(UsageError, match="not a regular file"):
        load_image(tmp_path)
    with pytest.raises(UsageError, match="embedded null byte"):
        load_image("a\0b")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "CMYK", "WebP", "alpha", "smaller", "palette"])
def test_a_picture_cut_short_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"bytes: cannot be decoded"):
        load_image(FILES[name][: len(FILES[name]) * 2 // 3])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 300])
def test_float_pixels_outside_every_range_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0, value]], np.float32))
    with pytest.raises(UsageError, match=r"float pixels from .*wanted 0\.\.1 or 0\.\.255"):
        load_image(encoded(image, "TIFF"))


def test_wide_integers_are_refused() -> None:
    with pytest.raises(UsageError, match="32-bit integer pixels"):
        load_image(encoded(Image.fromarray(np.array([[0, 1 << 20]], np.int32)), "TIFF"))


@given(st.binary(max_size=200))
def test_noise_raises_nothing_else(data: bytes) -> None:
    with pytest.raises(ToolkitError):
        load_image(data, 8)


@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_damage_raises_nothing_else(name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    try:
        loaded = load_image(bytes(content), 8)
    except ToolkitError:
        return
    assert loaded.shape == (1, 8, 8, 3) and np.isfinite(loaded).all()
