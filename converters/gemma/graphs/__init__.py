"""Components of the decoder as graphs of LiteRT operators; they refer to weights by name, without their bytes."""
