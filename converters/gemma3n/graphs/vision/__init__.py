"""The vision tower: encoder and adapter."""
