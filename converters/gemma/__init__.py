"""What the Gemma families share: names and checks of tensors, components of the decoder, the plan of its files."""
