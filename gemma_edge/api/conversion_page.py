"""The page about a conversion: what is in the bundle, what each size needs, and what the gates found.

It has no times, dates, host names or paths, so that the same conversion gives the same page.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from converters.behaviour import PromptReport
from converters.convert import Conversion
from converters.verify import Passage, SizeReport, VerifyReport
from gemma_edge.api.inspect import EFFECTIVE, InspectedSize, Inspection, inspect
from toolkit.bundle.manifest import Manifest, QuantRecord
from toolkit.report.page import Card, CardFigure, Cell, Table, Verdict, plain_table
from toolkit.report.plots import Bar, Line, Panel, StackedBars, TimeSeries
from toolkit.results.quantities import bytes_text, count_text

_PASSAGE_CHARACTERS = 60
_DRAWN_COMPONENTS = 7
"""How many blocks are drawn by name; with all others as one, as many as a page has colours."""
_VERDICTS: Mapping[bool | None, tuple[Literal["good", "care", "bad"], str]] = {
    True: ("good", "Passed the quality gate"),
    False: ("bad", "Failed the quality gate"),
    None: ("care", "Not verified"),
}


@dataclass(frozen=True, slots=True)
class ConversionPage:
    """The values for `conversion.html.jinja`; None or empty where the conversion has no data."""

    name: str
    introduction: str
    cards: tuple[Card, ...]
    groups_plot: StackedBars
    groups: Table
    reads_plot: StackedBars
    reads: Table
    sizes: Table
    tower_note: str
    kl: TimeSeries | None
    """The divergence of each prediction that was judged, in the order of the text, a line for each size."""
    passages: Table | None
    """The passages of the text that was judged, and how each size did on them."""
    judged: Table | None
    """Every measure of every size, its limit, and whether it was met."""
    prompts: tuple[tuple[str, str], ...]
    recipes: Table
    adapters: tuple[tuple[str, str], ...]
    origin: tuple[tuple[str, str], ...]

    @property
    def template(self) -> str:
        """The file name of the page's template."""
        return "conversion.html.jinja"


def conversion_page(result: Conversion) -> ConversionPage:
    """Build the page for a bundle that was just written."""
    found, manifest, report = inspect(result.path), result.manifest, result.report
    sizes = {} if report is None else report.sizes
    passages = () if report is None else report.passages
    return ConversionPage(
        name=manifest.checkpoint.name,
        introduction=f"{manifest.architecture}, {manifest.quant['text'].recipe}, by {manifest.generator}",
        cards=tuple(_card(name, found.sizes[name], sizes.get(name), manifest) for name in found.sizes),
        groups_plot=_groups_plot(found),
        groups=_groups(found, manifest),
        reads_plot=_reads_plot(found),
        reads=_reads(found),
        sizes=_sizes(found),
        tower_note=_tower_note(found),
        kl=_kl_over_text(sizes),
        passages=_passages(passages, sizes) if passages else None,
        judged=None if report is None else _judged(report),
        prompts=tuple(_prompts(result.prompts)),
        recipes=_recipes(manifest.quant),
        adapters=tuple((item.name, f"scale {item.scale:g}, sha256 {item.sha256}") for item in found.adapters),
        origin=tuple(_origin(result)),
    )


def _nats(value: float) -> str:
    return f"{value:.3g} nats"


def _count(value: int) -> str:
    return count_text(value, millions="million", billions="billion")


def _card(name: str, size: InspectedSize, report: SizeReport | None, manifest: Manifest) -> Card:
    quality = None if report is None else report.quality
    mean = None if quality is None else quality.kl_divergence_mean
    ratio = None if quality is None else quality.ratio_interval
    level, text = _VERDICTS[None if report is None else report.passed]
    return Card(
        key=f"size-{list(manifest.sizes).index(name) + 1}",
        title=name,
        subtitle="the default size" if name == manifest.default_size else f"{size.layers} layers",
        figures=(
            CardFigure("memory", bytes_text(size.memory[EFFECTIVE]), "weights that a token reads, and KV cache"),
            CardFigure("weights read", bytes_text(sum(size.bytes_per_token.values())), "for each token"),
            CardFigure(
                "divergence",
                "not judged" if mean is None else _nats(mean),
                "" if quality is None else f"mean KL over {quality.tokens:,} predictions",
                known=mean is not None,
            ),
            CardFigure(
                "perplexity",
                "not judged" if ratio is None else f"{ratio.low:.3f} to {ratio.high:.3f}",
                "" if ratio is None else "times the checkpoint's, 95 % interval",
                known=ratio is not None,
            ),
        ),
        verdict=Verdict(level, text, () if report is None else tuple(map(str, report.failures))),
    )


