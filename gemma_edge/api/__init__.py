"""The public API, one module for each function; `gemma_edge` re-exports them."""
