"""Command-line arguments that several verbs share, and their conversion to settings."""
