"""A random Gemma 4 with a tokenizer and a chat template of the kind that Google's have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from gemma4_oracle import make_checkpoint
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

CONTROL = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>",
    "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
)  # fmt: skip
# Characters alone, as the engine streams the bytes of one character as one text.
CHARACTERS = (
    "\n",
    *(chr(code) for code in range(0x21, 0x7F)),
    "\u2581",
    *(chr(0x4E00 + place) for place in range(180)),
)
MERGES = (("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"))

TEMPLATE = r"""
{%- macro value(item) -%}
    {%- if item is string -%}
        {{- '<|"|>' + item + '<|"|>' -}}
    {%- elif item is boolean -%}
        {{- 'true' if item else 'false' -}}
    {%- elif item is mapping -%}
        {{- '{' -}}{{- pairs(item) -}}{{- '}' -}}
    {%- elif item is sequence -%}
        {{- '[' -}}
        {%- for part in item -%}{{- value(part) -}}{%- if not loop.last %},{% endif -%}{%- endfor -%}
        {{- ']' -}}
    {%- else -%}
        {{- item -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro pairs(items) -%}
    {%- for name, item in items | dictsort -%}
        {{- name -}}:{{- value(item) -}}{%- if not loop.last %},{% endif -%}
    {%- endfor -%}
{%- endmacro -%}
{%- macro without_thoughts(text) -%}
    {%- set kept = namespace(text='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- set kept.text = kept.text + part.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- kept.text | trim -}}
{%- endmacro -%}
{{- bos_token -}}
{%- set rest = messages -%}
{%- set thinks = enable_thinking is defined and enable_thinking -%}
{%- if thinks or tools or messages[0]['role'] == 'system' -%}
    {{- '<|turn>system\n' -}}
    {%- if thinks -%}{{- '<|think|>' -}}{%- endif -%}
    {%- if messages[0]['role'] == 'system' -%}
        {{- messages[0]['content'] | trim -}}
        {%- set rest = messages[1:] -%}
    {%- endif -%}
    {%- for tool in tools or [] -%}
        {{- '<|tool>declaration:' + tool['function']['name'] + '{' -}}
        {{- pairs(tool['function']['parameters']) -}}
        {{- '}<tool|>' -}}
    {%- endfor -%}
    {{- '<turn|>\n' -}}
{%- endif -%}
{%- for message in rest -%}
    {{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' -}}
    {%- if message.get('reasoning') and message.get('tool_calls') -%}
        {{- '<|channel>thought\n' + message.get('reasoning') + '\n<channel|>' -}}
    {%- endif -%}
    {%- for call in message.get('tool_calls', []) -%}
        {{- '<|tool_call>call:' + call['function']['name'] + '{' + pairs(call['function']['arguments']) + '}' -}}
        {{- '<tool_call|>' -}}
    {%- endfor -%}
    {%- if message['content'] is string -%}
        {{- without_thoughts(message['content']) if message['role'] == 'assistant' else message['content'] | trim -}}
    {%- else -%}
        {%- for part in message['content'] or [] -%}
            {{- without_thoughts(part['text']) if message['role'] == 'assistant' else part['text'] | trim -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\n' -}}
    {%- if not thinks -%}{{- '<|channel>thought\n<channel|>' -}}{%- endif -%}
{%- endif -%}
"""


def write_prompt_files(directory: Path, places: Mapping[str, int] = MappingProxyType({})) -> None:
    """tokenizer.json, chat_template.jinja and generation_config.json, for a vocabulary of 300.

    `places`: ids of tokens that change places with others.
    """
    words = [*CONTROL, *CHARACTERS, *("".join(pair) for pair in MERGES)]
    for word, place in places.items():
        words[words.index(word)], words[place] = words[place], word
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(MERGES), unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in CONTROL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))


def write_random_model(directory: Path, *, seed: int = 11) -> Path:
    """A checkpoint that can be talked to; what it says has no meaning."""
    make_checkpoint(directory, seed=seed, sliding_window=16, max_position_embeddings=4096)
    write_prompt_files(directory)
    return directory
