from __future__ import annotations

import io
import zipfile

import pytest

from shave.backends.container import ALIGNMENT, Member, layout, write
from shave.ir.errors import ArtifactError

CONTENTS = [("manifest.json", b"{}"), ("library.so", b"x" * 1000), ("empty", b""), ("weights.safetensors", b"y" * 65)]


def _written(contents: list[tuple[str, bytes]] = CONTENTS, comment: bytes = b"hello") -> bytes:
    stream = io.BytesIO()
    write(stream, [(Member.of(name, [data]), [data]) for name, data in contents], comment)
    return stream.getvalue()


def test_any_zip_reader_takes_it() -> None:
    with zipfile.ZipFile(io.BytesIO(_written())) as archive:
        assert archive.testzip() is None
        assert archive.comment == b"hello"
        assert [(info.filename, archive.read(info)) for info in archive.infolist()] == CONTENTS
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def test_members_are_aligned_where_the_layout_says() -> None:
    data = _written()
    plan = layout([Member.of(name, [content]) for name, content in CONTENTS], b"hello")
    assert plan.size == len(data)
    for start, (_, content) in zip(plan.starts, CONTENTS, strict=True):
        assert start % ALIGNMENT == 0
        assert data[start : start + len(content)] == content
    framed = sum(len(frame) for _, frame in plan.framing) + sum(len(content) for _, content in CONTENTS)
    assert framed == len(data)  # framing and data cover each byte once
    for offset, frame in plan.framing:
        assert data[offset : offset + len(frame)] == frame


def test_deflated_members() -> None:
    content = bytes(range(256)) * 40
    member, data = Member.deflated("library.so", content)
    assert (member.size, member.space) == (len(content), len(data))
    assert len(data) < 1000
    stream = io.BytesIO()
    write(stream, [(member, [data]), (Member.of("last", [b"y"]), [b"y"])], b"")
    with zipfile.ZipFile(stream) as archive:
        assert archive.testzip() is None
        assert archive.read("library.so") == content
        assert [info.compress_type for info in archive.infolist()] == [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED]
    assert member.read(memoryview(data)) == content
    with pytest.raises(ArtifactError, match=r"digest of library\.so"):
        member.read(memoryview(data[:-1]))


def test_offsets_beyond_four_gigabytes() -> None:
    """The zip64 fields hold what 32 bits cannot."""
    big = Member("big", 5 << 32, 0, "")
    last = Member("last", 1, 0, "")
    plan = layout([big, last], b"")
    assert plan.starts[1] > 5 << 32
    directory = plan.framing[-1][1]
    assert (5 << 32).to_bytes(8, "little") in directory
    assert plan.framing[1][0].to_bytes(8, "little") in directory


def test_equal_input_gives_equal_bytes() -> None:
    assert _written() == _written()
