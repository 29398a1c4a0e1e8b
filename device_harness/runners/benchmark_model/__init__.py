"""Google's benchmark_model: one graph, one signature."""
