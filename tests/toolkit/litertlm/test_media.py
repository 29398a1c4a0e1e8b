"""What exports change so that LiteRT-LM processes images and sounds as transformers does."""

from __future__ import annotations

from pathlib import Path

import jinja2
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from toolkit.litertlm.media import always_true, joined_template
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Signature
from toolkit.tflite.rewrite import select_signatures
from toolkit.tflite.writer import layout_tflite, write_tflite


class Nothing:
    """A source of no weights."""

    def shape(self, name: str) -> tuple[int, ...]:
        raise KeyError(name)

    def read(self, name: str, rows: object = None, columns: object = None) -> np.ndarray:
        raise KeyError(name)


def test_a_mask_becomes_true_everywhere_and_all_else_stays(tmp_path: Path) -> None:
    graph = Graph()
    mask, values = graph.input("mask", (1, 3), DType.BOOL), graph.input("values", (1, 3))
    graph.output("mask", ops.logical_and(mask, ops.less(values, graph.scalar(5.0))))
    graph.output("values", ops.add(values, graph.scalar(1.0)))
    write_tflite(tmp_path / "a", layout_tflite([Signature("encode_3", graph)], {}), Nothing())
    select_signatures(tmp_path / "a", tmp_path / "b", {"encode": "encode_3"}, always_true("mask"))
    given = {"mask": np.array([[True, False, True]]), "values": np.array([[1, 2, 9]], np.float32)}
    before = Interpreter(str(tmp_path / "a")).get_signature_runner("encode_3")(**given)
    after = Interpreter(str(tmp_path / "b")).get_signature_runner("encode")(**given)
    assert before["mask"].tolist() == [[True, False, False]]
    assert after["mask"].tolist() == [[True, True, True]]
    assert after["values"].tolist() == before["values"].tolist() == [[2, 3, 10]]


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}<i> and {{ part }}",
        "\n{{ part }}\n",
        "{%- for x in 'ab' -%}\n  {{ x }}{{ part }}\n{%- endfor -%}\n",
        "{% set rendered_prompt = 'mine' %}{{ rendered_prompt }}{{ part }}",
    ],
)
def test_newlines_follow_placeholders_and_nothing_else_changes(template: str) -> None:
    values = {"bos_token": "<bos>", "part": "<i><s>"}
    plain = jinja2.Template(template).render(values)
    joined = jinja2.Template(joined_template(template, ["<i>", "<s>"])).render(values)
    assert joined == plain.replace("<i>", "<i>\n\n").replace("<s>", "<s>\n\n")


def test_a_template_without_placeholders_stays_as_it_is() -> None:
    assert joined_template("{{ x }}\n", []) == "{{ x }}\n"
