"""Merges LoRA adapters in the forms of PEFT and mlx-lm into a checkpoint's tensors while these are read."""
