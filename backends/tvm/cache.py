"""Generated code kept on disk between compilations, so that a kernel is compiled once per machine.

An entry is found by the digest of everything that decides its content. Nothing about the cache can fail a compilation:
where its folder cannot be made, read or written, code is generated anew. What is read is linked and later run, so the
folder must belong to this user alone, and each entry begins with a digest of its name and content.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from pathlib import Path

LIMIT = 512 << 20
"""Bytes that the cache may hold; a kernel has about 20 kB."""

_OFF = ("off", "0", "none")
_DIGEST_BYTES = hashlib.sha256().digest_size


class Cache:
    """A folder of entries that several processes may use at once."""

    def __init__(self, folder: Path | None, limit: int = LIMIT) -> None:
        """Use a folder, which is made when it is first written to.

        Args:
            folder: Where the entries are; None for a cache that keeps nothing.
            limit: Bytes from which on the entries that were not used for the longest time are removed.
        """
        self._folder = folder
        self._limit = limit

    def get(self, key: str) -> bytes | None:
        """The content kept under a key, if it is there and undamaged."""
        if self._folder is None or not self._is_private():
            return None
        path = self._folder / key
        try:
            entry = path.read_bytes()
            content = entry[_DIGEST_BYTES:]
            if entry[:_DIGEST_BYTES] != _digest(key, content):
                path.unlink()
                return None
            os.utime(path)  # used just now
        except OSError:
            return None
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep content under a key; readers see all of it or nothing."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_private():
                return
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as stream:
                try:
                    stream.write(_digest(key, content) + content)
                    stream.flush()
                    os.replace(stream.name, self._folder / key)
                except BaseException:
                    os.unlink(stream.name)
                    raise
        except OSError:
            return

    def trim(self) -> None:
        """Remove the entries that were not used for the longest time, until a tenth of the limit is free."""
        if self._folder is None:
            return
        entries = []
        try:
            with os.scandir(self._folder) as found:
                for entry in found:
                    status = entry.stat(follow_symlinks=False)
                    entries.append((status.st_mtime, status.st_size, entry.path))
        except OSError:
            return
        total = sum(size for _, size, _ in entries)
        if total <= self._limit:
            return
        for _, size, path in sorted(entries):
            try:
                os.unlink(path)
            except OSError:
                continue
            total -= size
            if total <= self._limit * 0.9:
                return

    def _is_private(self) -> bool:
        """Whether nobody else could have written to the folder."""
        assert self._folder is not None
        try:
            status = self._folder.stat()
        except OSError:
            return False
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            warnings.warn(
                f"the cache {self._folder} is open to other users and therefore not used; chmod 700 it, or remove it",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        return True


def default_cache() -> Cache:
    """The cache of this user: ``SHAVE_CACHE`` names its folder or says ``off``, else it is ``~/.cache/shave``."""
    named = os.environ.get("SHAVE_CACHE", "")
    if named.lower() in _OFF:
        return Cache(None)
    if named:
        return Cache(Path(named).expanduser() / "kernels")
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:  # no home
        return Cache(None)
    return Cache(root / "shave" / "kernels")


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + content).digest()
