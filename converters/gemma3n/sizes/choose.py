"""Finds slices by name, by file and by budget.

Named slices are Google's mix-n-match configs (slicing_configs.csv, from MatFormer Lab) for checkpoints with E4B's
dimensions, and those in `matformer.json` in a checkpoint's directory (docs/formats/matformer.md).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from converters.gemma.tensors import TOKEN_EMBEDDING
from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.sizes.matformer import effective_parameters, is_whole, slice_config, whole_slice
from converters.gemma3n.tensors import text_tensors
from converters.slices import Budget, Slice
from toolkit.base.errors import SliceError
from toolkit.base.files import is_safe_name
from toolkit.base.strict_json import JsonObject, read_json_file, shorten
from toolkit.bundle.manifest import RESERVED_PREFIX
from toolkit.bundle.manifest_values import MAX_SIZE_NAME_CHARACTERS

MATFORMER_FILE = "matformer.json"
MATFORMER_FORMAT = "gemma-edge-matformer/1"

_OFFICIAL_FILE = "slicing_configs.csv"
_OFFICIAL_TITLE = re.compile(r"Config for (E\d+\.\d+B) \((layer|block)-level\)")
_OFFICIAL_TITLES = {"Main model": "E4B", "Config for official E2B Model": "E2B"}
_NUMBER = r"\d{1,7}(?:_\d{3})*"
_PRODUCT = re.compile(rf"{_NUMBER}(?:\s*\*\s*{_NUMBER})*", re.ASCII)
_MAX_LAYERS = 1 << 10
_MAX_WIDTH = 1 << 20


@dataclass(frozen=True, slots=True)
class OfficialSize:
    """A row of Google's table: a slice of E4B, its title there, and the base model's MMLU accuracy in percent."""

    slice: Slice
    title: str
    mmlu: float


class SizedModel(Protocol):
    """The part of a checkpoint that choosing a slice needs."""

    @property
    def config(self) -> TextConfig: ...

    @property
    def slices(self) -> Mapping[str, Slice]: ...


def official_sizes() -> tuple[OfficialSize, ...]:
    """Google's sixteen configs, the main model first; only names that two configs share end in `-layer` or `-block`."""
    text = resources.files(__package__).joinpath(_OFFICIAL_FILE).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    short = [_short_title(row["name"]) for row in rows]
    sizes: list[OfficialSize] = []
    for row, (name, level) in zip(rows, short, strict=True):
        shared = sum(other == name for other, _ in short) > 1
        skipped = parse_integers(row["Layers Skipped"] or "[]", "Layers Skipped")
        widths = parse_integers(row["FFN Hidden Dims"], "FFN Hidden Dims")
        layers = tuple(layer for layer in range(len(widths) + len(skipped)) if layer not in skipped)
        slice_ = Slice(f"{name}-{level}" if shared else name, layers, widths)
        sizes.append(OfficialSize(slice_, row["name"], float(row["MMLU PT accuracy"].rstrip("%"))))
    return tuple(sizes)


def named_slices(config: TextConfig, directory: Path) -> Mapping[str, Slice]:
    """All slices of a checkpoint that have names; one is always the whole checkpoint, if necessary named "full"."""
    found: dict[str, Slice] = {}
    official = {size.slice.name: size.slice for size in official_sizes()}
    if _has_dimensions(config, official["E4B"]):
        found |= official
    elif _has_dimensions(config, official["E2B"]):
        found["E2B"] = whole_slice(config, "E2B")
    if (directory / MATFORMER_FILE).exists():
        for slice_ in _read_matformer_file(directory / MATFORMER_FILE, config):
            if _key(slice_.name) in map(_key, found):
                raise SliceError(file=directory / MATFORMER_FILE, found=f"the name {slice_.name} twice")
            found[slice_.name] = slice_
    if not any(is_whole(slice_, config) for slice_ in found.values()):
        if "full" in found:
            raise SliceError(
                file=directory / MATFORMER_FILE, found="a slice called full, which is the name of the whole model"
            )
        found["full"] = whole_slice(config, "full")
    return MappingProxyType(found)


