"""The program `gemma-edge`, also `python -m gemma_edge`: Ctrl-C is caught from here on, while the rest is imported."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """The entry point of the `gemma-edge` command; ends the process."""
    try:
        from gemma_edge.cli import entry

        entry()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
