"""How far bundles of the tiny model are from it, with calibration and without, at equal bytes, and in mixes of types.

Each recipe is converted three times: with the search for scales alone, calibrated with the built-in text, and with a
text that the model writes itself; each mix, of which a token reads at most so many bytes, with the last one. The
bundles run in LiteRT as they are; the divergence of each prediction from the NumPy reference is measured on two texts
that no calibration sees: the held-out part of the model's own books, and the gate's text in 18 languages. Intervals are
95 % bootstraps over blocks of predictions; for the ratio to the search, of the same predictions. Prints a table and
appends a record for each bundle; `weight_bytes` is what a token reads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import RESULTS, Measured, Recorder, model_record
from converters.calibration.mix import MixBudget
from converters.calibration.text import CalibrationChoice, built_in_calibration_text
from converters.convert import convert
from converters.families import open_checkpoint
from converters.family import Checkpoint
from converters.request import ConvertRequest
from converters.verify import built_in_text, compare, sequences_of
from toolkit.base.elements import element_names
from toolkit.bundle.footprint import footprints
from toolkit.bundle.manifest_json import read_manifest
from toolkit.quant.recipe import FORMAT
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName, known_figure
from toolkit.results.record import Figures
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings, default_threads

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny_gemma3n"
CONTEXT = 512
DECODER = ("layers.*.self_attn.*_proj.weight", "layers.*.mlp.*_proj.*weight")
HOW: tuple[Literal["search", "built-in", "self"], ...] = ("search", "built-in", "self")
MIXES_MB = (4.5, 3.9, 3.4, 3.0, 2.6)
"""Bytes a token; int4 reads 5.0 MB."""
TESTS: dict[str, FigureName] = {"books": "books_kl_nats", "languages": "languages_kl_nats"}
KEYS = ("kl_nats", "kl_low_nats", "kl_high_nats", "kl_fraction", "kl_low_fraction", "kl_high_fraction")
_BLOCK, _RESAMPLES = 16, 4000

F64 = NDArray[np.float64]
Divergences = Mapping[str, F64]


def recipes(folder: Path) -> dict[str, Path | str | MixBudget]:
    """Recipes by name; those of int2 differ from int8 in the decoder's matrices alone, as the int4 ones do."""
    found: dict[str, Path | str | MixBudget] = {name: name for name in ("int8", "int4", "int4-channel", "int4-small")}
    if "int2" in element_names():
        path = folder / "int2-channel.json"
        rules = [{"match": match, "dtype": "int2"} for match in DECODER]
        path.write_text(json.dumps({"format": FORMAT, "name": "int2-channel", "base": "int8", "rules": rules}))
        found["int2-channel"] = path
    return found | {f"mix-{size:g}MB": MixBudget(size * 1e6, "bytes") for size in MIXES_MB}


class Judge:
    """Measures bundles against a checkpoint, whose own predictions are computed once."""

    def __init__(self, checkpoint: Checkpoint, tokens: int) -> None:
        self._model = checkpoint.reference(checkpoint.default_slice)
        self._tokens = tokens
        self._texts = {"books": (EXAMPLE / "eval.txt").read_text(encoding="utf-8"), "languages": built_in_text()}
        self._expected: dict[str, list[tuple[list[int], NDArray[np.float32]]]] = {}

    def divergences(self, path: Path) -> Divergences:
        """The divergence of each judged prediction, in nats, by text."""
        bundle = Bundle(path)
        tokenizer, bos = bundle.tokenizer(), bundle.manifest.text.bos_token_id
        for name, text in self._texts.items():
            if name not in self._expected:
                sequences = sequences_of(tokenizer.encode(text, special=False), bos, context=256, tokens=self._tokens)
                hidden = self._model.hidden_states([np.array(ids, np.int32) for ids in sequences])
                self._expected[name] = list(zip(sequences, hidden, strict=True))
        with Session(bundle, SessionSettings(weight_cache="memory")) as session:
            return {name: self._judged(session, pairs) for name, pairs in self._expected.items()}

    def _judged(self, session: Session, pairs: Sequence[tuple[list[int], NDArray[np.float32]]]) -> F64:
        parts = []
        for ids, hidden in pairs:
            first, rows = session.logits_for(ids)
            expected, following = self._model.logits(hidden[first:-1]), np.array(ids[first + 1 :])
            parts.append(compare(expected, rows[:-1], following, self._model.text_vocab_size).divergence)
        return np.concatenate(parts)