def _groups_plot(found: Inspection) -> StackedBars:
    bars = [Bar(name, {"bytes": group.bytes / 1e6}) for name, group in found.groups.items()]
    return StackedBars("The bundle by parameter group", "MB", bars)


def _groups(found: Inspection, manifest: Manifest) -> Table:
    rows = [
        [
            Cell(name),
            Cell(_count(group.parameters), numeric=True),
            Cell(bytes_text(group.bytes), numeric=True),
            Cell(f"{8 * group.bytes / group.parameters:.2f}" if group.parameters else "-", numeric=True),
            Cell(", ".join(_shortened(manifest.groups[name].files))),
        ]
        for name, group in found.groups.items()
    ]
    return plain_table(["group", "parameters", "bytes", "bits per parameter", "files"], rows)


def _shortened(files: Sequence[str]) -> list[str]:
    """The files, or if they are many, such as the shards of a table, the first and the last of them."""
    return list(files) if len(files) <= 3 else [files[0], "…", files[-1]]


def _reads_plot(found: Inspection) -> StackedBars:
    """The largest components; those that are too small to see are drawn as one."""
    first, others = _components(found)[:_DRAWN_COMPONENTS], _components(found)[_DRAWN_COMPONENTS:]
    bars = []
    for name, size in found.sizes.items():
        parts = {component: size.bytes_per_token.get(component, 0) / 1e6 for component in first}
        rest = sum(size.bytes_per_token.get(component, 0) for component in others) / 1e6
        bars.append(Bar(name, {**parts, "others": rest} if others else parts))
    return StackedBars("Weights that a token reads, by component of the decoder", "MB", bars)


def _components(found: Inspection) -> list[str]:
    return list(dict.fromkeys(component for size in found.sizes.values() for component in size.bytes_per_token))


def _reads(found: Inspection) -> Table:
    rows = [
        [
            Cell(component),
            *(Cell(bytes_text(size.bytes_per_token.get(component, 0)), numeric=True) for size in found.sizes.values()),
        ]
        for component in _components(found)
    ]
    return plain_table(["component", *found.sizes], rows)


def _sizes(found: Inspection) -> Table:
    rows = []
    for name, size in found.sizes.items():
        sets = list(size.sets())
        reads, memory = sum(size.bytes_per_token.values()), size.memory[EFFECTIVE]
        rows.append(
            [
                Cell(name),
                Cell(str(size.layers), numeric=True),
                Cell(_count(sets[0].parameters_effective), numeric=True),
                Cell(_count(sets[0].parameters_loaded), numeric=True),
                Cell(bytes_text(reads), numeric=True),
                Cell(bytes_text(memory - reads), numeric=True),
                Cell(bytes_text(memory), numeric=True),
            ]
        )
    headings = ["size", "layers", "effective", "with embeddings", "weights for a token", "KV cache", "memory"]
    return plain_table(headings, rows)


def _tower_note(found: Inspection) -> str:
    size = next(iter(found.sizes.values()))
    towers = [f"{name} {bytes_text(size.memory[name])}" for name in size.memory if name != EFFECTIVE]
    return f"Each tower that is loaded adds: {', '.join(towers)}." if towers else ""


def _kl_over_text(sizes: Mapping[str, SizeReport]) -> TimeSeries | None:
    lines = {
        name: Line(list(range(1, len(report.quality.divergences) + 1)), report.quality.divergences)
        for name, report in sizes.items()
        if report.quality.divergences
    }
    panel = Panel("KL divergence, nats", lines, from_zero=True)
    return TimeSeries("", [panel], axis="predictions, in the order of the text") if lines else None


def _passages(passages: Sequence[Passage], sizes: Mapping[str, SizeReport]) -> Table | None:
    ends = list(itertools.accumulate(passage.predictions for passage in passages))
    spans = list(zip([0, *ends], ends, strict=False))
    judged = {name: report.quality.divergences for name, report in sizes.items() if report.quality.divergences}
    if not judged:
        return None
    rows = [
        [
            Cell(_excerpt(passage.text)),
            Cell(f"{begin + 1} to {end}", numeric=True),
            *(Cell(f"{sum(every[begin:end]) / (end - begin):.2g}", numeric=True) for every in judged.values()),
            *(Cell(f"{max(every[begin:end]):.2g}", numeric=True) for every in judged.values()),
        ]
        for passage, (begin, end) in zip(passages, spans, strict=True)
    ]
    means, largest = [f"mean KL of {name}" for name in judged], [f"largest of {name}" for name in judged]
    return plain_table(["passage", "predictions", *means, *largest], rows)


