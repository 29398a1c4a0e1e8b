"""The quality gate over every size of a bundle, as ``verify``, ``convert`` and ``demo`` run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.gemma3n.sizes.matformer import Slice, SlicedCheckpoint
from converters.verify import SizeReport, VerifyReport, built_in_text, sequences_of, thresholds_for, verify
from converters.verify_towers import TowerReport, verify_tower
from gemma_edge.terminal import Terminal, table
from toolkit.base.elements import ElementName, element_names
from toolkit.bundle.manifest import TOWER_FILES, Manifest
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import TOWERS, Medium
from toolkit.runtime.session import Session, SessionSettings


def judge(
    path: Path,
    checkpoint: Checkpoint,
    terminal: Terminal,
    settings: SessionSettings,
    *,
    tokens: int,
    text: str | None = None,
    sizes: Collection[str] | None = None,
) -> VerifyReport:
    """Hold a bundle's sizes (all, or those named) against the checkpoint, on ``text`` or the built-in one."""
    bundle = Bundle(path)
    manifest = bundle.manifest
    ids = bundle.tokenizer().encode(built_in_text() if text is None else text, special=False)
    sequences = sequences_of(ids, checkpoint.config, context=manifest.text.context, tokens=tokens)
    thresholds = thresholds_for(used_dtypes(manifest))
    reports: dict[str, SizeReport] = {}
    with Session(bundle, settings) as session:
        for name in manifest.sizes if sizes is None else sizes:
            session.use(name)
            size = manifest.size(name)
            model = SlicedCheckpoint(checkpoint, Slice(name, size.layers, size.ffn_sizes))
            with terminal.bar(f"verify {name}", "%") as show:
                reports[name] = verify(
                    session,
                    model,
                    sequences,
                    thresholds,
                    progress=_percent(show, "bundle"),
                )
    return VerifyReport(reports)


def judge_towers(
    path: Path,
    checkpoint: Checkpoint,
    terminal: Terminal,
    settings: SessionSettings,
    groups: Collection[str] | None = None,
    media: Sequence[Medium] = (),
) -> dict[str, TowerReport]:
    """Hold a bundle's towers (all, or those of ``groups``) against float ones of the checkpoint.

    On these images and sounds; a tower without one, on a built-in sample.
    """
    bundle = Bundle(path)
    reports: dict[str, TowerReport] = {}
    for group in TOWERS:
        if group not in bundle.manifest.groups or (groups is not None and group not in groups):
            continue
        terminal.note(f"[{group}: writing and running it in float32 too, to compare with]")
        with (
            tempfile.TemporaryDirectory(prefix="gemma-edge-verify-") as scratch,
            terminal.bar(f"verify {group}", "%") as show,
        ):
            reports[group] = verify_tower(
                bundle,
                group,
                checkpoint,
                Path(scratch),
                media=[medium for medium in media if medium.group == group],
                threads=settings.threads,
                progress=_percent(show, "embed"),
            )
    return reports


def _percent(show: Callable[[int, int], None], second: str) -> Callable[[str, int, int], None]:
    """Of work in two halves that take about as long, the latter of which is called so."""
    return lambda half, done, of: show(50 * (half == second) + 50 * done // of, 100)


def used_dtypes(manifest: Manifest) -> set[ElementName]:
    """The element types that the recipes of text name; the towers take no part in what is judged."""
    roles = (role for role in manifest.quant if role not in TOWER_FILES)
    named = {rule.dtype for role in roles for rule in manifest.quant[role].rules}
    return {dtype for dtype in element_names() if dtype in named}


def report_text(report: VerifyReport) -> str:
    """A table, and what is out of bounds."""
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
                "passed" if size.passed else "FAILED",
            ]
        )
    header = ["size", "tokens", "KL mean", "KL max", "top-1", "perplexity", "the bundle's", ""]
    failures = [f"{name}: {failure}" for name, size in report.sizes.items() for failure in size.failures]
    return "\n".join([table(header, rows), *failures, *_tower_lines(report)])


def _tower_lines(report: VerifyReport) -> list[str]:
    """A table of its own, since towers are measured by other measures."""
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
