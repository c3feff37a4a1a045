"""The pass manager as users meet it: targets may be given by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shave.backends.targets import resolve
from shave.backends.tvm.oracle import cost_oracle, measured_oracle
from shave.passes import manager

if TYPE_CHECKING:
    from shave.ir.program import Program


class PassManager(manager.PassManager):
    """A pipeline, ready to run; see :class:`shave.passes.manager.PassManager` for its arguments."""

    def run(self, program: Program, *, target: Any = None, tuned: str | Path | None = None, **given: Any) -> Program:
        """Run the passes on a clone of the program.

        Args:
            program: What to rewrite.
            target: What the hardware can do: a :class:`shave.backends.target.Target`, or its name (``cpu``). The
                estimates of its kernels are the passes' cost oracle, unless ``oracle`` is given.
            tuned: A database of :func:`shave.tune`, which answers ahead of the estimates where it can.
            **given: ``calibration``, ``evaluate``, ``trainer``, ``seed``, ``progress``, ``oracle`` and ``reference``,
                as :meth:`shave.passes.manager.PassManager.run` takes them.

        Raises:
            TargetError: No target has that name.
            ReadError: The database cannot be read.
            ValueError: There is a database, but no target.
            PassError: A pass failed. And whatever else :meth:`shave.passes.manager.PassManager.run` raises.
        """
        target = resolve(target) if isinstance(target, str) else target
        if tuned is not None:
            from shave.backends.tvm.tune.database import Database

            if target is None:
                raise ValueError("tuned=... tells how fast things are on a target: give target=... too")
            given.setdefault("oracle", measured_oracle(Database.read(Path(tuned)), target))
        elif target is not None:
            given.setdefault("oracle", cost_oracle(target))
        return super().run(program, target=target, **given)