def _excerpt(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _PASSAGE_CHARACTERS else f"{words[:_PASSAGE_CHARACTERS].rstrip()} …"


def _judged(report: VerifyReport) -> Table:
    return plain_table(
        ["size", "measure", "found", "95 % interval", "limit", "verdict"],
        [row for name, size in report.sizes.items() for row in _judged_rows(name, size)],
    )


def _judged_rows(name: str, report: SizeReport) -> Iterator[list[Cell]]:
    """A row for each measure; a single row if some of the bundle's logits are not finite."""
    quality, limits = report.quality, report.limits
    share, ratios = quality.top1_interval, quality.ratio_interval
    shares = f"{share.low:.1%} to {share.high:.1%}" if share else ""
    measures: list[tuple[str, str, str, str]] = []
    if quality.non_finite_tokens:
        measures.append(("tokens with NaN or infinite logits", f"{quality.non_finite_tokens:,}", "", "0"))
    elif limits is not None and quality.kl_divergence_mean is not None and quality.kl_divergence_max is not None:
        measures = [
            ("KL divergence mean", _nats(quality.kl_divergence_mean), "", f"{limits.kl_divergence_mean:g} nats"),
            ("KL divergence max", _nats(quality.kl_divergence_max), "", f"{limits.kl_divergence_max:g} nats"),
            ("top-1 agreement", f"{quality.top1_agreement:.1%}", shares, f"at least {limits.top1_agreement:.1%}"),
            (
                "perplexity ratio",
                f"{quality.perplexity_ratio:.3f}",
                f"{ratios.low:.3f} to {ratios.high:.3f}" if ratios else "",
                f"{limits.perplexity_ratio:g}",
            ),
        ]
    failed = {failure.measure for failure in report.failures}
    for measure, found, interval, limit in measures:
        yield [
            Cell(name if measure == measures[0][0] else ""),
            Cell(measure),
            Cell(found, numeric=True),
            Cell(interval, numeric=True),
            Cell(limit if limit.startswith("at") else f"at most {limit}", numeric=True),
            Cell("failed" if measure in failed else "passed"),
        ]


def _prompts(report: PromptReport | None) -> Iterator[tuple[str, str]]:
    if report is None:
        yield "chat template", "the checkpoint has none"
        return
    yield "same token ids as transformers", f"{report.compared} conversations"
    if report.refused:
        yield "refused, by transformers too", f"{report.refused} conversations"
    yield "LiteRT-LM", f"refuses the template: {report.engine}" if report.engine else "accepts the template"
    if report.tools:
        yield "function calling", f"not offered by LiteRT-LM: {report.tools}"


def _recipes(quant: Mapping[str, QuantRecord]) -> Table:
    rows = [
        [
            Cell(role if index == 0 else ""),
            Cell(record.recipe if index == 0 else ""),
            Cell(rule.match),
            Cell(rule.dtype),
            Cell("channel" if rule.block_size is None else f"{rule.block_size} weights"),
            Cell(rule.search),
        ]
        for role, record in quant.items()
        for index, rule in enumerate(record.rules)
    ]
    return plain_table(["group", "recipe", "tensors", "type", "one scale per", "scale chosen by"], rows)


def _origin(result: Conversion) -> Iterator[tuple[str, str]]:
    manifest = result.manifest
    yield "checkpoint", manifest.checkpoint.name
    yield "sha256 of the checkpoint", manifest.checkpoint.sha256
    yield "context", f"{manifest.text.context:,} positions"
    yield "prefills", ", ".join(map(str, manifest.text.prefill_sizes)) + " tokens"
    if result.calibration is not None:
        yield "calibrated", "with a text: docs/calibration.md"
    if result.calibration_media is not None:
        media = result.calibration_media
        yield "towers calibrated", f"with {media.pictures} pictures and {media.sounds} sounds: docs/calibration.md"
    drafter = manifest.drafter
    if drafter is not None and drafter.checkpoint is not None:
        yield "drafter", drafter.checkpoint.name
        yield "sha256 of the drafter", drafter.checkpoint.sha256
    elif drafter is not None:
        yield "drafter", f"accepts {drafter.accepted:.2f} of {len(drafter.acceptance)} drafts a step"
