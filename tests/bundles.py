"""A manifest to copy and break."""

from __future__ import annotations

from toolkit.bundle.manifest import CheckpointRecord, KvCache, QuantRecord, RuleRecord, SizeRecord, TextRecord
from toolkit.bundle.write import BundleDraft, GroupDraft

CONTEXT = 32

TEXT = TextRecord(
    vocab_size=40,
    ple_vocab_size=36,
    hidden_size=8,
    ple_size=4,
    num_layers=3,
    context=CONTEXT,
    prefill_sizes=(4, 8),
    final_logit_softcap=30.0,
    bos_token_id=2,
    pad_token_id=0,
    stop_token_ids=(1, 5),
    kv_caches=(KvCache("kv_cache_k_0", "kv_cache_v_0", (1, 1, CONTEXT, 4)),),
)

DRAFT = BundleDraft(
    architecture="Gemma3nForCausalLM",
    checkpoint=CheckpointRecord("handmade", "0123456789abcdef" * 4),
    text=TEXT,
    sizes={"large": SizeRecord((0, 1, 2), (16, 16, 16), ""), "small": SizeRecord((0, 2), (8, 8), "small_")},
    default_size="large",
    quant={"text": QuantRecord("int8", (RuleRecord("*", "int8", None, "mse"),))},
    groups={
        "ple": GroupDraft(("per_layer_embedder.tflite",), 36 * 12),
        "text": GroupDraft(("text_decoder.tflite", "embedder.tflite"), 1000),
    },
)
