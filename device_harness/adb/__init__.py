"""adb's protocol, with a file for each layer, from the socket to shell and sync."""
