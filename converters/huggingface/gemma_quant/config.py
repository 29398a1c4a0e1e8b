"""Reads a `quantization_config` with `quant_method: gemma`, which says how many bits each module has.

Source: transformers 5.24, `integrations/gemma_quant.py` and `quantizers/quantizers_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from converters.huggingface.patterns import compiled
from toolkit.base.errors import CheckpointError, errors_about
from toolkit.base.limited import Limits, limited
from toolkit.base.strict_json import JsonObject, shorten

QUANT_METHOD = "gemma"
BITS = (2, 4, 8)

_PLACE = "quantization_config"
_MOST_PATTERNS = 100  # the named groups of one regular expression are searched for each module

# A border between modules: after a dot, before one, or at the end.
_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


@dataclass(frozen=True, slots=True)
class GemmaQuantConfig:
    """The rules that determine the bits of a module; `file`: for errors."""

    file: str
    num_bits: int
    """Bits of the modules in whose names no pattern of `overrides` occurs."""
    quantize_embeddings: bool
    overrides: tuple[tuple[str, int], ...]
    """Regular expressions and bits. The match that begins first in a name counts; of several, the first in order."""
    excluded: tuple[str, ...]
    """Modules that are not converted: regular expressions for the beginning of a name, or endings of a name."""

    def bits_of(self, modules: Sequence[str]) -> Mapping[str, int | None]:
        """The bits of each module's weight; None for a module that is not converted.

        The expressions are untrusted, so they run in a process of their own, with limits.
        """
        with errors_about(file=self.file):
            return limited(_PLACE, partial(self._bits_of, modules), Limits(seconds=10, output_bytes=8 << 20))

    def _bits_of(self, modules: Sequence[str]) -> dict[str, int | None]:
        excluded = [(key, self._compiled(f"(?:{key}){_BOUNDARY}", "modules_to_not_convert")) for key in self.excluded]
        bits = dict(
            zip(map("g{}".format, range(len(self.overrides))), (bits for _, bits in self.overrides), strict=True)
        )
        groups = zip(bits, (pattern for pattern, _ in self.overrides), strict=True)
        joined = self._compiled("|".join(f"(?P<{name}>{pattern})" for name, pattern in groups), "module_quant_configs")
        if joined.groupindex.keys() != bits.keys():
            self._refuse("module_quant_configs", "a pattern with named groups", "patterns without them")
        found: dict[str, int | None] = {}
        for module in modules:
            if any(pattern.match(module) or module.endswith(key) for key, pattern in excluded):
                found[module] = None
                continue
            match = joined.search(module) if bits else None
            names = (name for name, text in match.groupdict().items() if text is not None) if match else iter(())
            name = next(names, None)
            found[module] = self.num_bits if name is None else bits[name]
        return found

    def _compiled(self, pattern: str, key: str) -> re.Pattern[str]:
        return compiled(pattern, f"{_PLACE} {key}", self.file)

    def _refuse(self, key: str, found: str, wanted: str) -> None:
        raise CheckpointError(f"{_PLACE} {key}", file=self.file, found=found, wanted=wanted)


def quant_method(config: object) -> object | None:
    """The method that config.json states, at its top or in its text section; None without `quantization_config`."""
    top = config if isinstance(config, dict) else {}
    for section in (top, top.get("text_config")):
        stated: object = section.get(_PLACE) if isinstance(section, dict) else None
        if stated is not None:
            return stated.get("quant_method", "none") if isinstance(stated, dict) else stated
    return None


def parse_gemma_quant(config: object, file: str) -> GemmaQuantConfig:
    """Read the `quantization_config` of config.json's values; CheckpointError for any key or value unknown here."""
    top = JsonObject(config, file, CheckpointError)
    fields = top.child(_PLACE)
    fields.expect("quant_method", QUANT_METHOD)
    num_bits = _bits(fields) if fields.has("num_bits") else 4
    embeddings = fields.flag("quantize_embeddings") if fields.has("quantize_embeddings") else False
    if not fields.has("modules_to_not_convert"):
        # Which modules transformers leaves out in this case depends on its version.
        fields.refuse("modules_to_not_convert", "none", "a list of names")
    excluded = fields.array("modules_to_not_convert")
    if not all(isinstance(key, str) and key for key in excluded):
        fields.refuse("modules_to_not_convert", shorten(excluded), "a list of names")
    overrides = _overrides(fields.child("module_quant_configs"), num_bits) if fields.has("module_quant_configs") else ()
    fields.finish()
    if len(overrides) + len(excluded) > _MOST_PATTERNS:
        found = f"{len(overrides) + len(excluded)} patterns"
        raise CheckpointError(_PLACE, file=file, found=found, wanted=f"at most {_MOST_PATTERNS}")
    return GemmaQuantConfig(file, num_bits, embeddings, overrides, tuple(map(str, excluded)))


def _overrides(fields: JsonObject, num_bits: int) -> tuple[tuple[str, int], ...]:
    found = []
    for pattern in fields.names():
        options = fields.child(pattern)
        found.append((pattern, _bits(options) if options.has("num_bits") else num_bits))
        options.finish()
    return tuple(found)


def _bits(fields: JsonObject) -> int:
    fields.expect("num_bits", *BITS)
    return fields.integer("num_bits", min(BITS), max(BITS))
