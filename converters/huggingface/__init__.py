"""Reads Hugging Face checkpoints of any model: configs, safetensors, tokenizer, chat template."""
