"""Keeps what `convert` measured in a file beside the bundle (docs/formats/manifest.md).

It is not part of the bundle, because figures differ in their last digits from one processor to another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.behaviour import PromptReport
from converters.convert import Conversion
from converters.verify import Quality, SizeReport
from toolkit.base.beside import FileBeside
from toolkit.base.errors import BundleError
from toolkit.base.files import hash_file
from toolkit.base.outputs import Output
from toolkit.base.strict_json import read_record
from toolkit.bundle.manifest import MANIFEST_NAME
from toolkit.bundle.manifest_values import Sha256, SizeName

QUALITY = FileBeside(".quality.json", "gemma-edge-quality/1", "how good a bundle was found to be")


@dataclass(frozen=True, slots=True)
class KeptMeasures:
    """The measures of one size (docs/verify.md), with their 95 % confidence intervals."""

    tokens: int
    kl_divergence_mean: float | None
    kl_divergence_max: float | None
    top1_agreement: float | None
    top1_agreement_interval: tuple[float, ...] | None
    perplexity_checkpoint: float
    perplexity_bundle: float | None
    perplexity_ratio_interval: tuple[float, ...] | None

    @classmethod
    def of(cls, quality: Quality) -> KeptMeasures:
        """The measures of a report."""
        top1, ratio = quality.top1_interval, quality.ratio_interval
        return cls(
            quality.tokens,
            quality.kl_divergence_mean,
            quality.kl_divergence_max,
            quality.top1_agreement,
            None if top1 is None else (top1.low, top1.high),
            quality.perplexity_checkpoint,
            quality.perplexity_bundle,
            None if ratio is None else (ratio.low, ratio.high),
        )


@dataclass(frozen=True, slots=True)
class QualityRecord:
    """What was found about the bundle whose manifest has this hash.

    `prompts`: None without a chat template. `weights`: measures by size; None if they were not judged.
    """

    manifest_sha256: Sha256
    prompts: PromptReport | None
    weights: Mapping[SizeName, KeptMeasures] | None


def write_quality(output: Output, conversion: Conversion) -> None:
    """Write the record beside a bundle that was just written."""
    sizes: Mapping[str, SizeReport] | None = None if conversion.report is None else conversion.report.sizes
    record = QualityRecord(
        hash_file(conversion.path / MANIFEST_NAME).sha256,
        conversion.prompts,
        None if sizes is None else {name: KeptMeasures.of(report.quality) for name, report in sizes.items()},
    )
    QUALITY.write(output, dataclasses.asdict(record))


def read_quality(bundle: Path) -> QualityRecord | None:
    """The record of a bundle; None if there is none, or if it is about another bundle that had this name.

    BundleError for a file of this kind that is malformed.
    """
    value = {key: item for key, item in QUALITY.read(bundle).items() if key != "format"}
    if not value:
        return None
    record = read_record(value, QualityRecord, str(QUALITY.path(bundle)), BundleError)
    return record if record.manifest_sha256 == hash_file(bundle / MANIFEST_NAME).sha256 else None
