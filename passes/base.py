"""What a pass is, and what it is given to work with. Free of torch, so that listing passes stays quick."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from shave.ir.errors import PipelineError
from shave.passes.problems import Oracle
from shave.passes.stages import Stage

if TYPE_CHECKING:
    import torch

    from shave.ir.program import Program
    from shave.passes.report import Report

T = TypeVar("T")

Progress = Callable[[str, int, "int | None"], None]
"""Called as ``progress(what, done, total)``; the total is None where it is not known."""

_KEBAB_CASE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class Exactness(Enum):
    """What a pass may do to the numbers."""

    EXACT = "exact"
    """Outputs stay the same but for rounding; the manager checks it."""
    LOSSY = "lossy"
    """Outputs change; the manager measures by how much."""


def option(default: Any = MISSING, *, search: Iterable[Any] | None = None, help: str = "") -> Any:
    """Declare an option of a pass: a dataclass field with a help text and the values that a search may try.

    Args:
        default: Its default; lists and dictionaries are copied for each pass. Without one the option must be given.
        search: Values to try, fewest losses first.
        help: One line for ``shave passes NAME``.
    """
    metadata = {"search": None if search is None else tuple(search), "help": help}
    if isinstance(default, (list, dict, set)):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a program.

    A subclass is a frozen dataclass whose fields are its options. Their values are checked in ``__post_init__``, which
    raises ValueError. The first line of its docstring tells its effect in the list of passes.

    Attributes:
        name: Its name in pipelines; also its place: ``fold-batchnorm`` is ``passes/simplify/fold_batchnorm.py`` and
            ``prune-channels`` is ``passes/prune/channels.py``.
        exactness: Whether outputs may change beyond rounding.
        tolerance: For an exact pass, the largest difference of an output, relative to the largest magnitude in that
            output, in float32; for other dtypes it is scaled by their machine epsilon.
        requires: The stages of programs that it takes.
        ensures: The stage of the program that it leaves; None if it stays as it was.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness]
    tolerance: ClassVar[float] = 1e-5
    requires: ClassVar[Stage] = Stage.ANY
    ensures: ClassVar[Stage | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        name = getattr(cls, "name", None)
        if name is not None and not _KEBAB_CASE.fullmatch(name):
            raise TypeError(f"{cls.__name__}.name is {name!r}; pass names are of the form fold-batchnorm")

    @abstractmethod
    def apply(self, program: Program, context: Context) -> Report:
        """Rewrite the program in place, through ``program.rewrite(by=self.name)``.

        The program is a clone of the manager's, so a pass that fails half-way does no harm. Whether anything changed is
        found out by the manager.

        Returns:
            For each node that came into question: applied, or skipped with the reason.

        Raises:
            PipelineError: The options do not fit this program, or the context lacks what the pass needs.
        """

    def __str__(self) -> str:
        from shave.passes.pipeline import to_text

        return to_text([self])


@dataclass(frozen=True)
class Context:
    """What a pass may draw on besides the program.

    Attributes:
        calibration: Input tuples (or mappings by input name, or the bare array of a lone input), as torch tensors or
            NumPy arrays. It can be iterated over more than once.
        evaluate: Gives the quality of a program, larger is better (accuracy, for instance).
        target: What the hardware can do, as plain data; see ``shave.backends.target.Target``.
        reference: The program as it was before the first pass of the run that quantized it; None before that.
        oracle: Tells how long operators take on the target; see :mod:`shave.passes.problems`. Passes that weigh
            methods against each other fall back to rules of their own without it.
        trainer: Trains the weights of a program in place.
        seed: Where all randomness of a pass comes from; see :meth:`generator`.
        progress: Told how far long work has come.
    """

    calibration: Iterable[Any] | None = None
    evaluate: Callable[[Program], float] | None = None
    target: Any = None
    trainer: Callable[[Program], None] | None = None
    seed: int = 0
    progress: Progress | None = None
    oracle: Oracle | None = None
    reference: Program | None = None

    def need(self, what: str, by: Pass) -> Any:
        """Get ``calibration``, ``evaluate``, ``target`` or ``trainer``.

        Raises:
            PipelineError: It was not given; says which pass needs it and how to give it.
        """
        value = getattr(self, what)
        if value is None:
            raise PipelineError(f"pass {by.name} needs {what}: give PassManager.run({what}=...)")
        return value

    def batches(self, program: Program, by: Pass, limit: int | None = None) -> Iterator[tuple[torch.Tensor, ...]]:
        """Go through the calibration data as tuples of tensors that fit the program's inputs, showing progress.

        Args:
            program: Whose signature they must fit.
            by: The pass that asks.
            limit: Largest number of batches.

        Raises:
            PipelineError: There is no calibration data, or it is empty.
            SignatureError: A batch does not fit the signature.
        """
        from shave.passes.probe import as_inputs

        data = self.need("calibration", by)
        if limit is not None:
            data = islice(data, limit)
        empty = True
        for batch in self.track(data, f"{by.name}: calibration", limit):
            empty = False
            yield as_inputs(program, batch)
        if empty:
            raise PipelineError(f"pass {by.name} needs calibration data, but what was given holds no batch")

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Go through ``items`` and tell the progress bar, if there is one."""
        if total is None and isinstance(items, (Sequence, Mapping)):
            total = len(items)
        for done, item in enumerate(items):
            if self.progress is not None:
                self.progress(what, done, total)
            yield item
        if self.progress is not None and total is not None:
            self.progress(what, total, total)

    def generator(self) -> torch.Generator:
        """Make a random generator that starts at the seed."""
        import torch

        return torch.Generator().manual_seed(self.seed)
