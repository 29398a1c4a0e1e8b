"""The audio tower: encoder and adapter."""
