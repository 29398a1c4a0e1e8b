"""Trains a module of the tiny Gemma 3n by the clock: AdamW, averaged weights, and a state on disk to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

EMA = 0.995
WARMUP_STEPS = 30
SAVE_SECONDS = 60.0


class Fit:
    """A module that is trained for a given time: with AdamW, an average of the weights, and the state on disk."""

    def __init__(self, path: Path, module: nn.Module, rate: float, seconds: float) -> None:
        self.path, self.module, self.rate, self.seconds = path, module, rate, seconds
        self.elapsed, self.step, self.shown = 0.0, 0, 0.0
        matrices = [p for p in module.parameters() if p.ndim > 1]
        vectors = [p for p in module.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
        self.averaged = {name: p.detach().clone() for name, p in module.named_parameters()}
        if path.exists():
            saved = torch.load(path)
            self.elapsed, self.step, self.averaged = saved["elapsed"], saved["step"], saved["averaged"]
            module.load_state_dict(saved["weights"])
            self.optimizer.load_state_dict(saved["optimizer"])

    def save(self) -> None:
        state = {"elapsed": self.elapsed, "step": self.step, "averaged": self.averaged}
        state |= {"weights": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").rename(self.path)

    def update(self, loss: Tensor) -> None:
        progress = self.elapsed / self.seconds
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (self.step + 1) / WARMUP_STEPS, (1.0 - progress) / 0.7 + 0.01)
        self.optimizer.zero_grad()
        loss.backward()
        self.share_gradients()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.shown = 0.98 * self.shown + 0.02 * loss.item() if self.step > 1 else loss.item()
        with torch.no_grad():
            for name, tensor in self.module.named_parameters():
                self.averaged[name].lerp_(tensor, 1.0 - min(EMA, self.step / (self.step + 10)))

    def share_gradients(self) -> None:
        """Replace the gradients and clocks by the means over all workers."""
        if not distributed.is_initialized():
            return
        tensors = list(self.module.parameters())
        found = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]
        flat = torch.cat([*(gradient.flatten() for gradient in found), torch.tensor([self.elapsed])])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        self.elapsed = flat[-1].item()
        for tensor, part in zip(tensors, flat[:-1].split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.grad = part.view_as(tensor)

    def run(self, losses: Iterator[Tensor], report: Callable[[], str]) -> None:
        """Train until the time is over, which includes that of earlier runs."""
        last = saved = time.monotonic()
        while self.elapsed < self.seconds:
            self.update(next(losses))
            now = time.monotonic()
            self.elapsed, last = self.elapsed + now - last, now
            leads = not distributed.is_initialized() or distributed.get_rank() == 0
            if leads and (now - saved > SAVE_SECONDS or self.elapsed >= self.seconds):
                self.save()
                state = f"{self.path.stem} {self.elapsed:6.0f} s  step {self.step}  {self.shown:.4f}"
                print(f"{state}  {report()}", flush=True)
                last = saved = time.monotonic()

    def use_average(self) -> None:
        with torch.no_grad():
            for name, tensor in self.module.named_parameters():
                tensor.copy_(self.averaged[name])
