"""What the tiny model's towers lose in int8, int4 and int2, calibrated with pictures and sounds or not, at equal bytes.

Each type is converted twice, for both towers at once: with the search for scales alone, and calibrated with pictures
and spoken words that `examples/tiny_gemma3n/evaluate_media.py files` draws and speaks. Judged are others, which are in
none of them, with voices that neither training nor calibration has: the relative error of the soft tokens, as `verify`
measures it, and how many of the questions about them the bundle answers right in our session, with 95 % intervals
(Wilson's). The language model is int8 in all. Prints a table and appends a record for each bundle. It needs espeak-ng.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.measure import RESULTS, Measured, Recorder, model_record
from converters.calibration.media import read_calibration_media
from converters.convert import convert
from converters.families import open_checkpoint
from converters.family import Checkpoint, RecipeChoice
from converters.request import ConvertRequest
from converters.verify_towers import verify_tower
from toolkit.bundle.manifest import TOWER_FILES
from toolkit.quant.recipe import FORMAT
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName, known_figure
from toolkit.results.record import Figures
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import TOWERS, TowerName, read_image, read_sound
from toolkit.runtime.session import default_threads

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny_gemma3n"
sys.path.insert(0, str(EXAMPLE))  # the example's scripts import each other by bare names

import evaluate_media  # noqa: E402

MATRICES: Mapping[TowerName, Sequence[str]] = {
    "vision": ("*.conv_pwl.weight", "*.pw_*.conv.weight", "*.attn.*.proj.weight"),
    "audio": (
        "audio_tower.conformer.*.attention.attn.qkv_proj.weight",
        "audio_tower.conformer.*.attention.post.weight",
        "audio_tower.conformer.*.lconv1d.linear_*.weight",
        "audio_tower.conformer.*.ffw_layer_*.ffw_layer_*.weight",
    ),
}
"""What differs from int8; the projections into the language model stay int8, as in the built-in `audio-int4`."""
SETS: Mapping[TowerName, str] = {"vision": "pictures", "audio": "sounds"}
TYPES = ("int8", "int4", "int2")
HOW: tuple[Literal["search", "calibrated"], ...] = ("search", "calibrated")
TESTS: dict[str, FigureName] = {name: known_figure(f"{name}_right_fraction", "towers") for name in SETS.values()}
_CONTEXT = 512
_KEYS = ("error", "right", "right_low", "right_high")
_Z = 1.959964  # of a 95 % interval


def recipe(folder: Path, group: TowerName, dtype: str) -> Path | str:
    """The recipe of a tower with its matrices in one type, per channel."""
    if dtype == "int8":
        return dtype
    rules = [{"match": match, "dtype": dtype} for match in MATRICES[group]]
    name = f"{group}-{dtype}-channel"
    (folder / f"{name}.json").write_text(
        json.dumps({"format": FORMAT, "name": name, "base": f"{group}-int8", "rules": rules})
    )
    return folder / f"{name}.json"


def wilson(right: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(end, 3) for end in wilson(390, 400)]
    [0.955, 0.986]
    """
    share = right / of
    middle = share + _Z**2 / (2 * of)
    reach = _Z * math.sqrt(share * (1 - share) / of + _Z**2 / (4 * of**2))
    return (middle - reach) / (1 + _Z**2 / of), (middle + reach) / (1 + _Z**2 / of)


class Judge:
    """Measures bundles on the same pictures and sounds."""

    def __init__(self, checkpoint: Checkpoint, count: int) -> None:
        sets = evaluate_media.item_sets(count)
        self._checkpoint = checkpoint
        self._items: dict[TowerName, list[evaluate_media.Item]] = {group: sets[name] for group, name in SETS.items()}

    def errors(self, path: Path) -> dict[FigureName, float]:
        """The relative error of the soft tokens of each tower."""
        bundle, found = Bundle(path), {}
        vision, audio = bundle.manifest.vision, bundle.manifest.audio
        assert vision is not None and audio is not None
        for group, items in self._items.items():
            if group == "vision":
                media = [read_image(item.data, vision) for item in items]
            else:
                media = [medium for item in items for medium in read_sound(item.data, audio)]
            with tempfile.TemporaryDirectory() as scratch:
                report = verify_tower(bundle, group, self._checkpoint, Path(scratch), media=media, threads=1)
            found[known_figure(f"{SETS[group]}_error_fraction", "towers")] = report.relative_error
        return found

    def answers(self, path: Path) -> dict[FigureName, float]:
        """The share of right answers about each kind, with its interval."""
        ask, found = evaluate_media.ask_session(path, None), {}
        for group, items in self._items.items():
            right = sum(item.answer == text for item, text in zip(items, ask(items), strict=True))
            low, high = wilson(right, len(items))
            for key, value in (("right", right / len(items)), ("right_low", low), ("right_high", high)):
                found[known_figure(f"{SETS[group]}_{key}_fraction", "towers")] = value
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_media_calibration", description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="pictures and sounds to judge (default: %(default)s)")
    parser.add_argument(
        "--calibrate", type=int, default=256, help="pictures and sounds to calibrate with (default: %(default)s)"
    )
    parser.add_argument("--types", type=lambda text: text.split(","), default=TYPES, help="default: all")
    parser.add_argument("--output", type=Path, default=RESULTS / "media_calibration.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder, rows = Recorder("media_calibration"), []
    with tempfile.TemporaryDirectory() as scratch, open_checkpoint(EXAMPLE) as checkpoint:
        folder = Path(scratch)
        evaluate_media.write_files(folder / "media", options.calibrate)
        media, judge = read_calibration_media(folder / "media"), Judge(checkpoint, options.count)
        for dtype in options.types:
            for how in HOW:
                output = folder / f"{dtype}-{how}"
                recipes: dict[str, RecipeChoice] = {group: recipe(folder, group, dtype) for group in TOWERS}
                given = media if how == "calibrated" else None
                wanted = ConvertRequest(checkpoint, output, recipes=recipes, context=_CONTEXT, calibration_media=given)
                started = time.perf_counter()
                convert(wanted, gate=None)
                made: Figures = {"convert_s": time.perf_counter() - started, "output_bytes": towers_bytes(output)}
                made = {**made, **judge.errors(output), **judge.answers(output)}
                model = model_record(output, "tiny Gemma 3n", quantization=dtype)
                conditions = {"towers": dtype, "weights": how}
                conditions |= {"media": str(options.calibrate), "judged": str(options.count)}
                recorder.append(options.output, Measured(model, TESTS, [made], conditions, threads=default_threads()))
                rows.append([f"{dtype}: {how}", f"{made['output_bytes'] / 1e6:.2f}", *cells(made)])
                print(*rows[-1], sep=" | ", flush=True)
    print(markdown(["towers", "MB", *(f"{name}: {what}" for name in TESTS for what in ("error", "right"))], rows))


def towers_bytes(bundle: Path) -> int:
    """The size of both towers' files."""
    return sum((bundle / name).stat().st_size for files in TOWER_FILES.values() for name in files)


def cells(made: Figures) -> list[str]:
    """The error and the right answers of each tower."""
    found = []
    for name in TESTS:
        error, right, low, high = (made[known_figure(f"{name}_{key}_fraction", "towers")] for key in _KEYS)
        found += [f"{error:.3f}", f"{right:.1%} ({low:.1%} to {high:.1%})"]
    return found


if __name__ == "__main__":
    main()
