"""One engine in a process of its own, which is stopped while it is not its turn.

An engine's pool of threads often keeps looking for work for a while after a call. In one process with others, or in one
that runs on, it would take a core from whoever is timed next; a stopped process (SIGSTOP) takes nothing. So turns stay
fair without forbidding an engine to spin during its own, which is what makes it fast on several threads.

Requests and answers are lines of JSON on the pipes of the process; arrays travel as ``.npz`` files.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from benchmarks.latency.engines import ENGINES, Array, Call, UnavailableError

_PDEATHSIG = 1
_ALIGNMENT = 64
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from benchmarks.latency.process import serve
serve(*sys.argv[2:])
"""


class Engine:
    """A process that has loaded one model and runs it when told to; use it as a context manager."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        """Start it; :meth:`prepare` waits for it."""
        self.name = name
        self._outputs = folder / f"{name}.outputs.npz"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TVM_NUM_THREADS": str(threads)}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            bufsize=0,
            start_new_session=True,  # signals reach the whole family of the process, and Ctrl-C only its owner
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process, which leads a group of its own."""
        return self._process.pid

    def prepare(self, limit: float) -> list[Array]:
        """Load the model, run it once, and give its outputs; then it is stopped.

        Raises:
            UnavailableError: It cannot, or not within ``limit`` seconds.
        """
        try:
            self._ask({"do": "prepare"}, limit)
        finally:
            self._stop()
        with np.load(self._outputs, allow_pickle=False) as stored:
            return [stored[key] for key in stored.files]

    def turn(self, warm_seconds: float, seconds: float, limit: float = 600) -> float:
        """Run the model for at least ``warm_seconds`` untimed, then for at least ``seconds``.

        Returns:
            Seconds per call of the second part.

        Raises:
            UnavailableError: The process died, or does not answer within ``limit`` seconds.
        """
        with self._awake():
            answer = self._ask({"do": "run", "warm": warm_seconds, "timed": seconds}, limit)
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process and all that it started."""
        self._signal(signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    @contextmanager
    def _awake(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        """Stop the process, and return when it has stopped (or ended)."""
        self._signal(signal.SIGSTOP)
        if self._process.returncode is None:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # it has ended, and so has everything that it started
            return

    def _ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise UnavailableError(self._epitaph()) from None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise UnavailableError(f"no answer within {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise UnavailableError(self._epitaph())
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise UnavailableError(answer["unavailable"])
        return answer

    def _epitaph(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"it crashed ({cause}){': ' + lines[-1] if lines else ''}"


def serve(name: str, folder: str, threads: str) -> None:
    """Be the process: answer requests from standard input until it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)  # a stopped process would never notice the end of its input
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what engines print is no answer
    call: Call | None = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                call = _load(name, Path(folder), int(threads))
                answer: dict[str, Any] = {}
            else:
                assert call is not None
                _run(call, request["warm"])
                answer = {"seconds": _run(call, request["timed"])}
        except Exception as error:  # whatever an engine raises is the reason why it is not timed
            answer = {"unavailable": one_line(error)}
        _send(answers, answer)


def _load(name: str, folder: Path, threads: int) -> Call:
    """Load the model and write the outputs of the first call."""
    with np.load(folder / "inputs.npz", allow_pickle=False) as stored:
        inputs = [_aligned(stored[key]) for key in stored.files]
    call = ENGINES[name](folder, inputs, threads)
    outputs = [np.array(output) for output in call()]
    np.savez(folder / f"{name}.outputs.npz", allow_pickle=False, **{f"{k:03}": v for k, v in enumerate(outputs)})
    return call


def _run(call: Call, least: float) -> float:
    """Call until ``least`` seconds are over, at least once; seconds per call."""
    calls = 0
    start = time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return elapsed / calls


def _aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 64 bytes, as every engine likes it."""
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy: Array = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def one_line(error: Exception) -> str:
    """Why an engine is not timed, for the table."""
    if isinstance(error, ImportError):
        return f"not installed: {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(error, UnavailableError) else f"{type(error).__name__}: {text}"[:200]


def _send(stream: BinaryIO | Any, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")
