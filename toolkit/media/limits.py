"""How large images and sounds may be; in a module of its own, so that help texts need not import decoders."""

MAX_PIXELS = 120_000_000
"""More than a phone's 108 megapixels; a decoded pixel takes 4 bytes. Pillow itself refuses 179 million."""

MAX_SECONDS = 3600
"""An hour is 120 pieces of 188 tokens, which fill most of Gemma 3n's context of 32,768."""
