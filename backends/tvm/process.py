"""A process beside this one that does what may crash, and the messages between the two.

Code generators and machine code under test can end a process. In a :class:`Child` they end only that: the question it
was asked fails with a :class:`CompileError`, and the next question starts another child.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

from shave.ir.errors import CompileError

_LENGTH = struct.Struct("<Q")
_PROGRAM = """
import json, sys
from importlib import import_module
sys.path[:] = json.loads(sys.argv[1])
getattr(import_module(sys.argv[2]), sys.argv[3])()
"""

Handle = Callable[[dict[str, Any], bytes], bytes]
"""Answers a request, given its fields and its content."""


class Child:
    """One process that answers questions, one at a time; it restarts after a crash."""

    def __init__(self, module: str, function: str, role: str) -> None:
        """Describe the process, without starting it.

        Args:
            module: Where its main function is.
            function: The name of that function, which calls :func:`answer`.
            role: What error messages call the process.
        """
        self._command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), module, function]
        self._role = role
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._parents: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def start(self) -> None:
        """Start the process if there is none, without waiting for it."""
        with self._lock:
            self._running()

    def ask(self, name: str, fields: dict[str, Any], content: bytes = b"", timeout: float | None = None) -> bytes:
        """Send a request and wait for the answer.

        Args:
            name: What the request is about, for messages.
            fields: JSON data.
            content: Anything else.
            timeout: Seconds after which the process is ended.

        Raises:
            CompileError: The request failed, or the process crashed or took too long.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(timeout or 0, end)
            if timeout is not None:
                timer.start()
            try:
                _send(process.stdin, json.dumps(fields).encode())
                _send(process.stdin, content)
                verdict, answer = _receive(process.stdout), _receive(process.stdout)
            except OSError:
                verdict = answer = None
            except BaseException:  # interrupted: this answer must not be taken for the next one's
                self._kill()
                raise
            finally:
                timer.cancel()
            if verdict is None or answer is None:
                epitaph = self._epitaph(name)
                raise CompileError(f"{name} took longer than {timeout:.0f} s" if late.is_set() else epitaph)
        if verdict != b"done":
            raise CompileError(answer.decode())
        return answer

    def abandon(self) -> None:
        """End the process while another thread may be waiting for it; that one gets a ``CompileError``."""
        process = self._process
        if process is not None and self._owner == os.getpid():
            process.kill()

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            if self._owner == os.getpid():
                self._kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():
            # After a fork the process is the parent's: it is neither used nor stopped here.
            self._parents, self._process = self._process, None
        elif self._process is not None and self._process.poll() is not None:
            self._kill()
        if self._process is None:
            self._owner = os.getpid()
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for this process, which then stops the other
            )
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._errors.close()

    def _epitaph(self, name: str) -> str:
        """What killed the process, with the last line that it wrote."""
        process = self._process
        assert process is not None
        code = process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self._kill()
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"the {self._role} crashed on {name} ({cause}){': ' + lines[-1] if lines else ''}"


def answer(handle: Handle) -> None:
    """Be the child: answer requests from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    requests = sys.stdin.buffer
    while (fields := _receive(requests)) is not None and (content := _receive(requests)) is not None:
        try:
            verdict, result = b"done", handle(json.loads(fields), content)
        except Exception as error:
            verdict, result = b"failed", str(error).encode()
        _send(answers, verdict)
        _send(answers, result)


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
