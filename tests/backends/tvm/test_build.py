from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest

from shave.backends.targets import resolve
from shave.backends.tvm import build as builder
from shave.backends.tvm.build import build, link
from shave.ir.errors import CompileError
from tests.backends import handmade

ELF_MACHINE = {62: "x86_64", 183: "aarch64"}


def _machine(library: bytes) -> str:
    assert library[:4] == b"\x7fELF"
    return ELF_MACHINE[struct.unpack_from("<H", library, 18)[0]]


@pytest.mark.parametrize("name", ["x86-64-v3", "zen4"])
def test_libraries_are_for_the_target_and_hold_no_weights(name: str) -> None:
    library = build(handmade.module(), resolve(name))
    assert _machine(library) == "x86_64"
    assert handmade.weights()[0][1].tobytes()[:64] not in library


def test_the_instructions_are_those_of_the_target() -> None:
    narrow, wide = (build(handmade.module(), resolve(name)) for name in ("x86-64-v2", "x86-64-v4"))
    assert narrow != wide


def _tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any linker."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(builder, "find_spec", lambda _: None)
    return tmp_path


def test_no_linker(bare: Path) -> None:
    with pytest.raises(CompileError, match="no linker for aarch64-unknown-linux-gnu: install gcc, clang or binutils"):
        link(bare / "out.so", [], resolve("neoverse-n1"))
    with pytest.raises(CompileError, match="no linker for x86_64"):
        link(bare / "out.so", [], resolve("x86-64-v3"))


@pytest.mark.parametrize(
    ("tool", "target"),
    [("clang", "x86-64-v3"), ("ld", "x86-64-v3"), ("aarch64-linux-gnu-gcc", "cortex-a72"), ("ld.lld", "cortex-a72")],
)
def test_the_linker_that_is_there_is_used(bare: Path, tool: str, target: str) -> None:
    if resolve("cpu").kind == "arm":
        pytest.skip("the names of the tools are those of an x86 host")
    _tool(bare, tool, f'echo "$@" > {bare}/arguments')
    link(bare / "out.so", [bare / "a.o"], resolve(target))
    assert (bare / "arguments").read_text().split() == ["-shared", "-s", "-o", str(bare / "out.so"), str(bare / "a.o")]


def test_compiler_of_the_environment_comes_first(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tool(bare, "cc", "exit 1")
    _tool(bare, "mine", f'echo "$1" > {bare}/arguments')
    monkeypatch.setenv("CC", "mine --flag")
    link(bare / "out.so", [], resolve("cpu"))
    assert (bare / "arguments").read_text() == "--flag\n"


def test_failing_linker_is_quoted(bare: Path) -> None:
    _tool(bare, "cc", "echo first >&2; echo 'cannot find -lm' >&2; exit 1")
    with pytest.raises(CompileError, match=r"cc cannot link for .*: cannot find -lm"):
        link(bare / "out.so", [], resolve("cpu"))
