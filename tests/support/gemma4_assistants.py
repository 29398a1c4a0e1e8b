"""Random drafters for random Gemma 4 models, and transformers as the oracle of what they draft."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gemma4_oracle import TINY, F, S, hf_model, random_weight
from numpy.typing import NDArray
from oracle_models import import_torch, write_safetensors

if TYPE_CHECKING:
    from transformers import Gemma4AssistantForCausalLM

ASSISTANT: dict[str, object] = {
    **{
        key: TINY[key] for key in ("vocab_size", "num_key_value_heads", "head_dim", "global_head_dim", "sliding_window")
    },
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "layer_types": [S, S, S, F],
    "num_kv_shared_layers": 4,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "max_position_embeddings": TINY["max_position_embeddings"],
}
"""The text config of a drafter for `gemma4_oracle.TINY`, as Google's has four layers."""


def make_assistant(
    directory: Path, *, seed: int, clusters: int | None = None, backbone: int = 32, **overrides: object
) -> Path:
    """Write a random drafter into `directory` and return it; every tensor is random, factors and norms too.

    `clusters`: of the vocabulary, with an order of tokens that is random. overrides: keys of the text config.
    """
    torch = import_torch()
    config = _config(backbone, clusters, overrides)
    from transformers import Gemma4AssistantForCausalLM

    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Gemma4AssistantForCausalLM(config).state_dict().items()}
    del shapes["lm_head.weight"]
    ordering = "masked_embedding.token_ordering"
    tensors = {
        name: torch.from_numpy(random_weight(name, shape, seed)) for name, shape in shapes.items() if name != ordering
    }
    if clusters is not None:
        order = np.random.default_rng(seed).permutation(config.text_config.vocab_size)
        tensors[ordering] = torch.from_numpy(order.astype(np.int64))
    directory.mkdir(parents=True, exist_ok=True)
    written = {**config.to_dict(), "architectures": ["Gemma4AssistantForCausalLM"], "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(written))
    write_safetensors(directory, tensors, 1)
    return directory


def _config(backbone: int, clusters: int | None, overrides: dict[str, object]) -> Any:
    import_torch()
    from transformers import Gemma4AssistantConfig, Gemma4TextConfig

    text = Gemma4TextConfig(**{**ASSISTANT, **overrides})
    more = {} if clusters is None else {"num_centroids": clusters, "centroid_intermediate_top_k": 3}
    config = Gemma4AssistantConfig(
        text_config=text, backbone_hidden_size=backbone, use_ordered_embeddings=clusters is not None, **more
    )
    config._attn_implementation = config.text_config._attn_implementation = "eager"
    return config


@functools.lru_cache(maxsize=4)
def hf_assistant(directory: Path) -> Gemma4AssistantForCausalLM:
    """The drafter of a checkpoint, in float32."""
    torch = import_torch()
    from transformers import Gemma4AssistantForCausalLM

    model = Gemma4AssistantForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    model.train(False)
    return model


@dataclass(frozen=True, slots=True)
class Draft:
    """One draft: the logits of all tokens, without clusters, and the state that the next draft goes on from."""

    normed: NDArray[np.float32]
    """The row that the logits are computed from."""
    logits: NDArray[np.float32]
    state: NDArray[np.float32]


def hf_drafts(target: Path, assistant: Path, ids: Sequence[int], count: int) -> list[Draft]:
    """What transformers' drafter makes after `ids`, of which the target has processed all but the last one."""
    torch = import_torch()
    model, drafter = hf_model(target), hf_assistant(assistant)
    with torch.inference_mode():
        out = model(
            torch.tensor([list(ids[:-1])]), use_cache=False, output_hidden_states=True, return_shared_kv_states=True
        )
        state, token = out.hidden_states[-1][:, -1:], ids[-1]
        found = []
        for _ in range(count):
            embedding = model.get_input_embeddings()(torch.tensor([[token]]))
            made = drafter(
                inputs_embeds=torch.cat([embedding, state], dim=-1),
                position_ids=torch.tensor([[len(ids) - 1]]),
                shared_kv_states=dict(out.shared_kv_states),
                output_hidden_states=True,
            )
            state = made.last_hidden_state
            normed = made.hidden_states[-1][0, -1]
            logits = drafter.lm_head(normed)
            found.append(Draft(normed.numpy(), logits.numpy(), state[0, -1].numpy()))
            token = int(logits.argmax())
    return found


def hf_assisted(
    target: Path, assistant: Path, ids: Sequence[int], count: int, drafts: int
) -> tuple[list[int], list[int]]:
    """transformers' own assisted generation: `count` tokens, and the drafts of its first step with any."""
    torch = import_torch()
    from transformers.generation import candidate_generator

    drafter = hf_assistant(assistant)
    drafter.generation_config.num_assistant_tokens = drafts
    seen: list[list[int]] = []
    own = candidate_generator.SinglePositionMultiTokenCandidateGenerator.get_candidates

    def watched(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        candidates, logits = own(self, input_ids, *args, **kwargs)
        if logits is not None:
            seen.append(candidates[0, input_ids.shape[1] :].tolist())
        return candidates, logits

    candidate_generator.SinglePositionMultiTokenCandidateGenerator.get_candidates = watched
    try:
        tokens = hf_model(target).generate(
            torch.tensor([list(ids)]), assistant_model=drafter, max_new_tokens=count, do_sample=False, eos_token_id=None
        )
    finally:
        candidate_generator.SinglePositionMultiTokenCandidateGenerator.get_candidates = own
    return tokens[0, len(ids) :].tolist(), seen[0]


def fit_head(assistant: Path, target: Path, ids: Sequence[int], *, first: int) -> Path:
    """Solve a drafter's output matrix so that its first drafts are the tokens of `ids` from `first` on; return it."""
    from safetensors.numpy import load_file, save_file

    found = [hf_drafts(target, assistant, ids[:n], 1)[0].normed for n in range(first + 1, len(ids))]
    wanted = np.zeros((len(found), int(str(ASSISTANT["vocab_size"]))), np.float32)
    wanted[np.arange(len(found)), ids[first + 1 :]] = 1
    solved = np.linalg.lstsq(np.array(found), wanted, rcond=1e-3)[0].T
    tensors = load_file(assistant / "model.safetensors")
    tensors["model.embed_tokens.weight"] = np.ascontiguousarray(solved, np.float32)
    save_file(tensors, assistant / "model.safetensors")
    hf_assistant.cache_clear()
    return assistant
