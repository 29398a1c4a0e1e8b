"""Copies files to a device: only chunks that differ are sent, and a file appears only when it is complete."""
