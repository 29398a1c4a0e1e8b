"""Merges LoRA adapters, as PEFT and mlx-lm save them, into a checkpoint's tensors while they are read."""
