"""The runners, which are programs that measure models: a folder for each, and an entry of `ALL`."""

from device_harness.runners import benchmark_model, flash_probe, litert_lm, native, session

ALL = (
    session.SPEC,
    native.SPEC,
    litert_lm.PYTHON,
    litert_lm.ADVANCED_MAIN,
    litert_lm.MAIN,
    benchmark_model.SPEC,
    flash_probe.SPEC,
)
