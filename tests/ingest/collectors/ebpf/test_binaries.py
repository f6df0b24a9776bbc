"""Binaries, real and odd: where symbols are, where a probe goes, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.collectors.ebpf import elf, layout, sites, versions
from ingest.collectors.ebpf.server import ServerUnknown, probes_of
from pgwarden.postgres import programs

ROOT = Path(__file__).parents[4]
POSTGRES = (programs() / "postgres").read_bytes()


def test_symbols_and_sites_of_a_real_server_are_found() -> None:
    found = probes_of(POSTGRES, 18, nested=True, chunks=16)
    assert found.major == 18
    assert set(found.sites) == set(layout.PROBES)
    assert found.stepped == ()  # each probe stands on an instruction that the kernel emulates
    assert len(found.binary) == layout.BINARY.size
    assert set(probes_of(POSTGRES, 18, nested=False, chunks=16).sites) == set(layout.PROBES) - versions.NESTED


def test_symbols_agree_with_binutils() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("this machine has no readelf")
    lines = subprocess.run(
        ["readelf", "-W", "--dyn-syms", programs() / "postgres"], capture_output=True, text=True, check=True
    ).stdout
    theirs = {line.split()[7]: int(line.split()[1], 16) for line in lines.splitlines()[4:] if len(line.split()) == 8}
    ours = elf.symbols(POSTGRES, [*versions.FUNCTIONS.values(), *versions.VARIABLES])
    assert {name: symbol.address for name, symbol in ours.found.items()} == {name: theirs[name] for name in ours.found}


def test_a_binary_that_is_not_what_its_data_says_is_refused() -> None:
    with pytest.raises(ServerUnknown, match="its binary is of version 18, its data of 15"):
        probes_of(POSTGRES, 15, nested=False, chunks=1)


def test_a_version_that_is_not_known_is_refused() -> None:
    with pytest.raises(ServerUnknown, match="PostgreSQL 19 is not known; known are 14 to 18"):
        probes_of(POSTGRES.replace(b"PostgreSQL 18.", b"PostgreSQL 19."), 19, nested=False, chunks=1)


def test_a_binary_without_a_function_that_must_be_probed_is_refused_by_its_name() -> None:
    with pytest.raises(ServerUnknown, match=r"exports no PortalRun: .*use the log's collector"):
        probes_of(POSTGRES.replace(b"\0PortalRun\0", b"\0PortalRuM\0"), 18, nested=False, chunks=1)


@pytest.mark.parametrize("length", [0, 3, 6, 63, 64, 200, 5000])
def test_an_elf_file_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(elf.ElfInvalid):
        elf.symbols(POSTGRES[:length], ["PortalRun"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), min_size=1, max_size=6))
def test_an_elf_file_with_a_strange_header_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(POSTGRES)
    for at, byte in changes:
        data[at] = byte
    try:
        elf.symbols(data, ["PortalRun"])
    except elf.ElfInvalid:
        return


@pytest.mark.parametrize(
    ("code", "arguments", "expected"),
    [
        ("55 4889e5", 3, (0, True)),  # push
        ("4157 4156", 3, (0, True)),  # push r15
        ("f30f1efa 55", 3, (4, True)),  # endbr64, push
        ("83ee02 83fe02 7608", 1, (6, True)),  # sub esi, cmp esi, jbe: the first argument is in rdi
        ("83ee02 83fe02 7608", 2, (0, False)),  # the second would be gone
        ("83ef02 83ff02 7605", 0, (6, True)),
        ("83ef02 83ff02 7605", 1, (0, False)),
        ("486305 91392d00 85c0 7810", 1, (9, True)),  # movslq of a variable, test, js
        ("0fb6d2 55", 3, (0, False)),  # what is not known is not passed over
        ("e9 761346 00", 1, (0, True)),  # jmp
        ("83", 1, (0, False)),
        ("", 1, (0, False)),
    ],
)
def test_a_probe_goes_to_the_first_instruction_that_the_kernel_emulates(
    code: str, arguments: int, expected: tuple[int, bool]
) -> None:
    found = sites.site("x86_64", bytes.fromhex(code.replace(" ", "")), arguments)
    assert (found.offset, found.emulated) == expected


def test_a_title_and_the_structures_must_name_the_same() -> None:
    assert versions.agrees("postgres: app shop 127.0.0.1(5000) idle", "app", "shop")
    assert versions.agrees("postgres: main: app shop [local] SELECT", "app", "shop")
    assert not versions.agrees("postgres: app shop 127.0.0.1(5000) idle", "shop", "app")
    assert not versions.agrees("postgres: app shop 127.0.0.1(5000) idle", "", "shop")


@pytest.mark.slow
def test_the_wheel_brings_the_program_and_loading_it_takes_no_compiler(tmp_path: Path, bpf: None) -> None:
    folder = tmp_path / "source"
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "tests", "bench", "*.egg-info", "build")
    )
    place = tmp_path / "installed"
    built = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "from setuptools import setup; setup()", "--quiet", "build", "--build-lib", place],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    names = {str(path.relative_to(place)) for path in place.rglob("*")}  # what pip puts into a wheel, and a wheel into place
    for machine in ("x86", "arm64"):
        assert f"ingest/collectors/ebpf/witness.{machine}.bpf.o" in names
    assert "ingest/collectors/ebpf/source/witness.bpf.c" in names
    loads = (
        "from pathlib import Path; from ingest.collectors.ebpf.attach import *; import ingest; "
        "assert ingest.__file__.startswith(str(Path.cwd())); "
        "Probes(ProbeSettings('test-wheel', Path('/nowhere'), ring_bytes=65536, spill_bytes=65536)).remove()"
    )
    done = subprocess.run(
        [sys.executable, "-c", loads], cwd=place, capture_output=True, text=True, check=False,
        env={"PATH": "/nowhere", "PYTHONPATH": str(place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