def find_slice(slices: Mapping[str, Slice], name: str) -> Slice:
    """A slice by its name, in upper or lower case, with spaces or hyphens; an official slice also by its full title."""
    by_key = {_key(known): slice_ for known, slice_ in slices.items()}
    for size in official_sizes():
        if slices.get(size.slice.name) == size.slice:
            short, level = _short_title(size.title)
            by_key |= {_key(size.title): size.slice, _key(f"{short}-{level}" if level else short): size.slice}
    ambiguous = [known for known in slices if known in (f"{name.upper()}-layer", f"{name.upper()}-block")]
    key = _key(name)
    if key in by_key and not ambiguous:
        return by_key[key]
    choice = ambiguous or list(slices)
    raise SliceError("size", found=shorten(name), wanted=f"one of {', '.join(choice)}")


def read_slice(path: Path, config: TextConfig) -> Slice:
    """Read a slice: `{"name", "layers", "ffn_sizes"}`, or MatFormer Lab's `{"layers_to_skip", "ffn_hidden_dims"}`."""
    stated = JsonObject(read_json_file(path, SliceError), str(path), SliceError)
    is_lab_form = "ffn_hidden_dims" in stated.names()
    slice_ = _parse_lab_slice(stated, config, path) if is_lab_form else _parse_slice(stated)
    slice_config(config, slice_)
    return slice_


def memory_bytes(config: TextConfig, bits_per_weight: float) -> int:
    """Bytes read for each decoded token: effective parameters and the output matrix, without KV caches and PLE."""
    matrix = math.prod(text_tensors(config)[TOKEN_EMBEDDING])
    return math.ceil((effective_parameters(config) + matrix) * bits_per_weight / 8)


def choose_slice(model: SizedModel, limit: Budget, step_bytes: Callable[[Slice], int]) -> Slice:
    """The best named slice within a budget; SliceError, which names the smallest, if none fits.

    step_bytes: the bytes of weights that each token reads in a slice, for a budget of bytes.
    The best is the whole model if it fits; otherwise the slice with the highest MMLU that Google states; otherwise, if
    no MMLU is stated, the largest slice.
    """
    mmlu = {size.slice: size.mmlu for size in official_sizes()}
    parameters = {part: effective_parameters(slice_config(model.config, part)) for part in model.slices.values()}

    def rank(slice_: Slice) -> tuple[bool, float, int, str]:
        stated, count = mmlu.get(slice_, -1.0), parameters[slice_]
        # Of two slices with the same stated accuracy, prefer the smaller; without stated accuracy, the larger.
        return is_whole(slice_, model.config), stated, -count if stated >= 0 else count, slice_.name

    costs: dict[Slice, int] = {}
    for slice_ in sorted(parameters, key=rank, reverse=True):
        costs[slice_] = step_bytes(slice_) if limit.unit == "bytes" else parameters[slice_]
        if costs[slice_] <= limit.amount:
            return slice_
    smallest = min(costs, key=lambda slice_: (costs[slice_], slice_.name))
    raise SliceError(
        "budget",
        found=f"{limit.amount:,.0f} {limit.unit}",
        wanted=f"at least {costs[smallest]:,} for {smallest.name}, the smallest size",
    )


def parse_integers(text: str, place: str, file: str | None = None) -> tuple[int, ...]:
    """Parse a bracketed list of integers and products of integers, without evaluating it as code.

    >>> parse_integers("[2_048 * 8, 512]", "doctest")
    (16384, 512)
    """
    inner = text.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        raise SliceError(place, file=file, found=shorten(text), wanted="a list in brackets")
    inner = inner[1:-1].strip()
    return tuple(_product(item, place, file) for item in inner.split(",")) if inner else ()


