"""Code generation in a process of its own, so that a crash of TVM or LLVM is an error here and not the end.

LLVM ends the process when it cannot select an instruction, and TVM has passes that crash instead of raising. The
worker imports TVM without torch, then builds one module after the other until this process ends. Modules go over as
TVM's JSON, libraries come back as bytes. Measured on a network of five kernels: 0.1 to 0.2 s more than building in this
process, most of it for JSON; the start of the worker takes one second, but happens while this process runs passes.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

from shave.backends.target import Target
from shave.ir.errors import CompileError

_LENGTH = struct.Struct("<Q")
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from shave.backends.tvm.worker import serve
serve()
"""


class Worker:
    """One process that builds modules; it starts at once and restarts after a crash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._parents: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def start(self) -> None:
        """Start the process if there is none, without waiting for it."""
        with self._lock:
            self._running()

    def build(self, module: Any, target: Target) -> bytes:
        """Do what :func:`shave.backends.tvm.build.build` does, in the worker.

        Raises:
            CompileError: The build failed, or the worker crashed.
        """
        from shave.backends.tvm.adapter import tvm

        request = json.dumps({"target": {**dataclasses.asdict(target), "features": sorted(target.features)}}).encode()
        code = tvm.ir.save_json(module).encode()
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                _send(process.stdin, request)
                _send(process.stdin, code)
                verdict, content = _receive(process.stdout), _receive(process.stdout)
            except OSError:
                verdict = content = None
            except BaseException:  # interrupted: this answer must not be taken for the next one's
                self._kill()
                raise
            if verdict is None or content is None:
                raise CompileError(self._epitaph())
        if verdict != b"done":
            raise CompileError(content.decode())
        return content

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():
            # After a fork the worker is the parent's: it is neither used nor stopped here.
            self._parents, self._process = self._process, None
        elif self._process is not None and self._process.poll() is not None:
            self._kill()
        if self._process is None:
            self._owner = os.getpid()
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for this process, which then stops the worker
            )
        return self._process

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            if self._owner == os.getpid():
                self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._errors.close()

    def _epitaph(self) -> str:
        """What killed the worker, with the last line that it wrote."""
        process = self._process
        assert process is not None
        code = process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self._kill()
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"the code generator crashed ({cause}){': ' + lines[-1] if lines else ''}"


worker = Worker()
"""The worker of this process."""
atexit.register(worker.stop)


def serve() -> None:
    """Be the worker: build modules from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what TVM prints is no answer
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # tvm_ffi imports it wherever it is installed
    from shave.backends.tvm.adapter import tvm
    from shave.backends.tvm.build import build

    requests = sys.stdin.buffer
    while (request := _receive(requests)) is not None and (code := _receive(requests)) is not None:
        fields = json.loads(request)["target"]
        target = Target(**{**fields, "features": frozenset(fields["features"])})
        try:
            verdict, content = b"done", build(tvm.ir.load_json(code.decode()), target)
        except Exception as error:
            verdict, content = b"failed", _one_line(error).encode()
        _send(answers, verdict)
        _send(answers, content)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return text if isinstance(error, CompileError) else f"TVM cannot build the program: {type(error).__name__}: {text}"


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(_LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    """The next message; None at the end of the stream."""
    head = _exactly(stream, _LENGTH.size)
    return None if head is None else _exactly(stream, _LENGTH.unpack(head)[0])


def _exactly(stream: IO[bytes], size: int) -> bytes | None:
    content = bytearray()
    while len(content) < size:
        chunk = stream.read(min(size - len(content), 1 << 20))
        if not chunk:
            return None
        content += chunk
    return bytes(content)
