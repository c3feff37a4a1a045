from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shave.backends.targets import resolve
from shave.backends.tvm import build as builder
from shave.backends.tvm.build import Job, build, generate_here, split
from shave.backends.tvm.cache import Cache, default_cache
from tests.backends import handmade


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def test_what_was_put_is_there_for_this_user_alone(folder: Path) -> None:
    cache = Cache(folder)
    assert cache.get("a") is None
    cache.put("a", b"code")
    assert Cache(folder).get("a") == b"code"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.listdir(folder) == ["a"]


@pytest.mark.parametrize("damage", [lambda entry: entry[:-1], lambda entry: b"", lambda entry: entry[:-1] + b"X"])
def test_damaged_entry_is_no_entry(folder: Path, damage: object) -> None:
    cache = Cache(folder)
    cache.put("a", b"code")
    path = folder / "a"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert cache.get("a") is None
    cache.put("a", b"code")
    assert cache.get("a") == b"code"


def test_entry_under_another_name_is_no_entry(folder: Path) -> None:
    cache = Cache(folder)
    cache.put("a", b"code")
    (folder / "a").rename(folder / "b")
    assert cache.get("b") is None


def test_folder_that_others_can_write_is_not_used(folder: Path) -> None:
    cache = Cache(folder)
    cache.put("a", b"code")
    folder.chmod(0o770)
    with pytest.warns(RuntimeWarning, match="open to other users"):
        assert cache.get("a") is None
    with pytest.warns(RuntimeWarning, match="chmod 700"):
        cache.put("b", b"code")
    assert os.listdir(folder) == ["a"]


def test_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = Cache(tmp_path / "file" / "kernels")
    cache.put("a", b"code")
    cache.trim()
    assert cache.get("a") is None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache = Cache(tmp_path / "kernels")
    cache.put("a", b"code")
    assert os.listdir(tmp_path / "kernels") == []


def test_entries_not_used_for_long_go_first(folder: Path) -> None:
    cache = Cache(folder, limit=3 * 1100)
    for age, key in enumerate("dcba"):
        cache.put(key, bytes(1000))
        os.utime(folder / key, (time.time() - 100 + age,) * 2)
    assert cache.get("d") is not None  # used just now
    cache.trim()
    assert sorted(os.listdir(folder)) == ["a", "d"]


def test_folder_is_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for choice, place in (("", tmp_path / "xdg/shave/kernels"), (str(tmp_path / "own"), tmp_path / "own/kernels")):
        monkeypatch.setenv("SHAVE_CACHE", choice)
        default_cache().put("a", b"code")
        assert os.listdir(place) == ["a"]
    monkeypatch.setenv("SHAVE_CACHE", "off")
    default_cache().put("b", b"code")
    assert default_cache().get("b") is None


class _Counting:
    """Generates code here and counts the jobs."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
        self.done += [job.name for job in jobs]
        return generate_here(jobs)


def test_second_build_generates_nothing_and_gives_the_same(folder: Path) -> None:
    counting = _Counting()
    target = resolve("cpu")
    steps: list[tuple[int, int]] = []
    libraries = [
        build(handmade.module(), target, counting, Cache(folder), lambda *step: steps.append(step)) for _ in range(2)
    ]
    assert sorted(counting.done) == ["add", "matmul", "relu", "reshape", "the program"]
    assert libraries[0] == libraries[1]
    assert steps == [(n, 5) for n in range(6)] + [(5, 5)]


def test_only_what_changed_is_generated(folder: Path) -> None:
    counting = _Counting()
    target = resolve("cpu")
    build(handmade.module(), target, counting, Cache(folder))
    counting.done.clear()
    build(handmade.module(negate=True), target, counting, Cache(folder))
    assert sorted(counting.done) == ["the program", "tir_negative"]


def test_key_tells_targets_and_versions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    job = split(handmade.module(), resolve("x86-64-v3"))[1]
    same = replace(job, target=replace(job.target, name="another name for it"))
    assert same.key == job.key
    assert replace(job, target=resolve("x86-64-v4")).key != job.key
    assert replace(job, code=job.code + " ").key != job.key
    before = job.key
    monkeypatch.setattr(builder, "CODEGEN", builder.CODEGEN + 1)
    assert job.key != before


_BUILD = """
import sys
from pathlib import Path
from shave.backends.targets import resolve
from shave.backends.tvm.build import build
from shave.backends.tvm.cache import Cache
from tests.backends import handmade
sys.stdout.buffer.write(build(handmade.module(), resolve("cpu"), cache=Cache(Path(sys.argv[1]))))
"""


def test_two_processes_share_a_cache(folder: Path) -> None:
    root = Path(__file__).parents[3]
    processes = [
        subprocess.Popen([sys.executable, "-c", _BUILD, str(folder)], stdout=subprocess.PIPE, cwd=root)
        for _ in range(2)
    ]
    x = np.random.default_rng(0).normal(size=(3, handmade.WIDTH)).astype(np.float32)
    for process in processes:
        library, _ = process.communicate(timeout=120)
        np.testing.assert_allclose(handmade.run(library, x), handmade.expected(x), rtol=1e-5, atol=1e-5)
    assert len(os.listdir(folder)) == 5
