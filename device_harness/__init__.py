"""Bundles on real devices: push, run, measure."""
