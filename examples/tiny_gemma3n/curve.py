"""Plots how the held-out perplexity fell while train_on.py ran: one panel for each text, one line for each size.

    python curve.py WORK/curve.jsonl curve.svg

It needs matplotlib. Points are of the averaged weights, on a few rows of each text (see train_on.held_out_rows).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from model import SIZES

matplotlib.use("svg")


def plot(points: list[dict[str, float]], path: Path) -> None:
    """`points`: for each, the number of tokens trained, and the perplexities by name, such as `prose large`."""
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tiny_gemma3n"
    texts = sorted({name.rpartition(" ")[0] for name in points[0] if " " in name})
    figure, panels = pyplot.subplots(
        1, len(texts), figsize=(3.2 * len(texts), 3.2), layout="constrained", squeeze=False
    )
    for axes, text in zip(panels[0], texts, strict=True):
        for size in SIZES:
            axes.plot([p["tokens"] / 1e6 for p in points], [p[f"{text} {size.name}"] for p in points], label=size.name)
        axes.set(title=text, xlabel="tokens trained (millions)", yscale="log")
        axes.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("held-out perplexity per token")
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