def _product(text: str, place: str, file: str | None) -> int:
    if len(text) > 100 or _PRODUCT.fullmatch(text.strip()) is None:
        raise SliceError(place, file=file, found=shorten(text), wanted="an integer or a product such as 2_048 * 8")
    return math.prod(int(factor) for factor in text.split("*"))


def _short_title(title: str) -> tuple[str, str | None]:
    if title in _OFFICIAL_TITLES:
        return _OFFICIAL_TITLES[title], None
    match = _OFFICIAL_TITLE.fullmatch(title)
    assert match is not None, f"{_OFFICIAL_FILE}: {title}"
    return match[1], match[2]


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _has_dimensions(config: TextConfig, slice_: Slice) -> bool:
    """Whether the checkpoint has the dimensions of Google's E4B or E2B, so that Google's names apply."""
    return (
        tuple(layer.ffn_size for layer in config.layers) == slice_.ffn_sizes
        and (config.hidden_size, config.ple_size, config.num_heads, config.num_kv_heads) == (2048, 256, 8, 2)
        and (config.head_dim, config.laurel_rank, config.altup_num_inputs) == (256, 64, 4)
        and config.kv_layers == tuple(range(20))
    )


def _read_matformer_file(path: Path, config: TextConfig) -> list[Slice]:
    stated = JsonObject(read_json_file(path, SliceError), str(path), SliceError)
    if stated.string("format") != MATFORMER_FORMAT:
        stated.refuse("format", stated.value("format"), MATFORMER_FORMAT)
    entries = stated.array("slices")
    stated.finish()
    parts = [_parse_slice(JsonObject(entry, str(path), SliceError, f"slice {i}")) for i, entry in enumerate(entries)]
    for slice_ in parts:
        slice_config(config, slice_)
    return parts


def _parse_slice(stated: JsonObject) -> Slice:
    slice_ = Slice(
        _checked_name(stated, stated.string("name")),
        stated.integers("layers", 0, _MAX_LAYERS - 1),
        stated.integers("ffn_sizes", 1, _MAX_WIDTH),
    )
    stated.finish()
    return slice_


def _checked_name(stated: JsonObject, name: str) -> str:
    """Check that a name can be the prefix of signatures."""
    if not is_safe_name(name) or len(name) > MAX_SIZE_NAME_CHARACTERS or name.startswith(RESERVED_PREFIX):
        wanted = f"at most {MAX_SIZE_NAME_CHARACTERS} letters, digits and . _ -, not beginning with {RESERVED_PREFIX}"
        stated.refuse("name", name, wanted)
    return name


def _parse_lab_slice(stated: JsonObject, config: TextConfig, path: Path) -> Slice:
    """Parse MatFormer Lab's form, which lists the skipped layers, and the feed-forward width of each kept layer."""
    skipped = _lab_integers(stated, "layers_to_skip") if stated.has("layers_to_skip") else ()
    for layer in skipped:
        if layer >= config.num_layers or skipped.count(layer) > 1:
            stated.refuse("layers_to_skip", layer, f"each index once, below {config.num_layers}")
    widths = _lab_integers(stated, "ffn_hidden_dims")
    name = _checked_name(stated, stated.string("name") if stated.has("name") else path.stem)
    stated.finish()
    return Slice(name, tuple(layer for layer in range(config.num_layers) if layer not in skipped), widths)


def _lab_integers(stated: JsonObject, key: str) -> tuple[int, ...]:
    """Read a list of integers and of products in strings, or the whole list in one string, as in Google's table."""
    if isinstance(stated.value(key), str):
        return parse_integers(stated.string(key), key, stated.file)
    items: list[int] = []
    for item in stated.array(key):
        if isinstance(item, str):
            items.append(_product(item, key, stated.file))
        elif isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= _MAX_WIDTH:
            items.append(item)
        else:
            stated.refuse(key, item, "integers or products such as 2_048 * 8")
    return tuple(items)
