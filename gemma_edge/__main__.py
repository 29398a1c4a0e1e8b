"""`python -m gemma_edge` is `gemma-edge`."""

from gemma_edge.cli import entry

if __name__ == "__main__":
    entry()
