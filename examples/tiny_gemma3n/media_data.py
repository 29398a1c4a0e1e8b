"""Pictures and sounds for the tiny Gemma 3n, and what is said about them.

    python media_data.py WORK

draws figures (six shapes and ten digits in six colours) with Pillow and lets espeak-ng say twenty words; it writes
WORK/pictures_*.npz and WORK/sounds_*.npz. It needs numpy, pillow, soxr, transformers and the program espeak-ng.

Held-out pictures have other random places, sizes, rotations, shades, backgrounds and noise; some have a striped
background, which no training picture has. Combinations of colour and figure that training never shows are a separate
set. Held-out sounds have voices and an accent that training never hears, at odd speeds and pitches (training: even).
"""

from __future__ import annotations

import io
import math
import random
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (205, 35, 35),
    "yellow": (235, 205, 30),
    "green": (40, 150, 55),
    "blue": (40, 70, 205),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FIGURES = (*SHAPES, *DIGITS)
UNSEEN = frozenset(
    {("red", "star"), ("yellow", "circle"), ("green", "heart"), ("blue", "cross"), ("white", "triangle")}
    | {("black", "square"), ("red", "two"), ("yellow", "seven"), ("green", "five"), ("blue", "three")}
    | {("white", "nine"), ("black", "zero")}
)
"""Combinations that training never shows."""

WORDS = (*DIGITS, "yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off")
PICTURE_SIZE = 128
RATE_HZ = 16_000
MAX_FRAMES = 160
"""Training sounds are cut at 1.6 s, which is longer than the slowest word."""

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
VOICE_NAMES = """
m1 m2 m3 m4 m6 m7 m8 f1 f2 f4 f5 Alex Andy Annie Gene Lee Michael adam belinda benjamin boris caleb david ed grandma
grandpa iven john linda max pablo paul quincy rob shelby steph travis zac
"""
VOICES = tuple(VOICE_NAMES.split())
HELD_OUT_ACCENT = "en-gb-x-rp"
HELD_OUT_VOICES = ("m5", "f3", "Alicia", "Mike", "edward", "anika", "robert", "victor")

# --- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, and the numbers of its colour and its figure."""

    image: Image.Image
    colour: int
    figure: int


def draw_figure(name: str, size: int, rng: random.Random) -> Image.Image:
    """A mask of the figure in a square of `size` pixels, slightly rotated and squeezed."""
    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    middle, reach = size / 2, size * 0.36

    def corners(angles: Sequence[float], radii: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (middle + r * reach * math.sin(a), middle - r * reach * math.cos(a))
            for a, r in zip(angles, radii, strict=True)
        ]

    if name in DIGITS:
        font = ImageFont.load_default(reach * rng.uniform(2.2, 2.6))
        weight = round(size * rng.uniform(0.01, 0.035))
        pen.text((middle, middle), str(DIGITS.index(name)), fill=255, font=font, anchor="mm", stroke_width=weight)
        turn = rng.uniform(-20, 20)
    else:
        turn = rng.uniform(-180, 180) if name in ("square", "triangle", "star", "cross") else rng.uniform(-30, 30)
        if name == "circle":
            pen.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=255)
        elif name == "square":
            half = reach * 0.85
            pen.rectangle((middle - half, middle - half, middle + half, middle + half), fill=255)
        elif name == "triangle":
            pen.polygon(corners([0, 2.094, 4.189], [1.1] * 3), fill=255)
        elif name == "star":
            pen.polygon(corners([i * math.pi / 5 for i in range(10)], [1.15, rng.uniform(0.42, 0.5)] * 5), fill=255)
        elif name == "cross":
            arm = reach * rng.uniform(0.24, 0.34)
            pen.rectangle((middle - arm, middle - reach, middle + arm, middle + reach), fill=255)
            pen.rectangle((middle - reach, middle - arm, middle + reach, middle + arm), fill=255)
        else:
            t = [2 * math.pi * i / 60 for i in range(60)]
            x = [16 * math.sin(a) ** 3 for a in t]
            y = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in t]
            scale = reach / 15
            pen.polygon([(middle + u * scale, middle - v * scale) for u, v in zip(x, y, strict=True)], fill=255)
    mask = mask.rotate(turn, Image.Resampling.BILINEAR)
    wide = size if rng.random() < 0.5 else round(size * rng.uniform(0.85, 1.0))
    return mask.resize((wide, size), Image.Resampling.BILINEAR)


