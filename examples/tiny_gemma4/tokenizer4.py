"""Writes the tokenizer of the tiny Gemma 4: the entries of the tiny Gemma 3n's, with the control tokens of Gemma 4.

    python tokenizer4.py

The ids of the tokens that open and close a turn stay; the tokens that open and close a channel take the ids of those
that announce an image and a sound; and the tokens for thinking and tools come after the last entry.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent / "tiny_gemma3n" / "tokenizer.json"
ENTRIES = 3072
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>")
ADDED = (
    "<|think|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
)  # fmt: skip


def build() -> dict[str, object]:
    """tokenizer.json."""
    document: dict[str, object] = json.loads(SOURCE.read_text(encoding="utf-8"))
    model = document["model"]
    assert isinstance(model, dict)
    names = {id_: name for name, id_ in model["vocab"].items() if id_ < ENTRIES}
    names |= dict(enumerate(CONTROL)) | dict(enumerate(ADDED, ENTRIES))
    model["vocab"] = {names[id_]: id_ for id_ in sorted(names)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [*enumerate(CONTROL), *enumerate(ADDED, ENTRIES)]
    document["added_tokens"] = [{"id": id_, "content": content, **flags} for id_, content in special]
    return document


def main() -> None:
    text = json.dumps(build(), ensure_ascii=False, separators=(",", ":"))
    (HERE / "tokenizer.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
