"""The executables of bundle_runner: what Android's linker asks of them, the same bytes again, and ARM under qemu."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from emulated_arm import arm_library, emulated_arm
from logits import divergence
from native_runner import NativeRunner
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.programs.build import Architecture
from device_harness.programs.bundle_runner import System, bundle_runner
from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_TLS, PT_RELRO = 1, 2, 3, 4, 7, 0x6474E552
DT_NEEDED, DT_STRTAB, DT_SONAME, DT_FLAGS, DT_FLAGS_1 = 1, 5, 14, 30, 0x6FFFFFFB
PAGE = 16384


def built(system: System, architecture: Architecture, directory: Path | None = None) -> Path:
    try:
        return bundle_runner(system, architecture, directory=directory).path
    except EnvironmentFault as error:
        if error.place == "ziglang":
            pytest.skip(str(error))
        raise


class Elf:
    """The parts of a 64-bit ELF file that its loader reads."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.type, self.machine = struct.unpack_from("<HH", self.data, 16)
        offset, size, count = *struct.unpack_from("<Q", self.data, 32), *struct.unpack_from("<HH", self.data, 54)
        self.segments = [struct.unpack_from("<IIQQQQQQ", self.data, offset + i * size) for i in range(count)]

    def content(self, kind: int) -> bytes:
        (segment,) = [found for found in self.segments if found[0] == kind]
        return self.data[segment[2] : segment[2] + segment[5]]

    def dynamic(self) -> list[tuple[int, int]]:
        data = self.content(PT_DYNAMIC)
        pairs = [struct.unpack_from("<QQ", data, at) for at in range(0, len(data), 16)]
        return [(int(tag), int(value)) for tag, value in pairs]

    def text(self, offset: int) -> str:
        """A string of the dynamic string table, by its offset there."""
        address = dict(self.dynamic())[DT_STRTAB]
        (segment,) = [s for s in self.segments if s[0] == PT_LOAD and s[3] <= address < s[3] + s[5]]
        start = segment[2] + address - segment[3] + offset
        return self.data[start : self.data.index(b"\0", start)].decode()


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "machine"), [("aarch64", 0xB7), ("x86_64", 0x3E)])
def test_the_executable_is_what_androids_linker_takes(architecture: Architecture, machine: int) -> None:
    elf = Elf(built("android", architecture))
    kinds = [segment[0] for segment in elf.segments]
    assert (elf.type, elf.machine) == (3, machine)  # position-independent
    assert elf.content(PT_INTERP) == b"/system/bin/linker64\0"
    assert PT_TLS not in kinds and PT_RELRO in kinds
    # Devices with pages of 16 KiB refuse a smaller alignment, and two segments in one page with different rights.
    loads = [segment for segment in elf.segments if segment[0] == PT_LOAD]
    assert {segment[7] for segment in loads} == {PAGE}
    assert all(segment[2] % PAGE == segment[3] % PAGE for segment in loads)
    assert not [segment for segment in loads if segment[1] & 3 == 3], "no segment is writable and executable"
    dynamic = elf.dynamic()
    needed = [elf.text(value) for tag, value in dynamic if tag == DT_NEEDED]
    assert needed == ["libc.so", "libdl.so", "libm.so"]
    flags = dict(dynamic)
    assert flags[DT_FLAGS] & 8 and flags[DT_FLAGS_1] & 1, "all symbols are bound at the start"
    assert DT_SONAME not in flags
    note = elf.content(PT_NOTE)
    assert struct.unpack_from("<III", note) == (8, 4, 1) and note[12:20] == b"Android\0" and note[20] == 23


@pytest.mark.slow
def test_no_instruction_writes_the_register_of_androids_shadow_call_stack() -> None:
    elf = Elf(built("android", "aarch64"))
    (code,) = [segment for segment in elf.segments if segment[0] == PT_LOAD and segment[1] & 1]
    words = np.frombuffer(elf.data[code[2] : code[2] + code[5] // 4 * 4], "<u4")
    # mov (register), add (immediate), ldr (64 bits, unsigned offset), adrp: the common ways to set a register.
    moves = ((words & 0xFFE0FFE0) == 0xAA0003E0) | ((words & 0xFF800000) == 0x91000000)
    moves |= ((words & 0xFFC00000) == 0xF9400000) | ((words & 0x9F000000) == 0x90000000)
    targets = words[moves] & 31
    assert len(targets) > 2000 and 17 in targets and 19 in targets and 18 not in targets


@pytest.mark.full
@pytest.mark.parametrize(("system", "architecture"), [("android", "aarch64"), ("linux", "x86_64")])
def test_the_same_sources_give_the_same_bytes(system: System, architecture: Architecture, tmp_path: Path) -> None:
    one, other = (built(system, architecture, tmp_path / name).read_bytes() for name in ("one", "other"))
    assert one == other


# --- ARM -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.skipif(os.uname().machine == "aarch64", reason="this computer is an ARM itself")
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "max"])
def test_arm_computes_the_same_logits_but_for_rounding(cpu: str, tmp_path: Path) -> None:
    """In float32 without dot products to 1e-5 of the largest logit. In int8 an activation that is rounded the other way
    is a step of its scale, and with dot products (cortex-a76) or matrix products (max) other kernels run: the same most
    likely token.
    """
    command = emulated_arm(cpu, tmp_path)
    bundle = tmp_path / "bundle"
    recipes = {"text": "f32"} if cpu == "cortex-a53" else {}
    convert(ConvertRequest(EXAMPLE, bundle, sizes=("large", "small"), context=128, recipes=recipes), gate=None)
    ids = [2, *(int(token) for token in np.random.default_rng(0).integers(0, 3000, 19))]
    with Session(Bundle(bundle), SessionSettings(threads=1, weight_cache="memory")) as session:
        expected = [session.feed(ids)]
        session.use("small")
        expected.append(session.feed(ids[:3]))
    with NativeRunner([*command, built("linux", "aarch64"), arm_library()]) as native:
        native.ok("open", bundle=str(bundle), threads=1)
        found = [native.logits(ids)]
        native.ok("size", name="small")
        found.append(native.logits(ids[:3]))
    for one, other in zip(expected, found, strict=True):
        assert one.argmax() == other.argmax() and divergence(one, other) < 1e-3
        if cpu == "cortex-a53":
            assert abs(one - other).max() < 1e-5 * abs(one).max()
