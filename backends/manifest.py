"""The manifest of an artifact: what it is, what made it, where it runs, and the digest of every other member."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shave.backends import host
from shave.backends.container import Member
from shave.backends.encoding import Encoding
from shave.backends.kernel_cost import KernelCost
from shave.backends.plan import Plan
from shave.backends.target import Target
from shave.ir.errors import ArtifactError, SignatureError
from shave.ir.signature import Signature

FORMAT = 4
"""Version of the format that this code writes, and the only one that it reads."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Platform:
    """Where the code of an artifact runs.

    Attributes:
        target: Name of the target it was compiled for.
        kind: Family of code generators: ``x86``, ``arm`` or ``cuda``.
        cpu: LLVM's name of the processor.
        triple: LLVM's target triple.
        features: Instruction set extensions that the code may use: the machine must have all of them.
    """

    target: str
    kind: str
    cpu: str
    triple: str
    features: tuple[str, ...]

    @staticmethod
    def of(target: Target) -> Platform:
        """What code for this target needs."""
        return Platform(target.name, target.kind, target.cpu, target.triple, tuple(sorted(target.features)))

    def check_host(self) -> None:
        """Refuse to run on a machine that lacks something.

        Raises:
            ArtifactError: Names the system, architecture or features that this machine lacks.
        """
        architecture, system = host.architecture(), host.system()
        if self.triple.partition("-")[0] != architecture or system not in self.triple:
            raise ArtifactError(f"it was compiled for {self.triple}, and this machine is {architecture} {system}")
        if missing := sorted(set(self.features) - host.features()):
            raise ArtifactError(
                f"it was compiled for {self.target} ({self.cpu}), and this processor lacks {', '.join(missing)}; "
                "compile for a lower target, such as x86-64-v3"
            )


@dataclass(frozen=True)
class Manifest:
    """The first member of the file.

    Attributes:
        signature: Inputs and outputs.
        platform: Where the code runs.
        weights: Names of the weights in the order in which the code takes them.
        encodings: How weights are made that are stored in a small form, by name.
        plan: Which kernel runs when, on which bytes; None for a program that the virtual machine runs.
        members: The other members, in the order of the file.
        report: One JSON object per pass that was applied, oldest first.
        figures: Costs and measurements that the maker of the artifact recorded, as JSON data.
        versions: Version of each package that had a part in making it.
        kernels: The work behind each kernel; none where sizes are only known at run time.
    """

    signature: Signature
    platform: Platform
    weights: tuple[str, ...]
    plan: Plan | None
    members: tuple[Member, ...]
    report: Sequence[Any]
    figures: Mapping[str, Any]
    versions: Mapping[str, str]
    kernels: tuple[KernelCost, ...] = ()
    encodings: Mapping[str, Encoding] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give plain data that :meth:`from_json` takes back."""
        return {
            "format": FORMAT,
            "signature": self.signature.to_json(),
            "platform": {**vars(self.platform), "features": list(self.platform.features)},
            "weights": list(self.weights),
            "encodings": {name: encoding.to_json() for name, encoding in self.encodings.items()},
            "plan": None if self.plan is None else self.plan.to_json(),
            "members": {member.name: _entry(member) for member in self.members},
            "report": list(self.report),
            "figures": dict(self.figures),
            "versions": dict(self.versions),
            "kernels": [kernel.to_json() for kernel in self.kernels],
        }

    def encode(self) -> bytes:
        """Give the content of the file: equal manifests give equal bytes.

        It is on one line, as half of a plan would be the line ends and indentation of its numbers.
        """
        return json.dumps(self.to_json(), separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()

    @staticmethod
    def decode(content: bytes) -> Manifest:
        """Rebuild a manifest from :meth:`encode`'s bytes.

        Raises:
            ArtifactError: The content is not a manifest, or one of another format.
        """
        try:
            data = json.loads(content)
            if type(data["format"]) is not int or data["format"] != FORMAT:
                raise ArtifactError(_wrong_format(data["format"]))
            platform = data["platform"]
            return Manifest(
                signature=Signature.from_json(data["signature"]),
                platform=Platform(
                    target=_text(platform["target"]),
                    kind=_text(platform["kind"]),
                    cpu=_text(platform["cpu"]),
                    triple=_text(platform["triple"]),
                    features=tuple(_text(feature) for feature in platform["features"]),
                ),
                weights=tuple(_text(name) for name in data["weights"]),
                plan=None if data["plan"] is None else Plan.from_json(data["plan"]),
                members=tuple(_member(name, entry) for name, entry in data["members"].items()),
                report=list(data["report"]),
                figures=dict(data["figures"]),
                versions={_text(name): _text(number) for name, number in data["versions"].items()},
                kernels=tuple(KernelCost.from_json(entry) for entry in data["kernels"]),
                encodings={name: Encoding.from_json(entry) for name, entry in data["encodings"].items()},
            )
        except ArtifactError:
            raise
        except (SignatureError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"its manifest is not one of format {FORMAT}: {error!r}") from error

    def check_here(self) -> None:
        """Refuse to run on another kind of machine, or with another release of TVM, whose bytecode may differ.

        Raises:
            ArtifactError: Names what is lacking here, or both releases.
        """
        self.platform.check_host()
        made, here = self.versions.get("apache-tvm"), installed("apache-tvm")
        if made != here:
            raise ArtifactError(
                f"it was made with apache-tvm {made}, and here is {here}; install that, or compile anew"
            )


def made_with() -> dict[str, str | None]:
    """Versions of the packages that decide what code comes out."""
    return {name: installed(name) for name in ("shave", "apache-tvm", "apache-tvm-ffi")}


def installed(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _wrong_format(number: Any) -> str:
    if type(number) is int and number > FORMAT:
        return f"it has format {number}, and this shave reads format {FORMAT}; update shave"
    return f"it has format {number!r}, and this shave reads format {FORMAT}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _entry(member: Member) -> dict[str, Any]:
    return {name: getattr(member, name) for name in ("size", "crc32", "sha256", "stored")}


def _member(name: str, entry: Mapping[str, Any]) -> Member:
    size, crc32, sha256, stored = entry["size"], entry["crc32"], _text(entry["sha256"]), entry["stored"]
    for value, limit in ((size, 1 << 62), (crc32, 1 << 32), (stored, 1 << 62)):
        if value is None and value is stored:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
            raise ValueError(f"member {name!r} with {value!r}")
    if not _DIGEST.fullmatch(sha256):
        raise ValueError(f"digest of {name!r}")
    return Member(name, size, crc32, sha256, stored)
