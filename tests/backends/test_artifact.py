"""The file format as an attacker and an unlucky disk see it."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shave.backends import artifact as artifacts
from shave.backends import host, runtime
from shave.backends.artifact import LIBRARY, MANIFEST, MEMBERS, SMALL, WEIGHTS, open_artifact
from shave.backends.container import Member, write
from shave.backends.manifest import FORMAT
from shave.backends.runtime import load
from shave.backends.targets import resolve
from shave.backends.tvm import vm
from shave.ir.errors import ArtifactError, WriteError
from tests.backends import handmade

TINY = {"weights": [("w", np.ones(16, np.float32)), ("b", np.ones(3, np.float32))], "target": resolve("x86-64-v2")}
GOOD = handmade.artifact(b"no library at all", **TINY)
"""An artifact whose library would fail to load: a check that comes too late shows as another error."""

FUZZ = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _nothing_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may reach the point where the library is loaded."""

    def forbidden(*_: Any) -> None:
        raise AssertionError("the library was loaded")

    if "packed" not in request.fixturenames:
        monkeypatch.setattr(vm, "Machine", forbidden)


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[[bytes], str]:
    """Load a file that must be refused; gives the one line that says why."""

    def check(content: bytes) -> str:
        path = tmp_path / "bad.shave"
        path.write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            load(path)
        message = str(caught.value)
        assert message.startswith(f"cannot load {path}: ")
        assert "\n" not in message
        return message.removeprefix(f"cannot load {path}: ")

    return check


def _members(content: bytes = GOOD) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _packed(members: list[tuple[str, bytes]]) -> bytes:
    """A container of these members, whose comment fits its manifest."""
    return _written([_part(name, data) for name, data in members])


def _part(name: str, data: bytes) -> tuple[Member, bytes]:
    return (Member.of(name, [data]), data) if name == WEIGHTS else Member.deflated(name, data)


def _written(parts: list[tuple[Member, bytes]]) -> bytes:
    digest = next((member.sha256 for member, _ in parts if member.name == MANIFEST), "")
    stream = io.BytesIO()
    write(stream, [(member, [data]) for member, data in parts], b"shave manifest sha256:" + digest.encode())
    return stream.getvalue()


def _with_library(library: Member, data: bytes) -> bytes:
    """An artifact whose manifest and framing agree on what its library is."""
    members = _members()
    manifest = json.loads(members[MANIFEST])
    entry = {"size": library.size, "crc32": library.crc32, "sha256": library.sha256, "stored": library.stored}
    manifest["members"][LIBRARY] = entry
    first = _part(MANIFEST, json.dumps(manifest).encode())
    return _written([first, (library, data), *(_part(name, members[name]) for name in (SMALL, WEIGHTS))])


def _with_manifest(**changes: Any) -> bytes:
    members = _members()
    data = {**json.loads(members[MANIFEST]), **changes}
    return _packed(list({**members, MANIFEST: json.dumps(data).encode()}.items()))


def test_contents_of_a_good_file(packed: Path, library: bytes) -> None:
    contents = open_artifact(packed)
    assert bytes(contents.library) == library
    assert contents.manifest.report[0]["name"] == "drop-identities"
    assert contents.manifest.figures == {"macs": 640}
    assert contents.manifest.weights == ("w", "b")
    for view, (_, weight) in zip(contents.weights, handmade.weights(), strict=True):
        np.testing.assert_array_equal(view, weight)


