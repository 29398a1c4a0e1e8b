"""The machines on which models are measured: the interface `Machine`, a device over adb, and this computer."""
