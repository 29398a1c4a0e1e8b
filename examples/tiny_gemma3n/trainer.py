"""What the scripts that train the tiny models share: the optimizer, the state of a run, and steps of several processes.

Each worker is a process of one thread with a copy of the weights. In train_on.py and train4.py, a step has a number of
parts, of which the workers take one after the other, so that none waits long for another; then they exchange gradients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

Weights = dict[str, Tensor]

MUON_RATE, ADAM_RATE, EMBED_RATE, WEIGHT_DECAY = 0.015, 2e-3, 4e-3, 0.05
EMA = 0.995
PROCESSOR = Path("/proc/cpuinfo").read_text(encoding="utf-8")
WORKING = torch.bfloat16 if "amx_bf16" in PROCESSOR or "avx512_bf16" in PROCESSOR else torch.float32
"""The type to compute in: bfloat16 is faster only if the processor has instructions for its products."""


def orthogonalise(x: Tensor) -> Tensor:
    """Newton-Schulz iterations of the Muon optimiser (Jordan et al. 2024) on matrices [count, rows, columns]."""
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).to(WORKING)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """Muon for the matrices between the embeddings, Adam for everything else; learning rates scale with `rate`."""

    def __init__(self, weights: Weights) -> None:
        def is_matrix(name: str, tensor: Tensor) -> bool:
            return tensor.ndim == 2 and "embed_tokens" not in name and "altup." not in name

        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for name, tensor in weights.items():
            if is_matrix(name, tensor):
                self.groups.setdefault(tuple(tensor.shape), []).append(tensor)
        self.momenta = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}
        rest = {name: tensor for name, tensor in weights.items() if not is_matrix(name, tensor)}
        embeddings = [tensor for name, tensor in rest.items() if "embed_tokens" in name]
        vectors = [tensor for name, tensor in rest.items() if "embed_tokens" not in name]
        self.adam = torch.optim.AdamW(
            [{"params": embeddings, "base": EMBED_RATE}, {"params": vectors, "base": ADAM_RATE}],
            betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=True,
        )  # fmt: skip

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([tensor.grad for tensor in group])
            momentum = self.momenta[shape].lerp_(gradient, 0.05)
            update = orthogonalise(gradient.lerp(momentum, 0.95))
            scale = MUON_RATE * rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for tensor, change in zip(group, update, strict=True):
                tensor.mul_(1.0 - MUON_RATE * rate * WEIGHT_DECAY).sub_(change, alpha=scale)
        for group in self.adam.param_groups:
            group["lr"] = group["base"] * rate
        self.adam.step()


class State:
    """Weights, their average, optimizer and counters; gradients are views of one flat tensor, which is exchanged."""

    def __init__(self, path: Path, weights: Weights) -> None:
        """`weights`: the weights to start from, in float32, if there is no state at `path` yet."""
        self.path, self.elapsed, self.step, self.tokens = path, 0.0, 0, 0
        # A copy of this process: weights that come from another process are in memory that all workers share.
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.averaged = {name: tensor.clone() for name, tensor in self.weights.items()}
        self.optimizer = Optimizer(self.weights)
        if path.exists():
            self.restore(torch.load(path))
        sizes = [tensor.numel() for tensor in self.weights.values()]
        self.gradients = torch.zeros(sum(sizes) + 2)  # the last two carry the loss and the clock
        for tensor, gradient in zip(self.weights.values(), self.gradients[:-2].split(sizes), strict=True):
            tensor.requires_grad_().grad = gradient.view_as(tensor)

    @torch.no_grad()
    def restore(self, saved: dict[str, Any]) -> None:
        self.elapsed, self.step, self.tokens = saved["elapsed"], saved["step"], saved["tokens"]
        for name, tensor in self.weights.items():
            tensor.copy_(saved["weights"][name])
            self.averaged[name].copy_(saved["averaged"][name])
        self.optimizer.adam.load_state_dict(saved["adam"])
        self.optimizer.momenta = saved["momenta"]

    def save(self) -> None:
        names = ("elapsed", "step", "tokens", "weights", "averaged")
        state = {name: getattr(self, name) for name in names}
        state |= {"adam": self.optimizer.adam.state_dict(), "momenta": self.optimizer.momenta}
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").rename(self.path)

    def working(self) -> Weights:
        """The weights in WORKING; their gradients flow back to the state's."""
        return in_working_type(self.weights)

    def working_average(self) -> Weights:
        """The averaged weights in WORKING; they ask for gradients, so that what was compiled for training serves."""
        return in_working_type({name: tensor.clone().requires_grad_() for name, tensor in self.averaged.items()})

    @torch.no_grad()
    def average(self) -> None:
        for name, tensor in self.weights.items():
            self.averaged[name].lerp_(tensor, 1.0 - min(EMA, self.step / (self.step + 10)))


def in_working_type(weights: Weights) -> Weights:
    return {name: tensor.to(WORKING) for name, tensor in weights.items()}


def add_to_curve(work: Path, state: State, perplexities: Mapping[str, float]) -> None:
    """Add a point to WORK/curve.jsonl, and save the averaged weights in WORK/points."""
    points = work / "points"
    points.mkdir(exist_ok=True)
    torch.save({"averaged": state.averaged}, points / f"{state.step:05}.pt")
    point = {"seconds": round(state.elapsed), "step": state.step, "tokens": state.tokens, **perplexities}
    curve = work / "curve.jsonl"
    lines = curve.read_text(encoding="utf-8").splitlines() if curve.exists() else []
    # A run that was stopped goes on from its last state, which may lie before its last point.
    kept = [line for line in lines if json.loads(line)["step"] < state.step]
    curve.write_text("".join(f"{line}\n" for line in (*kept, json.dumps(point))), encoding="utf-8")


def take_parts(taken: Synchronized[int], limit: int) -> bool:
    """Take a part, and return whether there was one left before `limit`."""
    with taken.get_lock():
        if taken.value >= limit:
            return False
        taken.value += 1
        return True


def exchange_parts(state: State, lost: float, parts: int, workers: int) -> float:
    """Average the gradients and losses of a step's parts, and the workers' clocks; return the mean loss."""
    state.gradients[-2], state.gradients[-1] = lost, state.elapsed * parts / workers
    distributed.all_reduce(state.gradients)
    state.gradients /= parts
    state.elapsed = state.gradients[-1].item()
    loss: float = state.gradients[-2].item()
    return loss
