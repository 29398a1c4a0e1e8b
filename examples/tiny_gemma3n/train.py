"""Trains the tiny Gemma 3n as a MatFormer on the CPU and exports it in Hugging Face's form.

    python train.py --work WORK --minutes 65

It needs torch, transformers >= 5.23, tokenizers, safetensors, a C++ compiler (for torch.compile), and Debian 12's
apt-get. It resumes from WORK/state.pt; the schedule follows the minutes trained, so it ends on time on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import data
import model
import torch
from model import ALL, SIZES, Functions, Size, Weights
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, multiprocessing
from trainer import State
from transformers import AutoModelForCausalLM, Gemma3nTextConfig

HERE = Path(__file__).parent
WORKERS, ROWS, LENGTH, CHAT = 2, 4, 512, 0.3
WARMUP_STEPS, COOLDOWN = 100, 0.6
SAVE_SECONDS = 180.0


def sample_size(rng: random.Random) -> Size:
    """The size that one step trains: a named size, or a random mix of widths."""
    name = rng.choices(("small", "mid-narrow", "mid-wide", "large", "mix"), (0.30, 0.10, 0.10, 0.35, 0.15))[0]
    if name == "mix":
        return Size("mix", ALL, tuple(rng.choice((256, 512)) for _ in ALL))
    return next(size for size in SIZES if size.name == name)


def learning_rate(step: int, progress: float) -> float:
    """Warm-up, plateau, then a linear fall to a hundredth; `progress`: 0..1."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (1.0 - progress) / COOLDOWN + 0.01)


def local_gradients(state: State, functions: Functions, rows: Tensor, size: Size) -> None:
    """Compute the loss and the gradients of these rows in WORKING, and leave them in the state."""
    state.gradients.zero_()
    loss = model.forward_loss(functions, state.working(), rows, size)
    loss.backward()
    state.gradients[-2] = loss.item()


def exchange_gradients(state: State) -> float:
    """Replace the workers' gradients and clocks by their means; return the mean loss."""
    state.gradients[-1] = state.elapsed
    distributed.all_reduce(state.gradients)
    state.gradients /= WORKERS
    state.elapsed = state.gradients[-1].item()
    loss: float = state.gradients[-2].item()
    return loss


def work_alone(rank: int, work: Path, seconds: float, seed: int) -> None:
    """One of WORKERS single-threaded processes that train the same weights, each on its own rows.

    No two threads wait for each other inside an operation, which would be slow on a busy machine.
    """
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{work}/rendezvous", rank=rank, world_size=WORKERS)
    state, functions = State(work / "state.pt", model.initial_weights(seed)), Functions(compiled=True)
    sizes = random.Random(seed + state.step)
    sampler = data.Sampler(
        data.load_chapters(work), data.load_tokenizer(work), LENGTH, chat=CHAT, seed=seed + WORKERS * state.step + rank
    )
    for turn in range(WORKERS):  # the first compiles, the others find the code in the cache
        for size in (SIZES[1], SIZES[3]) if rank == turn else ():
            local_gradients(state, functions, torch.from_numpy(sampler.batch(ROWS)), size)
        distributed.barrier()
    losses: dict[str, float] = {}
    last = saved = time.monotonic()
    while state.elapsed < seconds:
        size = sample_size(sizes)
        local_gradients(state, functions, torch.from_numpy(sampler.batch(ROWS)), size)
        loss = exchange_gradients(state)
        state.optimizer.step(learning_rate(state.step, state.elapsed / seconds))
        state.average()
        losses[size.name] = 0.95 * losses.get(size.name, loss) + 0.05 * loss
        now = time.monotonic()
        state.step, state.tokens = state.step + 1, state.tokens + WORKERS * ROWS * LENGTH
        state.elapsed, last = state.elapsed + now - last, now
        if rank == 0 and state.step % 25 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in sorted(losses.items()))
            rate = state.tokens / state.elapsed
            print(f"{state.elapsed:7.1f} s  step {state.step}  {rate:.0f} tokens/s  {shown}", flush=True)
        if rank == 0 and (now - saved > SAVE_SECONDS or state.elapsed >= seconds):
            state.save()
            saved = time.monotonic()
    distributed.destroy_process_group()


