"""Our own session, in a process of its own."""
