"""The pass manager as users meet it: targets may be given by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shave.backends.targets import resolve
from shave.passes import manager

if TYPE_CHECKING:
    from shave.ir.program import Program


class PassManager(manager.PassManager):
    """A pipeline, ready to run; see :class:`shave.passes.manager.PassManager` for its arguments."""

    def run(self, program: Program, *, target: Any = None, **given: Any) -> Program:
        """Run the passes on a clone of the program.

        Args:
            program: What to rewrite.
            target: What the hardware can do: a :class:`shave.backends.target.Target`, or its name (``cpu``).
            **given: ``calibration``, ``evaluate``, ``trainer``, ``seed`` and ``progress``, as
                :meth:`shave.passes.manager.PassManager.run` takes them.

        Raises:
            TargetError: No target has that name.
            PassError: A pass failed. And whatever else :meth:`shave.passes.manager.PassManager.run` raises.
        """
        return super().run(program, target=resolve(target) if isinstance(target, str) else target, **given)
