from __future__ import annotations

from dataclasses import replace

from result_records import RECORDS

from toolkit.results.labels import device_name, notes, workload_name


def test_flags_emulation_and_delegation_are_noted() -> None:
    assert notes(RECORDS[3]) == ("emulated",)
    assert notes(RECORDS[5]) == ("charging", "screen on", "1873 of 1901 nodes delegated")


def test_an_emulated_device_is_called_so_whatever_it_calls_itself() -> None:
    disguised = replace(RECORDS[3].device, manufacturer="Google", model="Pixel 8")
    assert device_name(replace(RECORDS[3], device=disguised)) == "Google Pixel 8 (emulated)"
    assert device_name(RECORDS[3]) == "gemma-edge emulated device"
    nameless = replace(RECORDS[0].device, manufacturer=None, model=None)
    assert device_name(replace(RECORDS[0], device=nameless)) == "adb"


def test_workloads_are_named_as_llama_bench_names_them() -> None:
    assert [workload_name(512, 0), workload_name(0, 128), workload_name(16, 8)] == ["pp512", "tg128", "pp16+tg8"]
