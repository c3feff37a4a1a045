"""The container of an artifact: a zip file with exactly one possible byte sequence for given members.

Members start at multiples of 64 bytes. What is used in place is stored as it is, so that a reader may map the file;
the rest may be deflated. Any zip tool reads it. Because nothing is left to the writer's choice (no time stamps, no
gaps, no flags), a reader that knows the members can compute every other byte of the file: :func:`layout` is that
computation, shared by both sides. Offsets and sizes use the zip64 form always (APPNOTE.TXT 6.3.10, sections 4.3 and
4.5.3).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from shave.ir.errors import ArtifactError

ALIGNMENT = 64
"""Bytes; what TVM's kernels require of every tensor."""

_VERSION = 45  # 4.5: the first with zip64
_DATE = 0x21  # 1 January 1980, the first day that the format can say
_FULL = 0xFFFFFFFF  # "see the zip64 field"
_RAW = -zlib.MAX_WBITS  # deflate without zlib's own frame
_STORED, _DEFLATED = 0, zlib.DEFLATED  # of the methods of the format, those that are used
_PADDING_ID = 0xD935  # the extra field that Android's zipalign uses for padding


@dataclass(frozen=True)
class Member:
    """What the framing of the file says about one member.

    Attributes:
        name: Name in ASCII, without folders.
        size: Bytes of the content.
        crc32: Checksum of the content that zip tools verify.
        sha256: Digest of the stored bytes that the loader verifies before it reads them, in hexadecimal.
        stored: Bytes in the file, if the content is deflated; None if it is stored as it is.
    """

    name: str
    size: int
    crc32: int
    sha256: str
    stored: int | None = None

    @staticmethod
    def of(name: str, chunks: Iterable[bytes | memoryview]) -> Member:
        """Describe a member that is stored as it is."""
        size, crc32, digest = 0, 0, hashlib.sha256()
        for chunk in chunks:
            size += len(chunk)
            crc32 = zlib.crc32(chunk, crc32)
            digest.update(chunk)
        return Member(name, size, crc32, digest.hexdigest())

    @staticmethod
    def deflated(name: str, content: bytes) -> tuple[Member, bytes]:
        """Describe a member that is deflated, and give the bytes to store."""
        engine = zlib.compressobj(9, zlib.DEFLATED, _RAW)
        data = engine.compress(content) + engine.flush()
        return Member(name, len(content), zlib.crc32(content), hashlib.sha256(data).hexdigest(), len(data)), data

    @property
    def space(self) -> int:
        """Bytes that its data take in the file."""
        return self.size if self.stored is None else self.stored

    def read(self, data: memoryview) -> memoryview:
        """Check its data and give the content: a view of the data, or a copy of its own.

        Raises:
            ArtifactError: The data are not those that the member was made of.
        """
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ArtifactError(f"it is damaged: the digest of {self.name} does not fit")
        return data if self.stored is None else memoryview(inflate(self.name, data, self.size))


def inflate(name: str, data: memoryview, size: int) -> bytes:
    """Inflate the data of a member into memory for the size that it should have, whatever the data make of it.

    Raises:
        ArtifactError: They are no deflated stream of that size.
    """
    engine = zlib.decompressobj(_RAW)
    try:
        content = engine.decompress(data, size + 1)
    except zlib.error as error:
        raise ArtifactError(f"it is damaged: {name} cannot be inflated ({error})") from error
    if len(content) != size or not engine.eof or engine.unused_data:
        raise ArtifactError(f"it is damaged: {name} is not of {size} bytes")
    return content


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the file.

    Attributes:
        starts: Offset of each member's data.
        framing: Offset and content of all that is not data, in the order of the file.
        size: Bytes of the whole file.
    """

    starts: tuple[int, ...]
    framing: tuple[tuple[int, bytes], ...]
    size: int


def layout(members: Sequence[Member], comment: bytes) -> Layout:
    """Compute every byte of the file that is not a member's data."""
    starts, framing, directory, position = [], [], b"", 0
    for member in members:
        name = member.name.encode("ascii")
        fixed = 30 + len(name) + 20 + 6
        padding = -(position + fixed) % ALIGNMENT
        method = _STORED if member.stored is None else _DEFLATED
        common = struct.pack("<HHHHHIII", _VERSION, 0, method, 0, _DATE, member.crc32, _FULL, _FULL)
        local = b"PK\3\4" + common + struct.pack("<HH", len(name), 26 + padding) + name
        local += struct.pack("<HHQQ", 1, 16, member.size, member.space)
        local += struct.pack("<HHH", _PADDING_ID, 2 + padding, ALIGNMENT) + bytes(padding)
        directory += b"PK\1\2" + struct.pack("<H", _VERSION) + common
        directory += struct.pack("<HHHHHII", len(name), 28, 0, 0, 0, 0, _FULL) + name
        directory += struct.pack("<HHQQQ", 1, 24, member.size, member.space, position)
        framing.append((position, local))
        starts.append(position + fixed + padding)
        position = starts[-1] + member.space
    count = len(members)
    end = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, _VERSION, _VERSION, 0, 0, count, count, len(directory), position)
    end += b"PK\6\7" + struct.pack("<IQI", 0, position + len(directory), 1)
    end += b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, _FULL, _FULL, len(comment)) + comment
    framing.append((position, directory + end))
    return Layout(tuple(starts), tuple(framing), position + len(directory) + len(end))


def write(stream: BinaryIO, members: Sequence[tuple[Member, Iterable[bytes | memoryview]]], comment: bytes) -> None:
    """Write the file from members and their content."""
    framing = layout([member for member, _ in members], comment).framing
    for (_, frame), (_, chunks) in zip(framing, members, strict=False):
        stream.write(frame)
        for chunk in chunks:
            stream.write(chunk)
    stream.write(framing[-1][1])
