from dataclasses import dataclass, fields

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shave.ir.errors import PipelineError
from shave.passes.base import Pass
from shave.passes.pipeline import as_passes, parse, to_text
from shave.passes.presets import PRESETS
from tests.passes.examples import Idle, NeedsRank, ScaleWeight, Tuned

KNOWN = (Tuned, Idle, ScaleWeight, NeedsRank)

finite = st.floats(allow_nan=False, min_value=0)
integers = st.integers(-(2**63), 2**63 - 1)
tuned = st.builds(
    Tuned,
    ratio=finite,
    rank=integers,
    fast=st.booleans(),
    label=st.text(),
    criterion=st.sampled_from(["l1", "l2", "fpgm"]),
    layers=st.lists(st.text()).map(tuple),
    kernel=st.tuples(integers, integers),
    budget=st.dictionaries(st.text(), st.floats(allow_nan=False)),
    limit=st.none() | integers,
    amount=st.just("auto") | integers | st.floats(allow_nan=False),
    nested=st.lists(st.lists(integers).map(tuple)).map(tuple),
)


def test_the_example_of_the_design() -> None:
    text = "idle, tuned{ratio=0.25 criterion=fpgm layers=[a, b] budget={macs=0.5}}"
    passes = parse(text, KNOWN)
    assert passes == (Idle(), Tuned(ratio=0.25, criterion="fpgm", layers=("a", "b"), budget={"macs": 0.5}))
    assert to_text(passes) == text


def test_defaults_are_not_written() -> None:
    assert to_text([Tuned(), Idle(), Tuned(rank=5)]) == "tuned, idle, tuned{rank=5}"


@given(st.lists(tuned | st.builds(Idle) | st.builds(NeedsRank, rank=integers)))
@example([Tuned(label="none"), Tuned(label="1"), Tuned(label="é"), Tuned(layers=("re:[ab]+", "a b", ""))])
@example([Tuned(amount=1), Tuned(amount=1.0), Tuned(amount=float("inf"))])
def test_text_and_objects_round_trip(passes: list[Pass]) -> None:
    again = parse(to_text(passes), KNOWN)
    assert list(again) == passes
    # 1 == 1.0 == True, so equality alone does not show that types survive.
    assert repr(list(again)) == repr(passes)


@given(st.text() | st.text(alphabet='tuned{}[]=,"\\ \n01.einf-', max_size=60))
@example("tuned{" * 5000)
@example("tuned{nested=" + "[" * 5000)
@example("tuned{rank=" + "9" * 5000 + "}")
def test_any_text_parses_or_is_refused(text: str) -> None:
    _parses_or_refuses(text)


@given(st.sampled_from([field.name for field in fields(Tuned)]), st.text(alphabet='az01.+-e[]{}=," \\', max_size=20))
def test_any_value_parses_or_is_refused(name: str, value: str) -> None:
    _parses_or_refuses(f"tuned{{{name}={value}}}")


def _parses_or_refuses(text: str) -> None:
    try:
        passes = parse(text, KNOWN)
    except PipelineError:
        return
    assert parse(to_text(passes), KNOWN) == passes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tunde", "there is no pass or preset 'tunde'; did you mean 'tuned'"),
        ("fold-batchnrm", "did you mean 'fold-batchnorm'"),
        ("exakt", "did you mean 'exact'"),
        ("qqqqqq", "`shave passes` lists all"),
        ("exact{ratio=1}", "exact is a preset, which takes no options"),
        ("tuned{ratoi=1}", "pass tuned has no option 'ratoi'; did you mean 'ratio'"),
        ("idle{x=1}", "pass idle has no option 'x'; it takes no options"),
        ("tuned{rank=1 rank=2}", "option rank is given twice"),
        ("tuned{rank=1.5}", "option rank takes int"),
        ("tuned{ratio=half}", "option ratio takes float"),
        ("tuned{fast=yes}", "option fast takes bool"),
        ("tuned{criterion=fpgn}", "option criterion takes l1|l2|fpgm; did you mean 'fpgm'"),
        ("tuned{kernel=[1]}", "option kernel takes [int, int]"),
        ("tuned{layers=a}", "option layers takes [str, ...]"),
        ("tuned{budget=[a]}", "option budget takes {NAME=float ...}"),
        ("tuned{limit=a}", "option limit takes int|none"),
        ('tuned{rank="1"}', "option rank takes int"),
        ("needs-rank", "pass needs-rank needs the option rank=int"),
        ("tuned{ratio=-1}", "pass tuned: ratio=-1.0 is below 0"),
    ],
)
def test_errors_name_the_option_and_the_nearest(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse(text, KNOWN)
    assert message in str(caught.value)
    assert str(caught.value).endswith("^")


def test_the_caret_is_under_the_wrong_value() -> None:
    with pytest.raises(PipelineError) as caught:
        parse("idle, tuned{layers=[a] rank=x}", KNOWN)
    _, shown, caret = str(caught.value).split("\n")
    assert shown[caret.index("^")] == "x"


def test_presets_expand_in_place() -> None:
    passes = parse("idle, exact, idle", KNOWN)
    assert [instance.name for instance in passes] == ["idle", *PRESETS["exact"].split(", "), "idle"]


def test_pipelines_come_in_any_form() -> None:
    passes = as_passes(["dead-code, dedupe", Idle()])
    assert passes == (*parse("dead-code, dedupe"), Idle())
    assert as_passes([passes, ScaleWeight(3.0)]) == (*passes, ScaleWeight(3.0))  # type: ignore[list-item]
    assert as_passes(Idle()) == (Idle(),)
    with pytest.raises(TypeError, match="a pipeline is text or passes, not a int"):
        as_passes([3])  # type: ignore[list-item]


def test_a_pass_without_the_decorator_is_refused() -> None:
    class Undecorated(Idle):
        name = "undecorated"
        ratio: float = 0.5

    with pytest.raises(TypeError, match="Undecorated lacks the decorator"):
        as_passes(Undecorated())


def test_options_that_have_no_text_are_refused() -> None:
    @dataclass(frozen=True)
    class Odd(Idle):
        name = "odd"
        what: object = None

    with pytest.raises(TypeError, match="type complex cannot be written"):
        to_text([Odd(1j)])
