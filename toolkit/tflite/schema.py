"""The names and numbers of LiteRT's schema: types, operators, and the tables of their options.

Only this module, `schema_pack` and `schema_unpack` use the schema's generated classes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import flatbuffers  # type: ignore[import-untyped]
from ai_edge_litert import schema_py_generated as fb  # type: ignore[import-untyped]

from toolkit.base.errors import GraphError
from toolkit.tflite.graph import DType, Options, OptionValue

SCHEMA_VERSION = 3  # tflite/schema.fbs: `version` of every current file
FILE_IDENTIFIER = b"TFL3"
BLOCKWISE: int = fb.QuantizationDetails.BlockwiseQuantization
UNREADABLE = (ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError, struct.error)
"""The errors that the generated classes raise for bytes that are not a flatbuffer."""


class EnumNames(dict[int, str]):
    """The names of an enum of the schema, by their numbers; GraphError for a number without a name."""

    def __init__(self, enum: type) -> None:
        super().__init__((value, name) for name, value in vars(enum).items() if isinstance(value, int))
        self._enum = enum.__name__

    def __missing__(self, number: int) -> str:
        raise GraphError(self._enum, found=f"the number {number}, which LiteRT's schema does not have")


def tensor_type_number(name: str) -> int:
    """The number of a type in the schema, which is what options hold.

    >>> tensor_type_number("INT32")
    2
    """
    return int(getattr(fb.TensorType, name))


def builtin_names() -> Mapping[int, str]:
    """The names of all operators, by number."""
    return EnumNames(fb.BuiltinOperator)


def tensor_type_names() -> Mapping[int, str]:
    """The names of all element types, by number."""
    return EnumNames(fb.TensorType)


def options_names() -> tuple[Mapping[int, str], Mapping[int, str]]:
    """The names of all tables of options, by number: those of the first union, and those of the second."""
    return EnumNames(fb.BuiltinOptions), EnumNames(fb.BuiltinOptions2)


def read_options(kind: int, data: memoryview, position: int) -> tuple[str | None, dict[str, OptionValue]]:
    """The name of a table of options and its fields, defaults included; kind: its number in the union, 0 for none."""
    if not kind:
        return None, {}
    table = EnumNames(fb.BuiltinOptions)[kind]
    try:
        values = vars(fb.BuiltinOptionsCreator(kind, flatbuffers.table.Table(data, position)))
    except UNREADABLE as error:
        raise GraphError("options", found=f"not a flatbuffer ({type(error).__name__}: {error})") from error
    return table, {name: value for name, value in values.items() if value is not None}


def option_values(options: Options | None) -> dict[str, OptionValue]:
    """All fields of a table of options, as `read_options` gives them."""
    if options is None:
        return {}
    fields = {name: value for name, value in vars(getattr(fb, options.table + "T")()).items() if value is not None}
    given = {name: tensor_type_number(v.value) if isinstance(v, DType) else v for name, v in options.fields}
    return fields | given
