"""Which form of loops a stage gets."""

from __future__ import annotations

from collections.abc import Mapping

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, tirx
from shave.backends.tvm.schedule.access import VectorAxis, best_axis, collapse
from shave.backends.tvm.schedule.nest import Map, Nest
from shave.backends.tvm.schedule.reduce import ReduceLanes, ReduceVector
from shave.backends.tvm.schedule.stage import Axis, IntImm, Stage, Var
from shave.backends.tvm.schedule.transpose import Transpose, tile


def nest(stage: Stage, fixed: Mapping[Var, Expr], target: Target, parallel: bool) -> Nest:
    """The writer of the loops of a stage.

    Args:
        stage: What to compute, on one-dimensional buffers.
        fixed: Values of the axes that loops outside of this nest already run over.
        target: Gives the width of vectors and the number of cores.
        parallel: Whether threads share this nest.
    """
    stage = collapse(stage, [a for a in stage.axes if a.var in fixed])
    free = [a for a in stage.axes if a.var not in fixed]
    choice = best_axis(stage, free, target)
    if choice is None:
        return _scalar(stage, fixed, target, parallel)
    if choice.axis.reduces:
        return ReduceLanes(stage, fixed, choice, target, parallel)
    if stage.reducing:
        return ReduceVector(stage, fixed, choice, target, parallel)
    square = tile(stage, choice, [a for a in free if not a.reduces]) if choice.strided else None
    if square is not None:
        return Transpose(square, stage, fixed, choice, target, parallel)
    return Map(stage, fixed, choice, target, parallel)


class _ScalarMap(Map):
    rule = "scalar"


class _ScalarReduce(ReduceVector):
    rule = "scalar"


def _scalar(stage: Stage, fixed: Mapping[Var, Expr], target: Target, parallel: bool) -> Nest:
    """Vectors of one lane, along an axis of one iteration that nothing uses."""
    axis = Axis(tirx.Var("none", "int64"), IntImm("int64", 1), False)
    form = _ScalarReduce if stage.reducing else _ScalarMap
    return form(stage, fixed, VectorAxis(axis, 1, 0.0, False), target, parallel)
