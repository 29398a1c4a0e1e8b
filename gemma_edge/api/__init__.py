"""One module for each function of the public API; `gemma_edge` re-exports them."""
