"""Checkpoints whose weights are codes already (`quant_method: gemma`): the QAT weights that Google made for phones."""
