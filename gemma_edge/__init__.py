"""gemma-edge: the command line, and what a program imports."""
