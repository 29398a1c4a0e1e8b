"""What runs on a device: one module a runner, all behind the interface in ``interface``."""
