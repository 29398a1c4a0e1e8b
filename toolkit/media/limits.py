"""How large images and sounds may be; here, so that a help text can say it without what decodes them."""

MAX_PIXELS = 120_000_000
"""More than a phone's 108 megapixels; a decoded pixel takes 4 bytes. Pillow itself refuses 179 million."""

MAX_SECONDS = 3600
"""An hour is 120 pieces of 188 tokens, which fill most of Gemma 3n's context of 32,768."""
