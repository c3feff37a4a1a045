"""Running artifacts: TVM's runtime library is needed, torch and TVM's compiler are not."""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shave.backends import host
from shave.backends.artifact import Contents, open_artifact
from shave.backends.manifest import Manifest
from shave.backends.tvm import vm
from shave.backends.tvm.executor import Executor
from shave.backends.weights import Array, numpy_dtype
from shave.ir.errors import ArtifactError, SignatureError
from shave.ir.signature import Signature

_REMEMBERED_SHAPES = 1000  # combinations of input shapes that were checked once
_HOST_MEMORY = (1, 3)  # kDLCPU, kDLCUDAHost


@dataclass(frozen=True)
class KernelTime:
    """Time spent in one kernel during one call of an artifact.

    Attributes:
        name: The kernel, or ``(virtual machine)`` for what happens between kernels.
        calls: How often one call of the artifact runs it.
        seconds: Time of all these together; the median of several rounds.
    """

    name: str
    calls: int
    seconds: float


class Artifact:
    """A compiled program: call it with arrays.

    Several Python threads may call one artifact, or several, at once; each call then runs on :attr:`threads` threads.

    Attributes:
        manifest: Signature, target, passes, versions and digests.
    """

    def __init__(self, contents: Contents, threads: int | None = None) -> None:
        self.manifest: Manifest = contents.manifest
        self._contents = contents
        self._dtype_names: dict[Any, str] = {}
        self._dtypes = [numpy_dtype(spec.dtype) for spec in self.signature.inputs]
        self._good_shapes: set[tuple[tuple[int, ...], ...]] = set()
        self.threads = default_threads() if threads is None else threads

    def __call__(self, *inputs: Any, **named: Any) -> Array | tuple[Array, ...]:
        """Run the program.

        Inputs are NumPy arrays or anything in CPU memory that speaks DLPack (torch tensors ...). They are used where
        they lie if they are contiguous, and, without a plan in the manifest, writable and at a multiple of 64 bytes;
        otherwise they are copied once.

        Returns:
            The output, or a tuple of them if there are several. They own their memory and stay as they are.

        Raises:
            SignatureError: Wrong number, name, shape or dtype of the inputs.
            ArtifactError: This machine cannot run it.
        """
        arrays = self._bind(inputs, named)
        vm.use_threads(self._threads)
        outputs = self._engine(arrays)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run_into(self, outputs: Array | Sequence[Array], *inputs: Any, **named: Any) -> None:
        """Run the program with its results in arrays that are there already.

        Args:
            outputs: One array, or one for each output: of the right shape and dtype, contiguous, writable, and apart
                from one another and from the inputs.
            inputs: As in a call.
            named: As in a call.

        Raises:
            SignatureError: Inputs or outputs do not fit.
            ArtifactError: This machine cannot run it.
        """
        arrays = self._bind(inputs, named)
        results = [outputs] if isinstance(outputs, np.ndarray) else list(outputs)
        vm.use_threads(self._threads)
        if isinstance(self._engine, Executor):
            self._check_outputs(results, arrays, self._engine.output_shapes(arrays))
            self._engine.run_into(results, arrays)
        else:
            made = self._engine(arrays)
            self._check_outputs(results, arrays, [array.shape for array in made])
            for result, array in zip(results, made, strict=True):
                result[...] = array

    def _check_outputs(self, outputs: list[Array], inputs: Sequence[Array], shapes: Sequence[Sequence[Any]]) -> None:
        specs = self.signature.outputs
        if len(outputs) != len(specs):
            raise SignatureError(f"{len(outputs)} arrays given for {len(specs)} outputs")
        for k, (spec, output, shape) in enumerate(zip(specs, outputs, shapes, strict=True)):
            if (
                output.shape != tuple(shape)
                or self._dtype_name(output.dtype) != spec.dtype
                or not output.dtype.isnative
            ):
                raise SignatureError(
                    f"the array for {spec} has dtype {output.dtype} and shape {list(output.shape)}, not {list(shape)}"
                )
            if not output.flags.carray:
                raise SignatureError(f"the array for {spec} is not contiguous and writable")
            if any(np.may_share_memory(output, other) for other in (*outputs[:k], *inputs)):
                raise SignatureError(f"the array for {spec} shares memory with an input or another output")

    def start(self) -> None:
        """Load the code now; otherwise the first call does.

        Raises:
            ArtifactError: This machine cannot run it.
        """
        _ = self._engine

    @functools.cached_property
    def _engine(self) -> Executor | vm.Machine:
        self.manifest.check_here()
        library, weights, plan = self._contents.library, self._contents.weights, self.manifest.plan
        if plan is None:
            return vm.Machine(library, weights)
        return Executor(library, weights, plan, self.signature)

    @property
    def signature(self) -> Signature:
        """Names, shapes and dtypes of inputs and outputs."""
        return self.manifest.signature

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._contents.file)

    @property
    def threads(self) -> int:
        """Threads that one call runs on.

        Raises:
            ValueError: Set to less than 1, or to more than the processors that this process may use.
        """
        return self._threads

    @threads.setter
    def threads(self, number: int) -> None:
        check_threads(number)
        self._threads = int(number)

    def profile(self, *inputs: Any, rounds: int = 10, **named: Any) -> list[KernelTime]:
        """Measure each kernel of the program on the given inputs, slowest first.

        Raises:
            SignatureError: Wrong number, name, shape or dtype of the inputs.
            ValueError: ``rounds`` is below one.
        """
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {rounds}")
        arrays = self._bind(inputs, named)
        vm.use_threads(self._threads)
        self._engine(arrays)  # warm up
        samples: dict[str, list[list[float]]] = {}
        for _ in range(rounds):
            times: dict[str, list[float]] = {}
            for name, seconds in self._engine.trace(arrays):
                times.setdefault(name, []).append(seconds)
            for name, calls in times.items():
                samples.setdefault(name, []).append(calls)
        times_of = [KernelTime(name, len(each[0]), statistics.median(map(sum, each))) for name, each in samples.items()]
        return sorted(times_of, key=lambda entry: -entry.seconds)

    def save(self, path: str | Path) -> None:
        """Write the artifact to a file that :func:`load` takes, whole or not at all.

        Raises:
            WriteError: The file cannot be written.
        """
        self._contents.save(Path(path))

    def __repr__(self) -> str:
        return f"Artifact{self.signature} for {self.manifest.platform.target}"

    def _bind(self, inputs: Sequence[Any], named: dict[str, Any]) -> Sequence[Array]:
        """Put the inputs in order, check them, and give arrays that the code can read where they lie."""
        if not named and len(inputs) == len(self._dtypes):
            for value, dtype in zip(inputs, self._dtypes, strict=True):
                if type(value) is not np.ndarray or value.dtype != dtype or not value.flags.carray:
                    break
            else:
                if tuple([value.shape for value in inputs]) in self._good_shapes:
                    return inputs
        values = self.signature.bind(inputs, named)
        arrays = [
            value if isinstance(value, np.ndarray) else _exchanged(spec.name, value)
            for spec, value in zip(self.signature.inputs, values, strict=True)
        ]
        self.signature.check([array.shape for array in arrays], [self._dtype_name(array.dtype) for array in arrays])
        if len(self._good_shapes) < _REMEMBERED_SHAPES:
            self._good_shapes.add(tuple([array.shape for array in arrays]))
        return [np.require(array, array.dtype.newbyteorder("="), ["C", "A"]) for array in arrays]

    def _dtype_name(self, dtype: Any) -> str:
        """Name of a dtype, remembered because NumPy makes it anew each time."""
        name = self._dtype_names.get(dtype)
        if name is None:
            name = self._dtype_names[dtype] = dtype.name
        return name


