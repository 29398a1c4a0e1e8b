"""The verbs, one module for each: its arguments, and what it prints of the API's results."""
