"""Code generation in processes of its own, so that all cores work and a crash of TVM or LLVM is an error, not the end.

LLVM ends the process when it cannot select an instruction, and TVM has passes that crash instead of raising. A worker
imports TVM without torch, then does one job after the other until this process ends. Modules go over as TVM's JSON,
objects come back as bytes. The start of a worker takes one second, but happens while this process runs passes.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import IO, TYPE_CHECKING, Any

from shave.backends import host
from shave.backends.target import Target
from shave.ir.errors import CompileError

if TYPE_CHECKING:
    from shave.backends.tvm.build import Job

_LENGTH = struct.Struct("<Q")
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from shave.backends.tvm.worker import serve
serve()
"""


class Worker:
    """One process that generates code; it restarts after a crash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._parents: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def start(self) -> None:
        """Start the process if there is none, without waiting for it."""
        with self._lock:
            self._running()

    def generate(self, job: Job) -> bytes:
        """Do what :func:`shave.backends.tvm.build.generate` does, in the worker.

        Raises:
            CompileError: The job failed, or the worker crashed.
        """
        fields = {**dataclasses.asdict(job.target), "features": sorted(job.target.features)}
        request = json.dumps({"name": job.name, "target": fields}).encode()
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                _send(process.stdin, request)
                _send(process.stdin, job.code.encode())
                verdict, content = _receive(process.stdout), _receive(process.stdout)
            except OSError:
                verdict = content = None
            except BaseException:  # interrupted: this answer must not be taken for the next one's
                self._kill()
                raise
            if verdict is None or content is None:
                raise CompileError(self._epitaph(job.name))
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

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._errors.close()

    def _epitaph(self, name: str) -> str:
        """What killed the worker, with the last line that it wrote."""
        process = self._process
        assert process is not None
        code = process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self._kill()
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"the code generator crashed on {name} ({cause}){': ' + lines[-1] if lines else ''}"


class Workers:
    """Several workers that share the jobs of a build."""

    def __init__(self, count: int) -> None:
        self._workers = [Worker() for _ in range(count)]
        self._rest()

    def start(self) -> None:
        """Start the processes that do not run yet, without waiting for them."""
        for worker in self._workers:
            worker.start()

    def generate(self, jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
        """Do jobs, as many at once as there are workers; gives the number of each with its result, as they end.

        Several threads may do this at once; they share the workers.

        Raises:
            CompileError: A job failed, or a worker crashed.
        """
        if self._owner != os.getpid():  # the threads that had taken the other workers did not survive the fork
            self._rest()
        busy: set[Worker] = set()
        with ThreadPoolExecutor(len(self._workers), thread_name_prefix="shave-worker") as pool:
            futures = {pool.submit(self._one, job, busy): number for number, job in enumerate(jobs)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException as error:
                for future in futures:
                    future.cancel()
                if not isinstance(error, CompileError):  # interrupted: nobody waits for what is half done
                    for worker in list(busy):
                        worker.abandon()
                raise

    def stop(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.stop()

    def _one(self, job: Job, busy: set[Worker]) -> bytes:
        worker = self._idle.get()
        busy.add(worker)
        try:
            return worker.generate(job)
        finally:
            busy.discard(worker)
            self._idle.put(worker)

    def _rest(self) -> None:
        self._owner = os.getpid()
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)


MOST_WORKERS = 8
"""A worker takes up to 250 MB; more of them would hardly make the compilation of one model shorter."""

workers = Workers(min(host.usable_cores(), MOST_WORKERS))
"""The workers of this process."""
atexit.register(workers.stop)


def serve() -> None:
    """Be the worker: build modules from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what TVM prints is no answer
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # tvm_ffi imports it wherever it is installed
    from shave.backends.tvm.build import Job, generate

    requests = sys.stdin.buffer
    while (request := _receive(requests)) is not None and (code := _receive(requests)) is not None:
        fields = json.loads(request)
        target = Target(**{**fields["target"], "features": frozenset(fields["target"]["features"])})
        try:
            verdict, content = b"done", generate(Job(fields["name"], code.decode(), target))
        except Exception as error:
            verdict, content = b"failed", _one_line(fields["name"], error).encode()
        _send(answers, verdict)
        _send(answers, content)


def _one_line(name: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return text if isinstance(error, CompileError) else f"TVM cannot build {name}: {type(error).__name__}: {text}"


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
