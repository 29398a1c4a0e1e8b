from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from toolkit.base.errors import UsageError
from toolkit.report.plots import (
    Bar,
    Distributions,
    Line,
    Panel,
    Plot,
    StackedBars,
    TimeSeries,
    plot_output,
    png,
    svg,
    write_plot,
)

# What other tests have left to the collector is not of these.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HOSTILE = "</svg><script>alert(1)</script> $\\frac{$ & \x00\x1b[31m"
PLOTS: dict[str, Plot] = {
    "bars": StackedBars("Parameters", "billion", [Bar("E2B", {"text": 1.9, "ple": 2.0}), Bar("E4B", {"text": 4.0})]),
    "distributions": Distributions("tg128", "tokens/s", {"a": [10.0, 11.0, 9.5], "b": [12.0]}),
    "time": TimeSeries(
        "tg128",
        [
            Panel("t/s", {"a": Line([0.0, 1.0, 2.0], [10.0, math.nan, 9.0], dots=True)}),
            Panel("°C", {"skin": Line([0.0, 1.0], [30.0, 31.0])}),
        ],
    ),
    "no bars": StackedBars("", "", []),
    "bars of nothing": StackedBars("", "B", [Bar("empty", {"a": 0.0})]),
    "no rows": Distributions("", "", {}),
    "equal values": Distributions("", "t/s", {"a": [5.0] * 4}),
    "more parts than colours": StackedBars("", "B", [Bar("a", {str(i): float(i) for i in range(12)})]),
    "no panels": TimeSeries("", []),
    "no lines": TimeSeries("", [Panel("", {})]),
    "all missing": TimeSeries("", [Panel("", {"a": Line([0.0, 1.0], [math.nan, math.nan])})]),
}


def texts(data: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(data).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_well_formed_and_the_same_bytes_each_time(name: str) -> None:
    data = svg(PLOTS[name])
    ElementTree.fromstring(data)
    assert data == svg(PLOTS[name])


def test_bars_say_parts_and_sums() -> None:
    assert {"1.90", "2.00", "3.90", "4.00", "text", "ple", "E2B", "E4B", "billion"} <= set(texts(svg(PLOTS["bars"])))


def test_each_number_is_drawn_once() -> None:
    drawn = texts(svg(PLOTS["bars"]))
    assert [drawn.count(number) for number in ("1.90", "2.00", "3.90", "4.00")] == [1] * 4


def test_the_users_settings_change_nothing() -> None:
    plain = svg(PLOTS["bars"])
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert svg(PLOTS["bars"]) == plain


def test_no_date_and_no_version_is_in_a_picture(tmp_path: Path) -> None:
    data = svg(PLOTS["time"])
    assert b"<dc:date>" not in data
    assert b"Matplotlib" not in data
    write_plot(PLOTS["time"], plot_output(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as image:
        assert image.info.keys() <= {"dpi", "Software"} and image.info["Software"] == "gemma-edge"
        assert image.width > 1000


@pytest.mark.parametrize(
    "plot",
    [
        StackedBars(HOSTILE, HOSTILE, [Bar(HOSTILE, {HOSTILE: 1.0, "b": 2.0})]),
        Distributions(HOSTILE, HOSTILE, {HOSTILE: [1.0]}),
        TimeSeries(HOSTILE, [Panel(HOSTILE, {HOSTILE: Line([0.0], [1.0])})]),
    ],
)
def test_strings_from_devices_stay_text(plot: Plot) -> None:
    data = svg(plot)
    root = ElementTree.fromstring(data)
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert any(r"<script>alert(1)</script> $\frac{$ & \x00\x1b[31m" in text for text in texts(data))
    assert png(plot)


def test_any_script_and_any_length_is_drawn_without_a_warning() -> None:
    name = "_手机 📱 " + "n" * 500
    drawn = texts(svg(StackedBars(name, name, [Bar(name, {name: 1.0, "b": 1.0})])))
    assert any(text.startswith(" _手机 📱") for text in drawn)
    assert max(map(len, drawn)) == 110
    assert png(TimeSeries(name, [Panel(name, {name: Line([0.0], [1.0])})]))


def test_another_ending_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plot\.jpg: found the ending '\.jpg', wanted \.svg or \.png"):
        plot_output(tmp_path / "plot.jpg")
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, gemma_edge.cli, toolkit.report.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_line_has_one_colour_in_all_panels_and_no_other_line_has_it() -> None:
    line = Line([0.0, 1.0], [1.0, 2.0])
    drawn = svg(TimeSeries("", [Panel("a", {"x": line, "y": line}), Panel("b", {"y": line, "z": line})])).decode()
    strokes = re.findall(r'clip-path="[^"]*" style="fill: none; stroke: (#\w+); stroke-width: 1.4', drawn)
    assert len(strokes) == 4 and strokes[1] == strokes[2] and len(set(strokes)) == 3, strokes
