"""Programs that run on the device itself, as C source, and how they are built."""
