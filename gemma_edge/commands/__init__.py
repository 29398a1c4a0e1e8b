"""One module per verb: its arguments, and the order in which the parts of the toolkit do its work."""
