"""The model's math: builds graphs of LiteRT operators from a config; refers to weights by name, without their bytes."""
