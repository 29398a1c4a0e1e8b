"""Numbers for people: statistics, tables, plots and the page around them; knows neither models nor devices."""
