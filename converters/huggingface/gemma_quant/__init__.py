"""Checkpoints whose weights are codes already (`quant_method: gemma`): Google's QAT weights for phones."""
