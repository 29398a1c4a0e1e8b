"""What commands on the device print, as records."""

from __future__ import annotations

import pytest

from device_harness.adb.transport import DeviceRefusal
from device_harness.push.remote import parse_df
from device_harness.push.scripts import parse_digests

DIGEST = "0123456789abcdef" * 4
TOYBOX = (
    "Filesystem       1K-blocks     Used Available Use% Mounted on\n"
    "/dev/block/dm-7  113455172 57701380  55622720  51% /data\n"
)


@pytest.mark.parametrize(
    "text",
    [
        TOYBOX,
        TOYBOX.replace("\n", "\r\n"),
        TOYBOX.replace("/dev/block/dm-7  ", "/dev/block/dm-7\n                 "),
        TOYBOX.replace("/data\n", "/mnt/a b\n"),
    ],
)
def test_free_space_is_read_from_df(text: str) -> None:
    assert parse_df(text, "device") == 55622720 * 1024


@pytest.mark.parametrize(
    "text", ["", TOYBOX.split("\n")[0], "df: no such tool", TOYBOX.replace("55622720", "?"), TOYBOX * 2]
)
def test_other_output_of_df_is_an_error(text: str) -> None:
    with pytest.raises(DeviceRefusal, match="device: df"):
        parse_df(text, "device")


def test_digests_are_found_among_noise() -> None:
    lines = ["", "WARNING: linker: x", f"a-b.bin 12 {DIGEST}  -\r", f"a.bin x {DIGEST}", f"a.bin 1 {DIGEST[:-1]}"]
    assert list(parse_digests(lines)) == [("a-b.bin", 12, DIGEST)]
