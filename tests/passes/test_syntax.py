import pytest

from shave.ir.errors import PipelineError
from shave.passes.syntax import Options, Sequence, String, Word, fail, parse_items, parse_value


def test_items_and_positions() -> None:
    first, second = parse_items('a-b, c{x=1, y=[p "q r"] z={k=2}}')
    assert (first.name, first.options.values) == (Word("a-b", 0), ())
    assert second.name == Word("c", 5)
    assert second.options.values == (
        (Word("x", 7), Word("1", 9)),
        (Word("y", 12), Sequence((Word("p", 15), String("q r", 17)), 14)),
        (Word("z", 24), Options(((Word("k", 27), Word("2", 29)),), 26)),
    )


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_pipeline_has_no_items(text: str) -> None:
    assert parse_items(text) == []


def test_white_space_and_commas_separate_alike() -> None:
    words = [value.text for value in parse_value("[a, b  c\n,d]").values]  # type: ignore[union-attr]
    assert words == ["a", "b", "c", "d"]


def test_strings_are_as_in_json() -> None:
    assert parse_value(r'"a\"b\\\u00e9"') == String('a"b\\é', 0)


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("a b", "expected a comma before the next pass", 2),
        ("a,,b", "expected the name of a pass", 2),
        ("a{", "this { is never closed", 1),
        ("a{x}", "expected x=VALUE", 3),
        ("a{x=}", "expected a value", 4),
        ("a{x=[1,,2]}", "expected a value", 7),
        ("a{x=[1}", "expected a value", 6),
        ('a{x="b}', "this string is never closed", 4),
        (r'a{x="\q"}', "this string is not as in JSON", 4),
        ("a}", "expected a comma", 1),
        ("a{x=" + "[" * 20 + "]" * 20 + "}", "nested more than 16 deep", 21),
    ],
)
def test_errors_point_at_the_place(text: str, message: str, column: int) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_items(text)
    problem, shown, caret = str(caught.value).split("\n")
    assert message in problem
    assert shown.removeprefix("  ")[: len(text)] == text
    assert caret == " " * (column + 2) + "^"


def test_errors_show_one_line_of_many_and_cut_long_ones() -> None:
    with pytest.raises(PipelineError) as caught:
        fail("first\nsecond", 8, "wrong")
    assert str(caught.value) == "wrong\n  second\n    ^"
    with pytest.raises(PipelineError) as caught:
        fail("x" * 500 + "Y" + "z" * 500, 500, "wrong")
    _, shown, caret = str(caught.value).split("\n")
    assert len(shown) < 130
    assert shown[caret.index("^")] == "Y"


def test_a_value_alone_must_end() -> None:
    with pytest.raises(PipelineError, match="expected the end"):
        parse_value("a b")
