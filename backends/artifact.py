"""The artifact file: making one, and opening one without trusting it.

A ``.shave`` file is a zip (:mod:`shave.backends.container`) of four members: ``manifest.json``, ``library.so`` and
``small.safetensors``, which are deflated, and ``weights.safetensors``, which is not. The comment at its end holds the
digest of the manifest, the manifest holds the digests of the others, and every remaining byte follows from these: so
each byte of a file is checked before any code of it runs.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shave.backends import weights as tensors
from shave.backends.container import Member, inflate, layout, write
from shave.backends.encoding import Encoded, part_names
from shave.backends.kernel_cost import KernelCost
from shave.backends.manifest import Manifest, Platform, made_with
from shave.backends.plan import Plan
from shave.backends.target import Target
from shave.ir.errors import ArtifactError
from shave.ir.files import atomic_write
from shave.ir.signature import Signature

MANIFEST, LIBRARY, SMALL, WEIGHTS = "manifest.json", "library.so", "small.safetensors", "weights.safetensors"
MEMBERS = (MANIFEST, LIBRARY, SMALL, WEIGHTS)
"""In the order of the file."""

_MANIFEST_LIMIT = 1 << 26
_LIMIT = 1 << 30  # bytes of another member that is inflated
_COMMENT = b"shave manifest sha256:"


@dataclass(frozen=True)
class Contents:
    """An artifact file that was checked byte by byte.

    Attributes:
        manifest: What it is.
        library: The shared library, inflated.
        stored: The tensors of the file by name, views of ``file`` but for the small ones.
        file: The whole file. Mapped copy-on-write: nothing done in memory reaches the disk.
    """

    manifest: Manifest
    library: memoryview
    stored: Mapping[str, tensors.Array]
    file: memoryview

    @property
    def weights(self) -> tuple[tensors.Array, ...]:
        """The weights in the order in which the library takes them.

        Those that are stored as they are used are views, mostly of ``file``; the others are decoded anew each time.

        Raises:
            ArtifactError: Codes do not fit their table.
        """
        return tuple(self._weight(name) for name in self.manifest.weights)

    def _weight(self, name: str) -> tensors.Array:
        encoding = self.manifest.encodings.get(name)
        if encoding is None:
            return self.stored[name]
        parts = {part: self.stored[stored] for part, stored in part_names(name, encoding.kind)}
        try:
            return encoding.decode(parts)
        except ArtifactError as error:
            raise ArtifactError(f"weight {name!r}: {error}") from error

    def save(self, path: Path) -> None:
        """Write the same bytes to another file, whole or not at all.

        Raises:
            WriteError: The file cannot be written.
        """
        with atomic_write(path) as stream:
            stream.write(self.file)


def pack(
    stream: BinaryIO,
    *,
    library: bytes,
    weights: Sequence[tuple[str, tensors.Array]],
    encoded: Mapping[str, Encoded] | None = None,
    signature: Signature,
    target: Target,
    plan: Plan | None = None,
    report: Sequence[Any] = (),
    figures: Mapping[str, Any] | None = None,
    kernels: Sequence[KernelCost] = (),
) -> None:
    """Write an artifact: equal input gives equal bytes.

    But TVM does not always give equal libraries for equal programs: it puts a few independent instructions in the order
    of the addresses of its own objects.

    Args:
        stream: Where to write.
        library: The shared library that TVM exported.
        weights: Name and content of each weight, in the order in which the library takes them.
        encoded: Small forms of weights, by name, which are stored in their places.
        signature: Inputs and outputs.
        target: What the library was compiled for.
        plan: What the library's function ``run`` does; None if the library is for the virtual machine.
        report: One JSON object per pass that was applied.
        figures: Costs and measurements to record, as JSON data.
        kernels: The work behind each kernel.

    Raises:
        UnsupportedError: A weight has a dtype without a place in the format.
    """
    encoded = encoded or {}
    small, large = tensors.split(_stored(weights, encoded))
    code = Member.deflated(LIBRARY, library)
    few = Member.deflated(SMALL, b"".join(tensors.encode(small)))
    data = Member.of(WEIGHTS, tensors.encode(large))
    manifest = Manifest(
        signature=signature,
        platform=Platform.of(target),
        weights=tuple(name for name, _ in weights),
        encodings={name: each.encoding for name, each in encoded.items()},
        plan=plan,
        members=(code[0], few[0], data),
        report=report,
        figures=figures or {},
        versions={name: number for name, number in made_with().items() if number is not None},
        kernels=tuple(kernels),
    ).encode()
    first = Member.deflated(MANIFEST, manifest)
    contents = [(member, [deflated]) for member, deflated in (first, code, few)]
    write(stream, [*contents, (data, tensors.encode(large))], _COMMENT + first[0].sha256.encode())


def _stored(
    weights: Sequence[tuple[str, tensors.Array]], encoded: Mapping[str, Encoded]
) -> list[tuple[str, tensors.Array]]:
    """The tensors of the file: weights as they are, or the parts of their small forms."""
    stored = []
    for name, array in weights:
        if name in encoded:
            small = encoded[name]
            stored += [(place, small.parts[part]) for part, place in part_names(name, small.encoding.kind)]
        else:
            stored.append((name, array))
    return stored


def open_artifact(path: Path) -> Contents:
    """Open a file and check all of it. No code of the file runs, and it may be for another machine.

    The weights stay on disk until they are used: the file must not be cut short while it is open.

    Raises:
        ArtifactError: Names the file and what is wrong with it.
    """
    if not path.is_file():
        raise ArtifactError(f"cannot read {path}: {'it is not a file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as stream:
            return read_artifact(stream)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except ArtifactError as error:
        raise ArtifactError(f"cannot load {path}: {error}") from error


def read_artifact(stream: BinaryIO) -> Contents:
    """Check and map an open file; see :func:`open_artifact`."""
    size, space = _check_directory(stream)
    file = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
    start = layout([Member(MANIFEST, 0, 0, "")], b"").starts[0]
    data = file[start : start + space]
    digest = hashlib.sha256(data).hexdigest()
    comment = _COMMENT + digest.encode()
    if file[-len(comment) :] != comment:
        raise ArtifactError("it is damaged: the digest of manifest.json does not fit")
    content = inflate(MANIFEST, data, size)
    manifest = Manifest.decode(content)

    members = (Member(MANIFEST, size, zlib.crc32(content), digest, space), *manifest.members)
    _check_members(manifest)
    plan = layout(members, comment)
    if plan.size != len(file):
        raise ArtifactError(f"it is damaged: it has {len(file)} bytes instead of {plan.size}")
    for offset, frame in plan.framing:
        if file[offset : offset + len(frame)] != frame:
            raise ArtifactError(f"it is damaged: the zip framing at byte {offset} is not what it must be")
    library, small, large = (
        member.read(file[start : start + member.space])
        for start, member in zip(plan.starts[1:], manifest.members, strict=True)
    )

    few, many = tensors.decode(small), tensors.decode(large)
    if few.keys() & many.keys():
        raise ArtifactError("it holds a tensor twice")
    stored = {**few, **many}
    _check_weights(manifest, stored)
    return Contents(manifest, library, stored, file)


def _check_members(manifest: Manifest) -> None:
    """Refuse other members than an artifact has, and what would be absurd once it is inflated."""
    deflated = [(member.name, member.stored is not None) for member in manifest.members]
    if deflated != [(LIBRARY, True), (SMALL, True), (WEIGHTS, False)]:
        raise ArtifactError("its manifest does not describe its members")
    for member in manifest.members[:2]:
        if member.size > _LIMIT:
            raise ArtifactError(f"it is refused: {member.name} of {member.size} bytes is absurd")


def _check_weights(manifest: Manifest, stored: Mapping[str, tensors.Array]) -> None:
    """Refuse weights other than the manifest says, and small forms that do not make sense; decodes nothing."""
    wanted: list[str] = []
    for name in manifest.weights:
        encoding = manifest.encodings.get(name)
        wanted += [name] if encoding is None else [place for _, place in part_names(name, encoding.kind)]
    if sorted(stored) != sorted(wanted) or not set(manifest.weights).issuperset(manifest.encodings):
        raise ArtifactError("its manifest does not describe its weights")
    for name, encoding in manifest.encodings.items():
        encoding.check(name, {part: stored[place] for part, place in part_names(name, encoding.kind)})


def _check_directory(stream: BinaryIO) -> tuple[int, int]:
    """Refuse a file whose directory is not that of an artifact.

    Gives the size of its manifest, and the bytes that this takes in the file.

    The strict check of every byte comes later; this one says in plain words what is odd about a foreign file.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise ArtifactError(f"it is not an artifact, or it is cut off ({error})") from error
    names = [info.filename for info in infos]
    for name in names:
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or ":" in name:
            raise ArtifactError(f"it is refused: member {name!r} points out of the file")
    if extra := sorted(set(names).difference(MEMBERS)):
        raise ArtifactError(f"it is not an artifact: {extra[0]!r} is no member of one")
    for name in MEMBERS:
        if names.count(name) != 1:
            raise ArtifactError(f"it is not an artifact: {names.count(name)} of its members are named {name}, not 1")
    manifest = infos[names.index(MANIFEST)]
    size, space = manifest.file_size, manifest.compress_size
    if max(size, space) > _MANIFEST_LIMIT:
        raise ArtifactError(f"it is refused: a manifest of {max(size, space)} bytes is absurd")
    return size, space