def far_colour(colour: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """A background colour that contrasts with the figure's."""
    while True:
        other = tuple(rng.randrange(256) for _ in range(3))
        if sum((a - b) ** 2 for a, b in zip(colour, other, strict=True)) > 140**2:
            return other


def draw_ground(colour: tuple[int, ...], size: int, rng: random.Random, *, striped: bool) -> Image.Image:
    first, second = far_colour(colour, rng), far_colour(colour, rng)
    kind = rng.random()
    if striped:
        second = tuple(min(255, max(0, value + rng.randint(-45, 45))) for value in first)
        ground = Image.new("RGB", (size, size), first)
        pen, width = ImageDraw.Draw(ground), rng.uniform(0.06, 0.2) * size
        slant, at = rng.uniform(-0.8, 0.8) * size, float(-size)
        while at < 2 * size:
            pen.polygon([(at, 0), (at + width, 0), (at + width + slant, size), (at + slant, size)], fill=second)
            at += 2 * width
        return ground
    if kind < 0.4:
        return Image.new("RGB", (size, size), first)
    if kind < 0.7:
        ramp = Image.linear_gradient("L").rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
        shade = ramp.crop((38, 38, 218, 218)).resize((size, size))
    else:
        spots = rng.choice((2, 3, 4, 6))
        shade = Image.frombytes("L", (spots, spots), rng.randbytes(spots * spots))
        shade = shade.resize((size, size), Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", (size, size), first), Image.new("RGB", (size, size), second), shade)


def draw_picture(
    colour: str, figure: str, rng: random.Random, *, striped: bool = False, noise: float = 12.0
) -> Image.Image:
    """A square picture of PICTURE_SIZE pixels: one figure on a background; `noise`: the most that is added."""
    size = PICTURE_SIZE
    shade = tuple(min(255, max(0, value + rng.randint(-22, 22))) for value in COLOURS[colour])
    picture = draw_ground(shade, size, rng, striped=striped)
    extent = round(size * rng.uniform(0.7, 1.2))
    mask = draw_figure(figure, extent, rng)
    slack = round(0.36 * extent * 1.15)  # the figure's radius: it stays inside the picture
    centre = [rng.randint(min(slack, size // 2), max(size - slack, size // 2)) for _ in range(2)]
    picture.paste(Image.new("RGB", mask.size, shade), (centre[0] - mask.width // 2, centre[1] - extent // 2), mask)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, noise), (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def pictures(seed: int, count: int, *, unseen: bool, striped: float) -> Iterator[Picture]:
    """`striped`: the share of pictures with a striped background."""
    rng = random.Random(seed)
    pairs = [(c, f) for c in COLOURS for f in FIGURES if ((c, f) in UNSEEN) == unseen]
    for index in range(count):
        colour, figure = pairs[(index + seed) % len(pairs)]
        image = draw_picture(colour, figure, rng, striped=rng.random() < striped)
        yield Picture(image, list(COLOURS).index(colour), FIGURES.index(figure))


# --- sounds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sound:
    """A spoken word. `samples`: f32[n] at 16 kHz."""

    samples: NDArray[np.float32]
    word: int


def speak(text: str, voice: str, speed: int, pitch: int) -> NDArray[np.float32]:
    """The speech of espeak-ng, without silence at its ends: f32[n] at 16 kHz."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    with wave.open(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)) as file:
        rate, content = file.getframerate(), file.readframes(1 << 30)
    samples = np.frombuffer(content, "<i2").astype(np.float32) / 32768
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    samples = samples[loud[0] : loud[-1] + 1] if len(loud) else samples
    resampled: NDArray[np.float32] = soxr.resample(samples, rate, RATE_HZ)
    return resampled


def place(spoken: NDArray[np.float32], rng: random.Random) -> NDArray[np.float32]:
    """The word at a random loudness, with random silence before and after it, and random noise."""
    noises = np.random.default_rng(rng.getrandbits(32))
    spoken = spoken * (rng.uniform(0.15, 0.9) / max(1e-3, float(np.abs(spoken).max())))
    before, after = (round(RATE_HZ * rng.uniform(0.02, 0.25)) for _ in range(2))
    sound = np.pad(spoken, (before, after))
    level = 0.0 if rng.random() < 0.25 else 10 ** rng.uniform(-4.0, -2.2)
    return np.clip(sound + noises.normal(0, level, len(sound)), -1, 1).astype(np.float32)


def sounds(seed: int, count: int, *, held_out: bool) -> Iterator[Sound]:
    rng = random.Random(seed)
    for index in range(count):
        word = (index + seed) % len(WORDS)
        if not held_out:
            variant = rng.choice(("", *VOICES))
            voice = rng.choice(ACCENTS) + (f"+{variant}" if variant else "")
        elif rng.random() < 0.2:
            voice = HELD_OUT_ACCENT
        else:
            voice = f"{rng.choice((*ACCENTS, HELD_OUT_ACCENT))}+{rng.choice(HELD_OUT_VOICES)}"
        speed, pitch = 2 * rng.randint(55, 110) + held_out, 2 * rng.randint(10, 40) + held_out
        yield Sound(place(speak(WORDS[word], voice, speed, pitch), rng), word)


def log_mel(items: list[Sound]) -> list[NDArray[np.float32]]:
    """The features of each sound, f32[frames, 128], by transformers' extractor; its defaults are Gemma 3n's."""
    from transformers import Gemma3nAudioFeatureExtractor

    extract = Gemma3nAudioFeatureExtractor()
    made = []
    for item in items:
        features = extract([item.samples], return_tensors="np")
        made.append(features["input_features"][0][features["input_features_mask"][0].astype(bool)])
    return made


# --- sets ------------------------------------------------------------------------------------------------------------


Arrays = dict[str, NDArray[Any]]


def picture_arrays(seed: int, count: int, unseen: bool, striped: float) -> Arrays:
    """`pixels`: uint8[n, 64, 64, 3], scaled down with different filters, as different programs do."""
    made, rng = list(pictures(seed, count, unseen=unseen, striped=striped)), random.Random(seed)
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    return {
        "pixels": np.stack([np.asarray(p.image.resize((64, 64), rng.choice(filters))) for p in made]),
        "colour": np.array([p.colour for p in made]),
        "figure": np.array([p.figure for p in made]),
    }


def sound_arrays(seed: int, count: int, held_out: bool) -> Arrays:
    """`mel`: f16[n, MAX_FRAMES, 128], zero after each sound's end."""
    made = list(sounds(seed, count, held_out=held_out))
    mel, frames = np.zeros((count, MAX_FRAMES, 128), np.float16), np.zeros(count, np.int64)
    for index, features in enumerate(log_mel(made)):
        frames[index] = min(MAX_FRAMES, len(features))
        mel[index, : frames[index]] = features[:MAX_FRAMES]
    return {"mel": mel, "frames": frames, "word": np.array([s.word for s in made])}


def build(path: Path, count: int, seed: int, make: Callable[..., Arrays], *rest: object) -> None:
    """Write `count` items, which all processors make in parts, unless the file exists."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 250
    parts = [(seed + n, min(size, count - n * size)) for n in range(math.ceil(count / size))]
    with ProcessPoolExecutor() as pool:
        made = list(pool.map(make, *zip(*parts, strict=True), *([value] * len(parts) for value in rest)))
    arrays = {name: np.concatenate([part[name] for part in made]) for name in made[0]}
    with path.with_suffix(".tmp").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    path.with_suffix(".tmp").rename(path)
    print(f"{path.name}: {count}", flush=True)


def build_all(work: Path) -> None:
    build(work / "sounds_train.npz", 6_000, 1_000_000, sound_arrays, False)
    build(work / "sounds_held_out.npz", 600, 2_000_000, sound_arrays, True)
    build(work / "pictures_train.npz", 12_000, 3_000_000, picture_arrays, False, 0.0)
    build(work / "pictures_held_out.npz", 600, 4_000_000, picture_arrays, False, 0.25)
    build(work / "pictures_unseen.npz", 300, 5_000_000, picture_arrays, True, 0.25)


# --- what is said ----------------------------------------------------------------------------------------------------

PICTURE_QUESTIONS = ("What is this?", "What do you see?", "What is it?")
COLOUR_QUESTIONS = ("What colour is it?", "Which colour is this?")
FIGURE_QUESTIONS = ("Which shape or digit is it?", "What is drawn?")
SOUND_QUESTIONS = ("What was said?", "What do you hear?", "Which word is this?")


def picture_questions(kind: float) -> tuple[str, ...]:
    """The questions of one kind, which a number in 0..1 chooses: what is it, which colour, which figure."""
    return PICTURE_QUESTIONS if kind < 0.7 else COLOUR_QUESTIONS if kind < 0.85 else FIGURE_QUESTIONS


def picture_answer(colour: int, figure: int, kind: float) -> str:
    colour_name, name = list(COLOURS)[colour], FIGURES[figure]
    if kind < 0.7:
        return f"a {colour_name} {name}"
    if kind < 0.85:
        return colour_name
    return f"an {name}" if name == "eight" else f"a {name}"


SAMPLE_PICTURES = ("red circle", "yellow star", "green seven", "blue heart", "white three", "black cross")
SAMPLE_SOUNDS = ("seven", "three", "yes", "left", "stop", "no")


def wav_bytes(samples: NDArray[np.float32]) -> bytes:
    """The bytes of a WAV file: 16 bits, mono, at RATE_HZ."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        wav.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def write_samples(folder: Path) -> None:
    """Write pictures and sounds to try, named after their answers; the sounds have held-out voices."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(10_000_000)
    for name in SAMPLE_PICTURES:
        colour, figure = name.split()
        draw_picture(colour, figure, rng, noise=0.0).save(folder / f"{colour}-{figure}.png", optimize=True)
    for index, word in enumerate(SAMPLE_SOUNDS):
        voice = f"{ACCENTS[index % len(ACCENTS)]}+{HELD_OUT_VOICES[index % len(HELD_OUT_VOICES)]}"
        spoken = np.pad(speak(word, voice, 151, 51), RATE_HZ // 20)
        (folder / f"{word}.wav").write_bytes(wav_bytes(0.5 * spoken / np.abs(spoken).max()))


def main() -> None:
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    build_all(work)
    write_samples(Path(__file__).parent / "samples")


if __name__ == "__main__":
    main()
