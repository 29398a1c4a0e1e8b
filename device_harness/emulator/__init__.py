"""An emulated Android device on 127.0.0.1, for tests and for a first try without a phone; see docs/emulator.md."""