def test_ordinary_tools_read_it(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == [*MEMBERS]
        assert archive.testzip() is None
        loaded = {k: v for name in (SMALL, WEIGHTS) for k, v in safetensors.numpy.load(archive.read(name)).items()}
        data = json.loads(archive.read(MANIFEST))
    for name, weight in handmade.weights():
        np.testing.assert_array_equal(loaded[name], weight)
    assert data["members"][WEIGHTS]["sha256"] == hashlib.sha256(_members(packed.read_bytes())[WEIGHTS]).hexdigest()


def test_equal_input_gives_equal_bytes() -> None:
    assert handmade.artifact(b"no library at all", **TINY) == GOOD


def test_full_lines_of_weights_are_used_in_place(packed: Path) -> None:
    w, _ = open_artifact(packed).weights
    assert w.ctypes.data % 64 == 0
    assert vm.aligned(w) is w


def test_writing_to_weights_does_not_reach_the_disk(packed: Path) -> None:
    before = packed.read_bytes()
    contents = open_artifact(packed)
    contents.weights[0][...] = 0
    assert packed.read_bytes() == before


def test_the_file_may_be_deleted_or_replaced_while_open(packed: Path) -> None:
    contents = open_artifact(packed)
    packed.unlink()
    packed.write_bytes(b"something else")
    np.testing.assert_array_equal(contents.weights[0], handmade.weights()[0][1])


# Damage


def test_every_flipped_byte_is_detected(refuse: Callable[[bytes], str]) -> None:
    """Each byte of the file: headers, padding, data, directory, comment."""
    for position in range(len(GOOD)):
        damaged = bytearray(GOOD)
        damaged[position] ^= 1 << (position % 8)
        refuse(bytes(damaged))


@FUZZ
@given(data=st.data())
def test_truncated(refuse: Callable[[bytes], str], data: st.DataObject) -> None:
    refuse(GOOD[: data.draw(st.integers(0, len(GOOD) - 1))])


@FUZZ
@given(start=st.integers(0, len(GOOD)), stop=st.integers(0, len(GOOD)), patch=st.binary(max_size=80))
def test_spliced(refuse: Callable[[bytes], str], start: int, stop: int, patch: bytes) -> None:
    damaged = GOOD[:start] + patch + GOOD[stop:]
    if damaged != GOOD:
        refuse(damaged)


@FUZZ
@given(noise=st.binary(max_size=300), keep=st.integers(0, 400))
def test_noise_with_a_true_ending(refuse: Callable[[bytes], str], noise: bytes, keep: int) -> None:
    """The end of a zip file is where its reading begins."""
    damaged = noise + GOOD[len(GOOD) - keep :]
    if damaged != GOOD:
        refuse(damaged)


@FUZZ
@given(
    changes=st.dictionaries(
        st.sampled_from(["format", "signature", "platform", "weights", "members", "report", "figures", "versions"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_manifest_of_garbage_with_a_true_digest(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Whatever the manifest says, it is refused, or what it says was harmless."""
    path = tmp_path / "bad.shave"
    path.write_bytes(_with_manifest(**changes))
    try:
        open_artifact(path)
    except ArtifactError:
        return
    assert changes.keys() <= {"report", "figures", "versions"}


def test_checksum_that_zip_tools_would_miss(refuse: Callable[[bytes], str]) -> None:
    """A member exchanged together with its zip checksum still lacks the digest."""
    members = {**_members(), LIBRARY: b"something else   "}
    assert "library.so" in refuse(_packed(list(members.items()))) or "framing" in refuse(_packed(list(members.items())))


# Foreign files


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all", b"\x7fELF" + bytes(200), bytes(5000)])
def test_not_a_zip(refuse: Callable[[bytes], str], content: bytes) -> None:
    assert "not an artifact" in refuse(content)


def _zip(names: list[str], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name in names:
            archive.writestr(name, bytes(1000))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "..\\evil", "C:\\evil", "\\\\host\\evil"])
def test_paths_that_climb_out(refuse: Callable[[bytes], str], name: str) -> None:
    assert f"{name!r} points out" in refuse(_zip([MANIFEST, LIBRARY, WEIGHTS, name]))


def test_foreign_member(refuse: Callable[[bytes], str]) -> None:
    assert "'extra.txt'" in refuse(_packed([*_members().items(), ("extra.txt", b"")]))
    assert "'model.pt'" in refuse(_zip(["model.pt"]))


@pytest.mark.parametrize("name", [*MEMBERS])
def test_missing_member(refuse: Callable[[bytes], str], name: str) -> None:
    rest = [(other, data) for other, data in _members().items() if other != name]
    assert f"0 of its members are named {name}" in refuse(_packed(rest))


@pytest.mark.parametrize("name", [*MEMBERS])
def test_duplicate_member(refuse: Callable[[bytes], str], name: str) -> None:
    members = _members()
    assert f"2 of its members are named {name}" in refuse(_packed([*members.items(), (name, members[name])]))


def test_other_order(refuse: Callable[[bytes], str]) -> None:
    refuse(_packed(list(reversed(_members().items()))))


def test_members_deflated_otherwise(refuse: Callable[[bytes], str]) -> None:
    """Each is deflated, or not, as the format says."""
    refuse(_zip([*MEMBERS], zipfile.ZIP_DEFLATED))
    (_, plain), *others = _members().items()
    first = Member.of(MANIFEST, [plain])
    refuse(_written([(first, plain), *(_part(name, data) for name, data in others)]))
    assert "does not describe its members" in refuse(_with_library(Member.of(LIBRARY, [b"code"]), b"code"))


@pytest.mark.parametrize("size", [0, 16, 18, 1 << 20])
def test_library_that_inflates_to_another_size(refuse: Callable[[bytes], str], size: int) -> None:
    library, data = _part(LIBRARY, _members()[LIBRARY])
    assert library.size == 17
    assert f"library.so is not of {size} bytes" in refuse(_with_library(dataclasses.replace(library, size=size), data))


def test_library_that_is_no_deflated_stream(refuse: Callable[[bytes], str]) -> None:
    for junk in (b"", b"\xff" * 40, Member.deflated(LIBRARY, b"code")[1] + b"more"):
        digest = hashlib.sha256(junk).hexdigest()
        assert "it is damaged: library.so" in refuse(_with_library(Member(LIBRARY, 4, 0, digest, len(junk)), junk))


def test_bombs_are_refused_before_they_are_inflated(refuse: Callable[[bytes], str]) -> None:
    library, data = _part(LIBRARY, bytes(1 << 22))
    assert len(data) < 1 << 13
    lying = dataclasses.replace(library, size=17)
    assert "not of 17 bytes" in refuse(_with_library(lying, data))
    absurd = dataclasses.replace(library, size=1 << 31)
    assert "library.so of 2147483648 bytes is absurd" in refuse(_with_library(absurd, data))


@pytest.mark.parametrize("size", [1 << 27, 1 << 40, 1 << 61])
def test_absurd_size_of_the_manifest(refuse: Callable[[bytes], str], size: int) -> None:
    real = len(_members()[MANIFEST])
    damaged = GOOD.replace(real.to_bytes(8, "little"), size.to_bytes(8, "little"))
    assert damaged != GOOD
    assert "absurd" in refuse(damaged)


def test_absurd_size_of_a_member(refuse: Callable[[bytes], str]) -> None:
    data = json.loads(_members()[MANIFEST])["members"]
    data[WEIGHTS]["size"] = 1 << 50
    assert "bytes instead of" in refuse(_with_manifest(members=data))


def test_newer_format(refuse: Callable[[bytes], str]) -> None:
    message = refuse(_with_manifest(format=FORMAT + 1))
    assert f"format {FORMAT + 1}, and this shave reads format {FORMAT}; update shave" in message


def test_weights_that_the_manifest_does_not_name(refuse: Callable[[bytes], str]) -> None:
    assert "does not describe its weights" in refuse(_with_manifest(weights=["w"]))
    assert "does not describe its weights" in refuse(_with_manifest(weights=["w", "w", "b"]))
    entry = {"kind": "narrow", "bits": 0, "view": [16], "packing": []}
    for name in ("w", "other"):
        assert "does not describe its weights" in refuse(_with_manifest(encodings={name: entry}))


def test_a_tensor_in_both_files(refuse: Callable[[bytes], str]) -> None:
    members = _members()
    assert members[SMALL] != members[WEIGHTS]
    data = json.loads(members[MANIFEST])
    twice = members[SMALL]
    size, crc32 = len(twice), zlib.crc32(twice)
    digest = hashlib.sha256(twice).hexdigest()
    data["members"][WEIGHTS] = {"size": size, "crc32": crc32, "sha256": digest, "stored": None}
    changed = {**members, MANIFEST: json.dumps(data).encode(), WEIGHTS: twice}
    assert "it holds a tensor twice" in refuse(_packed(list(changed.items())))


def test_other_processor(tmp_path: Path, refuse: Callable[[bytes], str]) -> None:
    target = dataclasses.replace(resolve("cpu"), name="future", features=resolve("cpu").features | {"avx1024"})
    assert "compiled for future" in refuse(handmade.artifact(b"", target=target))
    assert "lacks avx1024" in refuse(handmade.artifact(b"", target=target))


def test_other_architecture(refuse: Callable[[bytes], str]) -> None:
    name = "cortex-a76" if host.architecture() == "x86_64" else "x86-64-v3"
    assert f"this machine is {host.architecture()}" in refuse(handmade.artifact(b"", target=resolve(name)))


def test_artifact_for_another_machine_can_be_inspected(tmp_path: Path) -> None:
    path = tmp_path / "arm.shave"
    path.write_bytes(handmade.artifact(b"", target=resolve("neoverse-n1")))
    assert open_artifact(path).manifest.platform.target == "neoverse-n1"


@pytest.mark.parametrize(("name", "reason"), [("absent.shave", "no such file"), (".", "it is not a file")])
def test_no_file(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ArtifactError, match=f"cannot read .*: {reason}"):
        load(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.shave"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(ArtifactError, match="Permission denied"):
        load(path)


# Saving


def test_saved_bytes_are_the_same(packed: Path, tmp_path: Path) -> None:
    runtime.load(packed).save(tmp_path / "copy.shave")
    assert (tmp_path / "copy.shave").read_bytes() == packed.read_bytes()


def test_saving_over_its_own_file(packed: Path) -> None:
    before = packed.read_bytes()
    artifact = load(packed)
    artifact.save(packed)
    assert packed.read_bytes() == before
    assert artifact(np.ones((1, handmade.WIDTH), np.float32))[0].shape == (1, handmade.OUT)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_failed_save_leaves_the_old_file(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    artifact = load(packed)
    target = tmp_path / "out.shave"
    target.write_bytes(b"old")

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError if isinstance(error, OSError) else KeyboardInterrupt):
        artifact.save(target)
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["handmade.shave", "out.shave"]


def test_names_are_those_of_the_format() -> None:
    """Written down in the documentation of the format: a change needs a new format number."""
    assert MEMBERS == ("manifest.json", "library.so", "small.safetensors", "weights.safetensors")
    assert artifacts._COMMENT == b"shave manifest sha256:"
