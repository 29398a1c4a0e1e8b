"""Plots how the held-out perplexity fell in training: one panel for each text, one line for each size.

    python curve.py WORK/curve.jsonl curve.svg

It needs matplotlib. Points are of the averaged weights, on a few rows of each text (see train_on.held_out_rows; for the
tiny Gemma 4, which has one size, train4.held_out_rows).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from model import SIZES

matplotlib.use("svg")
PROGRESS = ("seconds", "step", "tokens")


def plot(points: list[dict[str, float]], path: Path) -> None:
    """`points`: for each, the number of tokens trained, and the perplexities by name, such as `prose large`, or `prose`
    if there is one size."""
    from matplotlib import pyplot, ticker

    matplotlib.rcParams["svg.hashsalt"] = path.resolve().parent.name
    sizes = {size.name for size in SIZES}
    split = {name: name.rpartition(" ") for name in points[0] if name not in PROGRESS}
    lines = {name: (text, size) if size in sizes else (name, "") for name, (text, _, size) in split.items()}
    texts = sorted({text for text, _ in lines.values()})
    figure, panels = pyplot.subplots(
        1, len(texts), figsize=(3.2 * len(texts), 3.2), layout="constrained", squeeze=False
    )
    for axes, text in zip(panels[0], texts, strict=True):
        for name, (shown, size) in lines.items():
            if shown == text:
                axes.plot([p["tokens"] / 1e6 for p in points], [p[name] for p in points], label=size)
        axes.set(title=text, xlabel="tokens trained (millions)", yscale="log")
        axes.grid(alpha=0.3, which="both")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(ticker.StrMethodFormatter("{x:g}"))
    panels[0][0].set_ylabel("held-out perplexity per token")
    if any(size for _, size in lines.values()):
        panels[0][-1].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path, help="curve.jsonl")
    parser.add_argument("plot", type=Path, help="the SVG to write")
    arguments = parser.parse_args()
    lines = arguments.points.read_text(encoding="utf-8").splitlines()
    plot([json.loads(line) for line in lines], arguments.plot)


if __name__ == "__main__":
    main()
