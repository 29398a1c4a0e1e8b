"""Brings files to a device: only what differs, whole or not at all."""
