"""Checkpoints as Hugging Face stores them, of whatever model: safetensors, tensors, tokenizer, template."""
