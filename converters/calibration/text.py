"""The text that activations are measured on for calibration, and the file beside a bundle that keeps it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from toolkit.base.beside import beside
from toolkit.base.errors import UsageError, errors_about
from toolkit.base.files import write_bytes
from toolkit.base.outputs import Output, OutputKind
from toolkit.base.strict_json import JsonObject, open_regular, parse_json
from toolkit.bundle.lock import locked_output

FORMAT = "gemma-edge-calibration/1"
MAX_TEXT_BYTES = 64 << 20
_SUFFIX = ".calibration.json"


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """A text; its hash is part of a bundle's lock."""

    text: str

    @property
    def sha256(self) -> str:
        """The hash of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


CalibrationChoice = CalibrationText | Literal["self"]
"""A text, or the word that stands for a text which the model writes itself."""


def built_in_calibration_text() -> CalibrationText:
    """The built-in text: prose in 27 languages, English every few paragraphs, code, tables, letters and chats."""
    data = resources.files("converters") / "data" / "calibration_text.txt"
    return CalibrationText(data.read_text(encoding="utf-8"))


def read_calibration_text(path: Path) -> CalibrationText:
    """Read a UTF-8 text file, or the file that a conversion wrote beside its bundle; UsageError for anything else."""
    with errors_about("calibration"), open(open_regular(path, UsageError), "rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError("calibration", file=path, found=f"over {MAX_TEXT_BYTES:,} bytes", remedy="a few pages suffice")
    if path.name.endswith(_SUFFIX):
        return _read_record(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("calibration", file=path, found=f"byte {error.start} is not text", wanted="UTF-8") from error
    if not text.strip():
        raise UsageError("calibration", file=path, found="no text", wanted="a few pages of text")
    return CalibrationText(text)


def calibration_file(output: Path) -> Path:
    """The file beside a bundle that keeps its calibration text."""
    return beside(output, _SUFFIX)


def calibration_output(output: Output) -> Output:
    """The file of `calibration_file` as an output; it may be replaced if the bundle may."""
    return Output(calibration_file(output.path), _KIND, output.inputs, output.force)


def write_calibration_text(output: Output, text: CalibrationText) -> None:
    """Write the text beside `output`, in place of an older file of this kind."""
    target = calibration_output(output)
    target.require()
    write_bytes(target.path, dump_calibration_text(text))


def dump_calibration_text(text: CalibrationText) -> bytes:
    """The bytes of a file of format `gemma-edge-calibration/1` with this text."""
    value = {"format": FORMAT, "sha256": text.sha256, "text": text.text}
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def locked_calibration_text(sha256: str, source: Path, given: Path | None) -> CalibrationText:
    """The text with the hash that a lock states: the given one, the built-in one, or the one beside `source`.

    `source`: the lock's path, or that of the bundle which holds it. UsageError if none of the texts has this hash.
    """
    kept = calibration_file(locked_output(source))
    if given is not None:
        text = read_calibration_text(given)
    elif built_in_calibration_text().sha256 == sha256:
        text = built_in_calibration_text()
    elif kept.exists():
        text = read_calibration_text(kept)
    else:
        remedy = f"name it with --calibrate, or put it where convert wrote it: {kept}"
        raise UsageError("calibration", file=source, found="a text other than the built-in one", remedy=remedy)
    if text.sha256 != sha256:
        wanted = f"{sha256}, as the lock says"
        raise UsageError("calibration", file=given or kept, found=f"a text with sha256 {text.sha256}", wanted=wanted)
    return text


def _read_record(data: bytes, path: Path) -> CalibrationText:
    fields = JsonObject(parse_json(data, str(path), UsageError), str(path), UsageError)
    if fields.value("format") != FORMAT:
        fields.refuse("format", fields.value("format"), FORMAT)
    text, sha256 = CalibrationText(fields.string("text")), fields.string("sha256")
    fields.finish()
    if text.sha256 != sha256:
        fields.refuse("sha256", sha256, f"{text.sha256}, that of its text")
    return text


def _stranger(path: Path) -> str | None:
    try:
        read_calibration_text(path)
    except UsageError:
        return "something other than a calibration text"
    return None


_KIND = OutputKind("the calibration text", _stranger)
