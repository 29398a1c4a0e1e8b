"""Shows benchmark results: tables, plots and the HTML page. Computes nothing, and knows neither models nor devices."""
