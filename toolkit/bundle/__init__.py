"""Bundles: the manifest, the directory, the .litertlm container, and their checker."""
