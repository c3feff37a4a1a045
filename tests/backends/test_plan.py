from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from shave.backends.plan import Plan, Span, Step, evaluate
from shave.ir.errors import ArtifactError

PLAN = Plan(
    dims=((0, 0),),
    outputs=(("d0", 4),),
    buffers=("d0*16", 64),
    spans=(
        Span("input", 0, 0, "d0*16"),
        Span("workspace", 0, 0, "d0*16"),
        Span("weight", 0, 0, 64),
        Span("workspace", 1, 0, 64),
        Span("output", 0, 0, "d0*16"),
    ),
    steps=(Step("first", (0,), (1,), ("d0",)), Step("second", (2,), (3,)), Step("third", (1, 3), (4,), ("d0", 7))),
)
WIDTHS = {"input": [4], "output": [4]}


def _at(plan: Plan, batch: int = 3) -> Any:
    return plan.at([(batch, 4)], WIDTHS, [64])


def test_round_trip() -> None:
    assert Plan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_formulas_are_worked_out(batch: int) -> None:
    placed = _at(PLAN, batch)
    assert placed.outputs == ((batch, 4),)
    assert placed.sizes == ((batch,), (), (batch, 7))
    rounded = -(-16 * batch // 64) * 64
    assert placed.workspace == rounded + 64
    assert sorted(placed.offsets) in ([0, 64], [0, rounded])


def _changed(**changes: Any) -> Plan:
    return dataclasses.replace(PLAN, **changes)


def _span(position: int, **changes: Any) -> Plan:
    spans = list(PLAN.spans)
    spans[position] = dataclasses.replace(spans[position], **changes)
    return _changed(spans=tuple(spans))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (_span(0, size="d0*16+1"), "reaches outside of input 0"),
        (_span(0, offset=4), "reaches outside of input 0"),
        (_span(0, index=1), "reaches outside of input 1"),
        (_span(1, size="d0*17"), "reaches outside of workspace 0"),
        (_span(1, index=2), "reaches outside of workspace 2"),
        (_span(2, size=65), "reaches outside of weight 0"),
        (_span(4, offset=1 << 40), "reaches outside of output 0"),
        (_span(4, size="d0*16-1"), "does not write output 0"),
        (_changed(steps=PLAN.steps[:2]), "does not write output 0"),
        (_changed(steps=PLAN.steps[::-1]), "reads workspace 0 before it is written"),
        (_span(1, memory="weight"), "writes to weight 0"),
        (_span(1, memory="input"), "writes to input 0"),
        (_span(3, size=63), None),
        (_changed(dims=((1, 0),)), "cannot be worked out"),
        (_changed(dims=((0, 2),)), "cannot be worked out"),
        (_changed(buffers=("d1", 64)), "cannot be worked out"),
        (_changed(buffers=("0-d0", 64)), "cannot be worked out"),
        (_changed(buffers=("d0//0", 64)), "cannot be worked out"),
        (_changed(outputs=((4, 4),)), "does not write output 0"),
    ],
)
def test_plans_that_reach_out_are_refused(plan: Plan, message: str | None) -> None:
    if message is None:
        _at(plan)
        return
    with pytest.raises(ArtifactError, match=message):
        _at(plan)


def test_what_is_read_may_have_been_written_in_parts() -> None:
    halves = (Span("workspace", 1, 0, 24), Span("workspace", 1, 24, 40))
    steps = (PLAN.steps[0], Step("a", (2,), (5,)), Step("b", (2,), (6,)), PLAN.steps[2])
    _at(_changed(spans=(*PLAN.spans, *halves), steps=steps))
    with pytest.raises(ArtifactError, match="before it is written"):
        _at(_changed(spans=(*PLAN.spans, *halves), steps=(*steps[:2], steps[3])))


@pytest.mark.parametrize(
    ("formula", "value"),
    [(7, 7), ("7", 7), ("d0", 5), ("(d0+1)*3//2", 9), ("d0%3", 2), ("max(d0,9)-min(2,d0,3)", 7), ("2**3", None),
     ("d1", None), ("d0.x", None), ("abs(d0)", None), ("max()", None), ("0-1", None), ("True", None), ("1.5", None),
     ("d0 if d0 else 1", None), ("", None), ("(", None), ("(" * 500 + ")" * 500, None), ("9" * 400 + "*d0", None),
     ("max(d0,key=d0)", None), ("__import__('os')", None)],
)  # fmt: skip
def test_formulas(formula: int | str, value: int | None) -> None:
    if value is None:
        with pytest.raises(ValueError, match=r"formula|number"):
            evaluate(formula, {"d0": 5})
    else:
        assert evaluate(formula, {"d0": 5}) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dims", [[0]]), ("dims", [[0, -1]]), ("outputs", [3]), ("outputs", [[1.5]]), ("buffers", [-1]),
        ("buffers", [None]), ("spans", [["heap", 0, 0, 4]]), ("spans", [["input", 0, 0]]),
        ("spans", [["input", True, 0, 4]]), ("spans", [["input", 0, -64, 4]]), ("steps", [["k", [9], [0], []]]),
        ("steps", [["k", [-1], [0], []]]), ("steps", [[3, [], [], []]]), ("steps", [["k", [], []]]), ("steps", None),
    ],
)  # fmt: skip
def test_other_data_is_refused(key: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Plan.from_json({**PLAN.to_json(), key: value})
