"""Where models are measured: the `Machine` that a benchmark needs, a device over adb, and this computer."""
