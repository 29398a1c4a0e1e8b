"""``python -m toolkit`` is ``gemma-edge``."""

from toolkit.cli import entry

if __name__ == "__main__":
    entry()