def train(work: Path, seconds: float, seed: int) -> Weights:
    """Train for `seconds` in all, including earlier runs; return the averaged weights."""
    data.load_tokenizer(work)
    (work / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(work_alone, (work, seconds, seed), nprocs=WORKERS)
    averaged: Weights = torch.load(work / "state.pt")["averaged"]
    return averaged


def text_config(size: Size) -> Gemma3nTextConfig:
    return Gemma3nTextConfig(
        architectures=["Gemma3nForCausalLM"], dtype="bfloat16", tie_word_embeddings=True,
        vocab_size=model.VOCAB, vocab_size_per_layer_input=model.PLE_VOCAB, hidden_size=model.HIDDEN,
        hidden_size_per_layer_input=model.PLE, intermediate_size=list(size.ffn_sizes),
        num_hidden_layers=len(size.layers), num_attention_heads=model.HEADS, num_key_value_heads=model.KV_HEADS,
        head_dim=model.HEAD_DIM, sliding_window=model.WINDOW, max_position_embeddings=model.MAX_POSITIONS,
        layer_types=[model.TYPES[i] for i in size.layers], rms_norm_eps=model.EPS,
        num_kv_shared_layers=sum(i >= model.KV_LAYERS for i in size.layers),
        activation_sparsity_pattern=[model.SPARSITY if i < model.SPARSE_LAYERS else 0.0 for i in size.layers],
        laurel_rank=model.LAUREL, altup_num_inputs=model.ALTUP, altup_active_idx=0, altup_coef_clip=model.COEF_CLIP,
        altup_correct_scale=True, final_logit_softcapping=model.SOFTCAP,
        pad_token_id=data.PAD, eos_token_id=[data.EOS, data.SPECIAL.index("<end_of_turn>")], bos_token_id=data.BOS,
    )  # fmt: skip


def slice_weights(weights: Weights, size: Size) -> Weights:
    """The weights of a slice as a checkpoint of its own, with renumbered layers (by MatFormer Lab's recipe)."""
    kept = list(size.layers)
    sliced = {name: tensor for name, tensor in weights.items() if ".layers." not in name}
    for new, (old, ffn_size) in enumerate(zip(size.layers, size.ffn_sizes, strict=True)):
        for name, tensor in model.layer_weights(weights, old).items():
            if name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
                tensor = tensor[:ffn_size]
            elif name == "mlp.down_proj.weight":
                tensor = tensor[:, :ffn_size]
            sliced[f"model.layers.{new}.{name}"] = tensor
    table, projection = "model.embed_tokens_per_layer.weight", "model.per_layer_model_projection.weight"
    sliced[table] = weights[table].unflatten(1, (model.LAYERS, model.PLE))[:, kept].flatten(1)
    sliced[projection] = weights[projection].unflatten(0, (model.LAYERS, model.PLE))[kept].flatten(0, 1)
    return sliced


def text_weights(checkpoint: Path) -> Weights:
    """The weights of a text-only checkpoint; of one with towers, the language model's weights under the same names."""
    prefix, tensors = "model.language_model.", load_file(checkpoint / "model.safetensors")
    renamed = {"model." + name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return renamed or tensors


def write_checkpoint(folder: Path, weights: Weights, size: Size) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text_config(size).save_pretrained(folder)
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in sorted(weights.items())}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(work: Path, folder: Path, weights: Weights) -> None:
    """Write every file of the checkpoint. Rows of ids >= PLE_VOCAB repeat the row of `<pad>`, as in Gemma 3n."""
    weights = dict(weights)
    table = weights["model.embed_tokens.weight"].clone()
    table[model.PLE_VOCAB :] = table[data.PAD]
    weights["model.embed_tokens.weight"] = table
    for name, tensor in weights.items():
        if name.endswith("prediction_coefs.weight"):
            weights[name] = tensor.clamp(-model.COEF_CLIP, model.COEF_CLIP)
    write_checkpoint(folder, weights, SIZES[-1])
    slices = [{"name": s.name, "layers": s.layers, "ffn_sizes": s.ffn_sizes} for s in SIZES]
    lines = ",\n    ".join(json.dumps(item) for item in slices)
    (folder / "matformer.json").write_text(
        f'{{\n  "format": "gemma-edge-matformer/1",\n  "slices": [\n    {lines}\n  ]\n}}\n', encoding="utf-8"
    )
    data.load_tokenizer(work)
    (folder / "tokenizer.json").write_bytes((work / "tokenizer.json").read_bytes())
    template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.MAX_POSITIONS,
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {}, "padding_side": "left",
    })  # fmt: skip
    write_json(folder / "generation_config.json", {
        "bos_token_id": data.BOS, "eos_token_id": [data.EOS, data.SPECIAL.index("<end_of_turn>")],
        "pad_token_id": data.PAD, "do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.95,
    })  # fmt: skip


@torch.no_grad()
def check_against_transformers(folder: Path, work: Path) -> None:
    """Check that transformers gives the logits of model.py (f32) for every size of the exported checkpoint."""
    weights = {name: tensor.float() for name, tensor in text_weights(folder).items()}
    ids = torch.randint(0, model.VOCAB, (2, 3 * model.WINDOW), generator=torch.Generator().manual_seed(1))
    for size in SIZES:
        sliced = work / f"sliced_{size.name}"
        write_checkpoint(sliced, slice_weights(weights, size), size)
        reference = AutoModelForCausalLM.from_pretrained(sliced, dtype=torch.float32, attn_implementation="eager")
        expected = reference.eval()(input_ids=ids).logits
        error = (model.forward_logits(weights, ids, size) - expected).abs().max().item()
        print(f"{size.name}: max logit difference from transformers {error:.1e} (range {expected.abs().max():.1f})")
        assert error < 1e-3, f"size {size.name}: logits differ from transformers by {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of texts and training state")
    parser.add_argument("--minutes", type=float, default=65.0)
    parser.add_argument("--out", type=Path, help="folder of the exported checkpoint (default: WORK/text)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    arguments.work.mkdir(parents=True, exist_ok=True)
    weights = train(arguments.work, arguments.minutes * 60, arguments.seed)
    out = arguments.out or arguments.work / "text"
    export(arguments.work, out, weights)
    check_against_transformers(out, arguments.work)


if __name__ == "__main__":
    main()
