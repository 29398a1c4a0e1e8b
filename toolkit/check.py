"""Checks any file or directory that gemma-edge writes against its format, and reports every fault that it can find.

It writes nothing, except that it first restores a bundle which a killed process had moved aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.base.directory_swap import restore_missing
from toolkit.base.errors import BundleError, GraphError, UsageError
from toolkit.base.files import Progress
from toolkit.base.signatures import Truster
from toolkit.bundle.chat import read_template
from toolkit.bundle.check import check_directory, undescribed_graphs
from toolkit.bundle.check import left_out as groups_left_out
from toolkit.bundle.check_shard import check_shard
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import CHAT_TEMPLATE, TOKENIZER
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.ple_shards import is_shard_name
from toolkit.bundle.prompting import Prompting
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.litertlm import tables
from toolkit.litertlm.chat_template import engine_template
from toolkit.litertlm.check import DESCRIBED, check_litertlm
from toolkit.litertlm.gemma4 import text_model_type
from toolkit.litertlm.hashes import has_hashes
from toolkit.litertlm.header import read_header
from toolkit.litertlm.reader import read_litertlm
from toolkit.litertlm.recognise import is_litertlm
from toolkit.tflite.gpu import Refusal, gpu_refusals
from toolkit.tflite.reader import read_tflite


def check(path: Path | str, *, trust: Sequence[Truster] = (), progress: Progress | None = None) -> list[Fault]:
    """All faults of a bundle directory, a .litertlm or one PLE shard.

    `trust`: if not empty, one of these keys must have signed the .litertlm. BundleError if nothing exists at `path`;
    UsageError if it is none of these, or if `trust` is given for something other than a .litertlm.
    """
    target = Path(path)
    restore_missing(target)
    if trust and (target.is_dir() or is_shard_name(target.name)):
        remedy = "gemma-edge export --sign makes a signed file"
        raise UsageError("--trust", file=path, found="only a .litertlm can be signed", remedy=remedy)
    if target.is_dir():
        return check_directory(target, progress=progress)
    if target.is_file() and is_shard_name(target.name):
        return check_shard(target, progress=progress)
    if is_litertlm(target):
        return check_litertlm(target, trust=trust, progress=progress)
    wanted = "a bundle's directory, a .litertlm file or a PLE shard"
    if target.exists():
        raise UsageError(file=path, found="a file of another kind", wanted=wanted)
    raise BundleError(file=path, found="no such file or directory", remedy=f"name {wanted}")


def left_out(path: Path | str) -> tuple[str, ...]:
    """The groups that a copy of a bundle lacks as a whole, which is no fault; none of a bundle that cannot be read."""
    target = Path(path)
    try:
        return groups_left_out(target, read_manifest(target)) if target.is_dir() else ()
    except BundleError:
        return ()


def unknown_graphs(path: Path | str) -> tuple[str, ...]:
    """The graphs of a kind that this version does not know, by file or section: it checks only that they are whole."""
    target = Path(path)
    try:
        if target.is_dir():
            return undescribed_graphs(read_manifest(target))
        sections = () if is_shard_name(target.name) else read_header(target).metadata.sections
    except BundleError:
        return ()
    return tuple(s.label for s in sections if s.type == tables.TFLITE_MODEL and s.label not in DESCRIBED)


def is_unhashed(path: Path | str) -> bool:
    """Whether this is a .litertlm of another program, without hashes: damage to its weights cannot be found."""
    target = Path(path)
    try:
        return target.is_file() and not is_shard_name(target.name) and not has_hashes(read_header(target).metadata)
    except BundleError:
        return False


def refused_by_gpu(path: Path | str) -> list[tuple[str, Refusal]]:
    """The operators of a bundle's or a .litertlm's graphs that a GPU refuses, each with its file or section.

    Graphs that cannot be read are left out; `check` names them.
    """
    target = Path(path)
    graphs: list[tuple[str, Path, tuple[int, int] | None]]
    try:
        if target.is_dir():
            graphs = [(file.name, file, None) for file in sorted(target.glob("*.tflite"))]
        elif is_shard_name(target.name):
            graphs = []
        else:
            sections = [s for s in read_litertlm(target).sections if s.type == tables.TFLITE_MODEL]
            graphs = [(s.label, target, (s.begin, s.end)) for s in sections]
    except BundleError:
        return []
    found = []
    for name, file, section in graphs:
        try:
            found += [(name, refusal) for refusal in gpu_refusals(read_tflite(file, section).model)]
        except GraphError:
            continue
    return found


def refused_by_engine(path: Path | str) -> BundleError | None:
    """The fault of a bundle's chat template because of which an export would be refused; None if there is none."""
    bundle = Path(path)
    if not (bundle / CHAT_TEMPLATE).is_file():
        return None
    try:
        manifest = read_manifest(bundle)
        prompting = Prompting.of(Tokenizer(bundle / TOKENIZER), manifest)
        source = read_template(bundle / CHAT_TEMPLATE, BundleError)
        engine_template(
            source, prompting, "generic_model" if prompting.groups else text_model_type(manifest.architecture)
        )
    except BundleError as error:
        return error
    return None