def interval(values: F64, base: F64 | None = None) -> tuple[float, float, float]:
    """The mean of values, or its ratio to that of `base`, and its 95 % interval; runs of neighbours are drawn."""
    count = len(values) // _BLOCK
    blocks = values[: count * _BLOCK].reshape(count, _BLOCK).mean(1)
    over = np.ones(count) if base is None else base[: count * _BLOCK].reshape(count, _BLOCK).mean(1)
    draws = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    low, high = np.quantile(blocks[draws].mean(1) / over[draws].mean(1), (0.025, 0.975))
    return float(values.mean() / (1 if base is None else base.mean())), float(low), float(high)


def figures(found: Divergences, search: Divergences, seconds: float, bundle: Path) -> Figures:
    """What a record holds of one bundle; ratios only if there is a search to compare with."""
    (reads,) = footprints(bundle, read_manifest(bundle)).values()
    result: dict[FigureName, float] = {
        "convert_s": seconds,
        "output_bytes": sum(path.stat().st_size for path in bundle.iterdir()),
        "weight_bytes": reads.weight_bytes,
    }
    for name in TESTS:
        values = interval(found[name]) + (interval(found[name], search[name]) if search else ())
        for key, value in zip(KEYS, values, strict=False):
            result[known_figure(f"{name}_{key}", "calibration")] = value
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_calibration", description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024, help="predictions of each text (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "calibration.jsonl", help="default: %(default)s")
    parser.add_argument("--recipes", type=lambda text: text.split(","), help="some of the recipes (default: all)")
    options = parser.parse_args(arguments)
    recorder, rows = Recorder("calibration"), []
    with tempfile.TemporaryDirectory() as scratch, open_checkpoint(EXAMPLE) as checkpoint:
        folder = Path(scratch)
        judge = Judge(checkpoint, options.tokens)
        for recipe, source in recipes(folder).items():
            if options.recipes is not None and recipe not in options.recipes:
                continue
            search: Divergences = {}
            for how in HOW[-1:] if isinstance(source, MixBudget) else HOW:
                output = folder / f"{recipe}-{how}"
                text: CalibrationChoice | None = None if how == "search" else "self"
                if how == "built-in":
                    text = built_in_calibration_text()
                started = time.perf_counter()
                convert(
                    ConvertRequest(
                        checkpoint,
                        output,
                        recipes={"text": "int8" if isinstance(source, MixBudget) else source, "ple": "int8"},
                        groups=("text",),
                        context=CONTEXT,
                        calibration=text,
                        mix=source if isinstance(source, MixBudget) else None,
                    ),
                    gate=None,
                )
                seconds = time.perf_counter() - started
                found = judge.divergences(output)
                search = found if how == "search" else search
                made = figures(found, search, seconds, output)
                model = model_record(output, "tiny Gemma 3n", quantization=recipe)
                conditions = {"recipe": recipe, "weights": how, "tokens": str(options.tokens)}
                recorder.append(options.output, Measured(model, TESTS, [made], conditions, threads=default_threads()))
                rows.append(
                    [
                        recipe,
                        how,
                        f"{made['weight_bytes'] / 1e6:.2f}",
                        *(cell for name in TESTS for cell in cells(made, name)),
                    ]
                )
                print(*rows[-1], sep=" | ", flush=True)
    heads = [f"{name}: {what}" for name in TESTS for what in ("KL", "of the search's")]
    print(markdown(["recipe", "weights", "MB a token", *heads], rows))


def cells(made: Figures, name: str) -> list[str]:
    """A divergence and its ratio to the search's, each with its interval."""
    names = [known_figure(f"{name}_{key}", "calibration") for key in KEYS]
    kl, low, high, *ratios = (made[name] for name in names if name in made)
    return [f"{kl:.4f} ({low:.4f} to {high:.4f})", "{:.2f} ({:.2f} to {:.2f})".format(*ratios) if ratios else ""]


if __name__ == "__main__":
    main()
