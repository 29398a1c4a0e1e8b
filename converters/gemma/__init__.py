"""What the Gemma families have in common: names and checks of tensors, blocks of the decoder, the plan of its files."""
