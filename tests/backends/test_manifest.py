from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from shave.backends import host
from shave.backends.container import Member
from shave.backends.encoding import Encoding
from shave.backends.manifest import FORMAT, Manifest, Platform, made_with
from shave.backends.packing import Packing
from shave.backends.targets import resolve
from shave.ir.errors import ArtifactError
from tests.backends import handmade

MANIFEST = Manifest(
    signature=handmade.signature(),
    platform=Platform.of(resolve("x86-64-v3")),
    weights=("w", "b"),
    plan=None,
    members=(Member.of("library.so", [b"x"]), Member.of("weights.safetensors", [b"yy"])),
    report=[{"name": "dedupe"}],
    figures={"macs": 640},
    versions={"apache-tvm": "0.27"},
    encodings={"w": Encoding("lookup", 4, (3, 5), Packing().pad(4, 8).transpose(1, 0))},
)


def test_round_trip() -> None:
    assert Manifest.decode(MANIFEST.encode()) == MANIFEST


def test_it_is_plain_json_for_people() -> None:
    data = json.loads(MANIFEST.encode())
    assert data["format"] == FORMAT
    assert data["members"]["weights.safetensors"]["size"] == 2
    assert "avx2" in data["platform"]["features"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(FORMAT + 1, "update shave"), (0, "reads format"), ("1", "'1'"), (None, "None"), (True, "True")],
)
def test_other_formats_are_refused(number: Any, message: str) -> None:
    data = {**MANIFEST.to_json(), "format": number}
    with pytest.raises(ArtifactError, match=message):
        Manifest.decode(json.dumps(data).encode())


OTHER_KIND = {
    "signature": [None, 3, "text", [3], {"a": 3}],
    "platform": [None, 3, "text", [3], {"a": 3}],
    "weights": [None, 3, [3], [None]],
    "encodings": [None, 3, "text", [3], {"w": 3}, {"w": {}}],
    "plan": [3, "text", [3], {"a": 3}],
    "members": [None, 3, "text", [3], {"a": 3}],
    "report": [None, 3],
    "figures": [None, 3, "text", [3]],
    "versions": [None, 3, "text", [3], {"a": 3}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OTHER_KIND.items() for value in values])
def test_each_entry_is_checked(key: str, value: Any) -> None:
    data = {**MANIFEST.to_json(), key: value}
    with pytest.raises(ArtifactError, match="manifest"):
        Manifest.decode(json.dumps(data).encode())


@pytest.mark.parametrize("key", MANIFEST.to_json())
def test_each_entry_is_needed(key: str) -> None:
    data = MANIFEST.to_json()
    del data[key]
    with pytest.raises(ArtifactError, match=f"manifest.*{key}"):
        Manifest.decode(json.dumps(data).encode())


@pytest.mark.parametrize(
    "member",
    [
        {"size": -1, "crc32": 0, "sha256": "0" * 64},
        {"size": 1 << 63, "crc32": 0, "sha256": "0" * 64},
        {"size": 1.5, "crc32": 0, "sha256": "0" * 64},
        {"size": True, "crc32": 0, "sha256": "0" * 64},
        {"size": 1, "crc32": 1 << 32, "sha256": "0" * 64},
        {"size": 1, "crc32": 0, "sha256": "0" * 63},
        {"size": 1, "crc32": 0, "sha256": "G" * 64},
        {"size": 1, "crc32": 0},
    ],
)
def test_absurd_members_are_refused(member: dict[str, Any]) -> None:
    data = MANIFEST.to_json()
    data["members"]["library.so"] = member
    with pytest.raises(ArtifactError, match="manifest"):
        Manifest.decode(json.dumps(data).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}', b"9" * 10_000])
def test_garbage_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"manifest|format"):
        Manifest.decode(content)


def _on(monkeypatch: pytest.MonkeyPatch, architecture: str, system: str, features: frozenset[str]) -> None:
    monkeypatch.setattr(host, "architecture", lambda: architecture)
    monkeypatch.setattr(host, "system", lambda: system)
    monkeypatch.setattr(host, "features", lambda: features)


def test_lower_target_runs_on_a_higher_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    _on(monkeypatch, "x86_64", "linux", resolve("zen4").features)
    Platform.of(resolve("x86-64-v3")).check_host()


def test_missing_features_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _on(monkeypatch, "x86_64", "linux", resolve("skylake-avx512").features)
    with pytest.raises(ArtifactError, match=r"compiled for cascadelake \(cascadelake\).* lacks avx512_vnni;"):
        Platform.of(resolve("cascadelake")).check_host()


@pytest.mark.parametrize(
    ("architecture", "system"), [("aarch64", "linux"), ("x86_64", "windows"), ("x86_64", "darwin")]
)
def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch, architecture: str, system: str) -> None:
    _on(monkeypatch, architecture, system, resolve("zen4").features)
    with pytest.raises(
        ArtifactError, match=f"compiled for x86_64-unknown-linux-gnu, and this machine is {architecture} {system}"
    ):
        Platform.of(resolve("x86-64-v3")).check_host()


def test_other_release_of_tvm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _on(monkeypatch, "x86_64", "linux", resolve("zen4").features)
    number = made_with()["apache-tvm"]
    assert number is not None
    dataclasses.replace(MANIFEST, versions={"apache-tvm": number}).check_here()
    with pytest.raises(ArtifactError, match=f"made with apache-tvm 0.27, and here is {number}"):
        MANIFEST.check_here()
