"""Writing whole files or none."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shave.ir.errors import WriteError
from shave.ir.files import atomic_write


def test_atomic_write_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with atomic_write(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


def test_atomic_write_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "out") as stream:
            stream.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_atomic_write_keeps_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def _fail_halfway(path: Path, error: BaseException) -> None:
    with atomic_write(path) as stream:
        stream.write(b"half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), ValueError()])
@pytest.mark.parametrize("existing", [True, False])
def test_failure_while_writing_leaves_everything_as_it_was(
    tmp_path: Path, error: BaseException, existing: bool
) -> None:
    path = tmp_path / "out"
    if existing:
        path.write_bytes(b"old")
    expected = WriteError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        _fail_halfway(path, error)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert os.listdir(tmp_path) == (["out"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_full_disk(tmp_path: Path) -> None:
    """The operating system itself refuses a file beyond the limit."""
    path = tmp_path / "out"
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(WriteError, match=r"cannot write .*out: File too large"), atomic_write(path) as stream:
            stream.write(bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_interrupt_from_the_keyboard(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    program = (
        "import pathlib, signal, sys, time\n"
        "from shave.ir.files import atomic_write\n"
        # Jobs in the background of a shell inherit that the signal is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with atomic_write(pathlib.Path(sys.argv[1])) as stream:\n"
        "    stream.write(bytes(100_000)); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert os.listdir(tmp_path) == ["out"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("no/such/folder/out", "No such file")])
def test_impossible_places(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(WriteError, match=reason), atomic_write(tmp_path / name) as stream:
        stream.write(b"new")
