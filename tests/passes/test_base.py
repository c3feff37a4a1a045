from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from shave.ir.errors import PipelineError, SignatureError
from shave.passes.base import Context, Exactness, Pass
from shave.passes.options import options_of
from tests.passes.examples import Idle, NeedsData, Tuned, net_program


def batches(count: int) -> list[tuple[torch.Tensor, ...]]:
    return [(torch.full((2, 3, 9, 11), float(number)),) for number in range(count)]


def test_a_pass_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Tuned().ratio = 0.1  # type: ignore[misc]


def test_mutable_defaults_are_not_shared() -> None:
    first, second = Tuned(), Tuned()
    assert first.budget == second.budget
    assert first.budget is not second.budget


def test_options_carry_help_and_search_values() -> None:
    options = options_of(Tuned)
    assert list(options)[:2] == ["ratio", "rank"]
    assert (options["ratio"].default, options["ratio"].search) == (0.5, (0.25, 0.5, 0.75))
    assert options["ratio"].help == "share of channels to remove"
    assert (options["rank"].search, options["rank"].type_text) == (None, "int")
    assert options["amount"].type_text == "int|float|auto"
    assert options["nested"].type_text == "[[int, ...], ...]"


@pytest.mark.parametrize("wrong", ["FoldBatchNorm", "fold_batchnorm", "fold-", "1st"])
def test_names_are_kebab_case(wrong: str) -> None:
    with pytest.raises(TypeError, match="pass names are of the form fold-batchnorm"):
        type("Wrong", (Idle,), {"name": wrong})


def test_apply_must_be_written() -> None:
    @dataclass(frozen=True)
    class Abstract(Pass):
        name: ClassVar[str] = "abstract"
        exactness: ClassVar[Exactness] = Exactness.EXACT

    with pytest.raises(TypeError, match="abstract"):
        Abstract()  # type: ignore[abstract]


def test_a_pass_prints_as_pipeline_text() -> None:
    assert str(Tuned(rank=3)) == "tuned{rank=3}"


@pytest.mark.parametrize("what", ["calibration", "evaluate", "target", "trainer"])
def test_what_is_missing_is_named(what: str) -> None:
    with pytest.raises(PipelineError, match=rf"pass idle needs {what}: give PassManager.run\({what}=...\)"):
        Context().need(what, Idle())


@pytest.mark.parametrize(
    "form",
    [
        lambda x: (x,),
        lambda x: [x],
        lambda x: x,
        lambda x: x.numpy(),
        lambda x: {"x": x.numpy()},
    ],
)
def test_batches_come_in_many_forms(form: Any) -> None:
    data = [form(x) for (x,) in batches(3)]
    found = list(Context(calibration=data).batches(net_program(), NeedsData()))
    assert [float(x.mean()) for (x,) in found] == [0.0, 1.0, 2.0]


def test_batches_are_limited_and_must_fit() -> None:
    program = net_program()
    assert len(list(Context(calibration=batches(5)).batches(program, NeedsData(), limit=2))) == 2
    source = iter(batches(5))
    list(Context(calibration=source).batches(program, NeedsData(), limit=2))
    assert len(list(source)) == 3, "no more is drawn than asked for"
    with pytest.raises(PipelineError, match="holds no batch"):
        list(Context(calibration=[]).batches(program, NeedsData()))
    with pytest.raises(SignatureError, match="input 'x', dimension 0 is 3"):
        list(Context(calibration=[torch.zeros(3, 3, 9, 11)]).batches(program, NeedsData()))
    with pytest.raises(SignatureError, match="dtype float64"):
        list(Context(calibration=[np.zeros((2, 3, 9, 11))]).batches(program, NeedsData()))
    with pytest.raises(SignatureError, match="an input is a str"):
        list(Context(calibration=["x"]).batches(program, NeedsData()))


def test_progress_is_told() -> None:
    seen: list[tuple[str, int, int | None]] = []
    context = Context(progress=lambda *event: seen.append(event))
    assert list(context.track("ab", "work")) == ["a", "b"]
    assert list(context.track(iter("a"), "open end")) == ["a"]
    assert seen == [("work", 0, 2), ("work", 1, 2), ("work", 2, 2), ("open end", 0, None)]


def test_equal_seeds_give_equal_numbers() -> None:
    first, second, third = (torch.rand(3, generator=Context(seed=seed).generator()) for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
