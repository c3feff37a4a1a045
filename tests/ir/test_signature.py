import pytest
from hypothesis import given
from hypothesis import strategies as st

from shave.ir.errors import SignatureError
from shave.ir.signature import Signature, TensorSpec, identifier, unique_names

SIGNATURE = Signature(
    (TensorSpec("image", ("batch", 3, 8), "float32"), TensorSpec("mask", ("batch",), "bool")),
    (TensorSpec("logits", ("batch", 10), "float32"),),
    {"batch": (1, 16)},
)


def test_text():
    assert str(SIGNATURE) == "(image: float32[batch, 3, 8], mask: bool[batch]) -> (logits: float32[batch, 10])"


def test_json_round_trip():
    assert Signature.from_json(SIGNATURE.to_json()) == SIGNATURE


@pytest.mark.parametrize("data", [{}, {"inputs": 3}, {"inputs": [{"name": "x"}], "outputs": [], "dims": {}}, None, []])
def test_json_that_is_no_signature(data):
    with pytest.raises(SignatureError, match="not a signature"):
        Signature.from_json(data)


def test_bind_by_position_and_name():
    assert SIGNATURE.bind([1], {"mask": 2}) == [1, 2]
    assert SIGNATURE.bind([], {"mask": 2, "image": 1}) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ([1, 2, 3], {}, "3 inputs given, but the program takes 2: image, mask"),
        ([1], {"maks": 2}, "no input is named 'maks'.*did you mean 'mask'"),
        ([1], {"image": 2}, "'image' is given twice"),
        ([], {"mask": 1}, "missing input 'image'"),
    ],
)
def test_bind_refuses(arguments, named, message):
    with pytest.raises(SignatureError, match=message):
        SIGNATURE.bind(arguments, named)


def test_check_solves_for_dimensions():
    assert SIGNATURE.check([(4, 3, 8), (4,)], ["float32", "bool"]) == {"batch": 4}


@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        ([(4, 3, 8), (4,)], ["float64", "bool"], "'image' has dtype float64"),
        ([(4, 3), (4,)], ["float32", "bool"], "'image' has 2 dimensions"),
        ([(4, 3, 9), (4,)], ["float32", "bool"], "'image', dimension 2 is 9"),
        ([(4, 3, 8), (5,)], ["float32", "bool"], r"'mask', dimension 0 \(batch\) is 5, but batch is 4 elsewhere"),
        ([(17, 3, 8), (17,)], ["float32", "bool"], r"dimension 0 \(batch\) is 17, outside of 1 to 16"),
        ([(0, 3, 8), (0,)], ["float32", "bool"], r"dimension 0 \(batch\) is 0, outside of 1 to 16"),
    ],
)
def test_check_names_what_does_not_fit(shapes, dtypes, message):
    with pytest.raises(SignatureError, match=message):
        SIGNATURE.check(shapes, dtypes)


@given(st.lists(st.sampled_from(["", "x", "x_1", "y"]), max_size=8))
def test_unique_names_are_unique_and_keep_the_first(names):
    result = unique_names(names)
    assert len(set(result)) == len(names)
    assert all(new for new in result)
    assert not names or result[0] == (names[0] or "value")


@given(st.text(max_size=20))
def test_identifier_is_one(text):
    assert identifier(text).isidentifier()