def load(path: str | Path, *, threads: int | None = None) -> Artifact:
    """Load an artifact. Every byte of the file is checked before any code of it runs.

    The weights are mapped into memory: while the artifact lives, the file may be replaced or deleted, but must not be
    overwritten in place. Whoever made the file decides what its code does: load only files from people you trust.

    Args:
        path: A ``.shave`` file.
        threads: Threads for one call; see :func:`default_threads` for the default.

    Raises:
        ArtifactError: The file is missing, damaged, of another format, or for another machine.
        ValueError: ``threads`` is out of range.
    """
    artifact = Artifact(open_artifact(Path(path)), threads)
    try:
        artifact.start()
    except ArtifactError as error:
        raise ArtifactError(f"cannot load {path}: {error}") from error
    return artifact


def default_threads() -> int:
    """``TVM_NUM_THREADS`` or ``OMP_NUM_THREADS`` if set, else the physical cores that this process may use."""
    for variable in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        asked = os.environ.get(variable, "")
        if asked.isdigit() and int(asked) > 0:
            return min(int(asked), len(host.usable_processors()))
    return host.usable_cores()


def check_threads(number: int) -> None:
    """Refuse a number of threads that this process cannot use.

    Raises:
        ValueError: It is less than 1, or more than the processors that this process may use.
    """
    limit = len(host.usable_processors())
    if not 1 <= number <= limit:
        raise ValueError(f"threads must be from 1 to {limit}, the processors that this process may use, not {number}")


def _exchanged(name: str, value: Any) -> Array:
    """Take a tensor of another library without a copy.

    Raises:
        SignatureError: It is not a tensor, or not in CPU memory.
    """
    if not hasattr(value, "__dlpack__"):
        raise SignatureError(f"input {name!r} is a {type(value).__name__}, not an array")
    try:
        device, _ = value.__dlpack_device__()
        if device in _HOST_MEMORY:
            return vm.to_array(vm.ffi().from_dlpack(value))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise SignatureError(f"input {name!r} cannot be exchanged through DLPack: {error}") from error
    raise SignatureError(f"input {name!r} is not in CPU memory; move it there first")
