"""Reads config.json and processor configs strictly into records."""
