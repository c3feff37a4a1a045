"""Code generation in processes of its own, so that all cores work and a crash of TVM or LLVM is an error, not the end.

LLVM ends the process when it cannot select an instruction, and TVM has passes that crash instead of raising. A worker
imports TVM without torch, then does one job after the other until this process ends. Modules go over as TVM's JSON,
objects come back as bytes. The start of a worker takes one second, but happens while this process runs passes.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import queue
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from shave.backends import host
from shave.backends.target import Target
from shave.backends.tvm.process import Child, answer
from shave.ir.errors import CompileError

if TYPE_CHECKING:
    from shave.backends.tvm.build import Job


class Worker(Child):
    """One process that generates code."""

    def __init__(self) -> None:
        super().__init__(__name__, "serve", "code generator")

    def generate(self, job: Job) -> bytes:
        """Do what :func:`shave.backends.tvm.build.generate` does, in the worker.

        Raises:
            CompileError: The job failed, or the worker crashed.
        """
        target = {**dataclasses.asdict(job.target), "features": sorted(job.target.features)}
        return self.ask(job.name, {"name": job.name, "target": target}, job.code.encode())


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
    """Be a worker."""
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # tvm_ffi imports it wherever it is installed
    from shave.backends.tvm.build import Job, generate

    def handle(fields: dict[str, Any], content: bytes) -> bytes:
        target = Target(**{**fields["target"], "features": frozenset(fields["target"]["features"])})
        try:
            return generate(Job(fields["name"], content.decode(), target))
        except CompileError:
            raise
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[-1] if lines else ''}"
            raise CompileError(f"TVM cannot build {fields['name']}: {reason}") from error

    answer(handle)
