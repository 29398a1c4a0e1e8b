"""adb's protocol, one file for each layer, from the socket to shell and sync."""
