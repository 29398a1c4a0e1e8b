"""Draws docs/pictures from recorded results (docs/pictures/results.jsonl) and the published parameters of E2B.

    python -m benchmarks.pictures

The same records give the same bytes; a test says if a picture is stale. The results are of the tiny model on the
computer that recorded them:

    gemma-edge convert examples/tiny_gemma3n -o tiny --quant int4 --sizes large,small --context 512
    gemma-edge bench tiny --host --size large -p 128 -n 64 -r 8 --interval 0.05 --results results.jsonl
    gemma-edge bench tiny --host --size large -p 128 -n 64 -r 8 --interval 0.05 --cold --results results.jsonl
    gemma-edge bench tiny --host --size small -p 128 -n 64 -r 8 --interval 0.05 --results results.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.files import write_bytes
from toolkit.report.page import Card, Table, render_page
from toolkit.report.plots import Bar, StackedBars
from toolkit.report.results_page import results_page
from toolkit.results.json_lines import read_results

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

E2B_PARAMETERS: Mapping[str, int] = {
    "text": 1_905_495_648,
    "token_embedding": 537_395_200,
    "per_layer_embedding": 2_013_265_920,
    "vision": 298_587_456,
    "audio": 684_694_048,
}
"""Parameters by group, as `gemma-edge inspect` counts them in a checkpoint with google/gemma-3n-E2B-it's shapes."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The values for `picture.svg.jinja`; None or empty for what it does not show. Sizes are in pixels."""

    alternative: str
    width: int
    height: int
    title: str = ""
    introduction: str = ""
    cards: tuple[Card, ...] = ()
    plot: StackedBars | None = None
    table: Table | None = None

    @property
    def template(self) -> str:
        """The file name of the template."""
        return "picture.svg.jinja"


def pictures() -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each picture."""
    page = results_page(read_results(PICTURES / "results.jsonl").records)
    results = page.devices[0].results
    report = Picture(
        "The top of a report: a card for each model on each device, and the table of a run",
        1100,
        775,
        title="Benchmark report",
        introduction=page.introduction,
        cards=page.cards,
        table=Table(results.headings, results.groups[:1]),
    )
    yield "report.svg", _svg(report)
    billions = {name: count / 1e9 for name, count in E2B_PARAMETERS.items()}
    bars = [Bar("loaded", billions), Bar("effective", {"text": billions["text"]})]
    parameters = StackedBars("Parameters of E2B, in billions", "billion", bars)
    alternative = "E2B: 5.44 billion parameters loaded, 1.91 effective"
    yield "e2b_parameters.svg", _svg(Picture(alternative, 760, 190, plot=parameters))


def _svg(picture: Picture) -> bytes:
    """The picture as an SVG file: unlike in HTML, an SVG in XML must state its namespace."""
    return render_page(picture).replace(b"<svg class=", b'<svg xmlns="http://www.w3.org/2000/svg" class=')


def main() -> None:
    """Write all pictures."""
    for name, data in pictures():
        write_bytes(PICTURES / name, data)
        print(PICTURES / name)


if __name__ == "__main__":
    main()
