"""Shows the quality gate's progress and report, for `verify`, `convert` and `demo`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from converters.family import StageProgress
from converters.quality_record import QualityRecord
from converters.verify import VerifyReport
from gemma_edge.terminal import Terminal, table


@contextmanager
def gate_bars(terminal: Terminal, *, notes: bool = False) -> Iterator[StageProgress]:
    """Yield a progress function that shows a bar for each size or tower, one after the other.

    It is called with the size or tower, the amount done and the total. notes: whether to print a line before each bar.
    """
    with ExitStack() as bars:
        shown: dict[str, Callable[[int, int], None]] = {}

        def progress(name: str, done: int, of: int) -> None:
            if name not in shown:
                bars.close()
                if notes:
                    terminal.note(f"[{name}: also writing and running it in float32, as the reference]")
                shown[name] = bars.enter_context(terminal.bar(f"verify {name}", "%"))
            shown[name](done, of)

        yield progress


def report_text(report: VerifyReport) -> str:
    """The report as a table, followed by the measures that are out of bounds."""
    rows = []
    for name, size in report.sizes.items():
        quality = size.quality
        rows.append(
            [
                name,
                str(quality.tokens),
                _number(quality.kl_divergence_mean),
                _number(quality.kl_divergence_max),
                "-" if quality.top1_agreement is None else f"{quality.top1_agreement:.1%}",
                _number(quality.perplexity_checkpoint),
                _number(quality.perplexity_bundle),
                _number(quality.perplexity_ratio),
                "passed" if size.passed else "FAILED",
            ]
        )
    header = ["size", "tokens", "KL mean", "KL max", "top-1", "perplexity", "the bundle's", "ratio", ""]
    failures = [f"{name}: {failure}" for name, size in report.sizes.items() for failure in size.failures]
    prompts = [f"prompts: {fault}" for fault in report.prompts]
    return "\n".join([table(header, rows), *_certainty(report), *failures, *prompts, *_tower_lines(report)])


def _certainty(report: VerifyReport) -> list[str]:
    """The intervals of the figures, and which of them contain a limit."""
    lines = []
    for name, size in report.sizes.items():
        ratio, share, limits = size.quality.ratio_interval, size.quality.top1_interval, size.limits
        if ratio is None or share is None or limits is None:
            continue
        lines.append(
            f"{name}: 95 % intervals: ratio {ratio.low:.3f} to {ratio.high:.3f} (limit {limits.perplexity_ratio:g}), "
            f"top-1 {share.low:.1%} to {share.high:.1%} (limit {limits.top1_agreement:.1%})"
        )
        if size.passed and (ratio.high > limits.perplexity_ratio or share.low < limits.top1_agreement):
            lines.append(f"{name}: a limit is within an interval: verify with more --tokens to be sure")
    return lines


def kept_lines(record: QualityRecord | None) -> Iterator[str]:
    """A bundle's recorded quality, in lines."""
    if record is None:
        return
    for name, found in (record.weights or {}).items():
        ratio, top1 = found.perplexity_ratio_interval, found.top1_agreement_interval
        if ratio is not None and top1 is not None:
            yield (
                f"quality of {name}, when it was converted: {found.tokens} predictions, perplexity "
                f"{ratio[0]:.3f} to {ratio[1]:.3f} times the checkpoint's, top-1 {top1[0]:.1%} to {top1[1]:.1%}"
            )
    prompts = record.prompts
    if prompts is not None:
        yield f"prompts: the same as transformers' in {prompts.compared} conversations"
        if prompts.engine is not None:
            yield f"prompts: export refuses this bundle: {prompts.engine}"


def _tower_lines(report: VerifyReport) -> list[str]:
    """A separate table for the towers, which have other measures."""
    if not report.towers:
        return []
    rows = [
        [
            name,
            str(tower.samples),
            str(tower.soft_tokens),
            _number(tower.relative_error),
            f"{tower.limit:g}",
            f"{tower.cosine_min:.4f}",
            "passed" if tower.passed else "FAILED",
        ]
        for name, tower in report.towers.items()
    ]
    return ["", table(["tower", "samples", "soft tokens", "relative error", "at most", "least cosine", ""], rows)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
