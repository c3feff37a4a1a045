"""The pass manager as users meet it: targets may be given by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shave.backends.targets import resolve
from shave.backends.tvm.oracle import cost_oracle
from shave.passes import manager

if TYPE_CHECKING:
    from shave.ir.program import Program


class PassManager(manager.PassManager):
    """A pipeline, ready to run; see :class:`shave.passes.manager.PassManager` for its arguments."""

    def run(self, program: Program, *, target: Any = None, **given: Any) -> Program:
        """Run the passes on a clone of the program.

        Args:
            program: What to rewrite.
            target: What the hardware can do: a :class:`shave.backends.target.Target`, or its name (``cpu``). The
                estimates of its kernels are the passes' cost oracle, unless ``oracle`` is given.
            **given: ``calibration``, ``evaluate``, ``trainer``, ``seed``, ``progress`` and ``oracle``, as
                :meth:`shave.passes.manager.PassManager.run` takes them.

        Raises:
            TargetError: No target has that name.
            PassError: A pass failed. And whatever else :meth:`shave.passes.manager.PassManager.run` raises.
        """
        target = resolve(target) if isinstance(target, str) else target
        if target is not None:
            given.setdefault("oracle", cost_oracle(target))
        return super().run(program, target=target, **given)
