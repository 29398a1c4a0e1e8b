"""Parsers for the output of devices and runners: pure functions, tested on recorded output."""
