from __future__ import annotations

import os
from pathlib import Path

import pytest

from shave.backends import host


def _files(root: Path, **content: str) -> None:
    for name, text in content.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def _set(monkeypatch: pytest.MonkeyPatch, root: Path, processors: list[int]) -> None:
    monkeypatch.setattr(host, "_CPUS", root / "cpus")
    monkeypatch.setattr(host, "_CGROUP", root / "cgroup")
    monkeypatch.setattr(host, "usable_processors", lambda: processors)


def test_siblings_count_as_one_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(4):
        pair = f"{number % 2},{number % 2 + 2}"
        path = tmp_path / f"cpus/cpu{number}/topology/thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(pair)
    _set(monkeypatch, tmp_path, [0, 1, 2, 3])
    assert host.usable_cores() == 2
    _set(monkeypatch, tmp_path, [0, 2])
    assert host.usable_cores() == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cgroup__cpu.max": "150000 100000"}, 2),
        ({"cgroup__cpu.max": "max 100000"}, 8),
        ({"cgroup__cpu.max": "900000 100000"}, 8),
        ({"cgroup__cpu__cpu.cfs_quota_us": "300000", "cgroup__cpu__cpu.cfs_period_us": "100000"}, 3),
        ({"cgroup__cpu__cpu.cfs_quota_us": "-1", "cgroup__cpu__cpu.cfs_period_us": "100000"}, 8),
        ({}, 8),
    ],
)
def test_quota_of_the_container_limits_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    _files(tmp_path, **files)
    _set(monkeypatch, tmp_path, list(range(8)))
    assert host.usable_cores() == cores


def test_caches_are_read_by_level_and_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "cpus/cpu0/cache"
    for index, (level, kind, size) in enumerate([(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2M")]):
        _files(folder / f"index{index}", level=str(level), type=kind, size=size)
    _set(monkeypatch, tmp_path, [0])
    assert [host.cache_bytes(level) for level in (1, 2, 3)] == [48 << 10, 2 << 20, None]


def test_usable_processors_follow_affinity() -> None:
    assert set(host.usable_processors()) == os.sched_getaffinity(0)
