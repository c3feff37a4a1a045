"""Weights in small forms: decoded as plain NumPy would, stored in an artifact, and refused where they make no sense."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shave.backends.artifact import MANIFEST, SMALL, WEIGHTS, open_artifact
from shave.backends.encoding import Encoded, Encoding, integers, narrow
from shave.backends.packing import Packing
from shave.backends.targets import resolve
from shave.backends.weights import decode
from shave.ir.bits import pack
from shave.ir.errors import ArtifactError
from tests.backends import handmade
from tests.backends.test_artifact import _packed

RNG = np.random.default_rng(0)
SHAPE = (40, 9, 11)


def lookup(bits: int, lead: tuple[int, ...]) -> tuple[Encoded, Any]:
    """A small form and the values wanted."""
    codes = RNG.integers(0, 2**bits, SHAPE).astype(np.uint8)
    codebook = RNG.normal(size=(*lead, 2**bits)).astype(np.float32)
    wanted = np.empty(SHAPE, np.float32)
    for index in np.ndindex(*SHAPE):
        place = tuple(0 if size == 1 else i for i, size in zip(index, lead, strict=True))
        wanted[index] = codebook[place][codes[index]]
    return Encoded(Encoding("lookup", bits, SHAPE), {"codes": pack(codes, bits), "codebook": codebook}), wanted


def affine(bits: int, lead: tuple[int, ...]) -> tuple[Encoded, Any]:
    codes = RNG.integers(0, 2**bits, SHAPE).astype(np.uint8)
    scale, zero = RNG.random(lead).astype(np.float32), RNG.integers(-5, 300, lead).astype(np.int32)
    wanted = (codes.astype(np.int32) - zero).astype(np.float32) * scale
    return Encoded(Encoding("affine", bits, SHAPE), {"codes": pack(codes, bits), "scale": scale, "zero": zero}), wanted


LEADS = [(1, 1, 1), (40, 1, 1), (1, 9, 1), (1, 1, 11), (40, 9, 1)]


@pytest.mark.parametrize("make", [lookup, affine])
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
@pytest.mark.parametrize("lead", LEADS)
def test_values_are_those_of_numpy(make: Any, bits: int, lead: tuple[int, ...]) -> None:
    encoded, wanted = make(bits, lead)
    encoded.encoding.check("w", encoded.parts)
    np.testing.assert_array_equal(encoded.encoding.decode(encoded.parts), wanted)


def test_a_form_stands_for_an_array_only_if_no_bit_differs() -> None:
    encoded, wanted = lookup(4, (1, 1, 1))
    assert encoded.stands_for(wanted)
    packing = Packing().pad(48, 9, 11)
    assert encoded.then(packing).stands_for(packing.apply(wanted))
    assert not encoded.then(packing).stands_for(wanted)
    assert not encoded.stands_for(wanted.astype(np.float64))
    other = wanted.copy()
    other[3, 2, 1] = np.nextafter(other[3, 2, 1], np.float32(9))
    assert not encoded.stands_for(other)
    zeros = np.zeros(SHAPE, np.float32)
    nothing = Encoded(Encoding("affine", 1, SHAPE), {**affine(1, (1, 1, 1))[0].parts, "codes": np.zeros(495, np.uint8)})
    nothing = Encoded(nothing.encoding, {**nothing.parts, "zero": np.zeros((1, 1, 1), np.int32)})
    assert nothing.stands_for(zeros)
    assert not nothing.stands_for(-zeros), "a negative zero is another number"


def test_what_saves_nothing_is_stored_as_it_is() -> None:
    encoded, wanted = lookup(4, (40, 9, 1))  # its tables are as large as the weight
    assert not encoded.stands_for(wanted)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_found(dtype: Any) -> None:
    values = RNG.normal(size=(50, 60)).astype(dtype).astype(np.float32)
    values[0, :3] = np.inf, -0.0, 0.0
    encoded = narrow(values)
    assert encoded is not None
    assert encoded.nbytes == values.nbytes // 2
    np.testing.assert_array_equal(encoded.encoding.decode(encoded.parts).view(np.uint32), values.view(np.uint32))
    values[-1, -1] = 1 + 2**-20
    assert narrow(values) is None


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
@pytest.mark.parametrize(
    ("low", "high", "bits"), [(-7, 7, 4), (-127, 127, 8), (-128, 127, 8), (0, 1, 1), (120, 127, 3), (5, 5, 1)]
)
def test_integers_take_as_many_bits_as_their_range(dtype: str, low: int, high: int, bits: int) -> None:
    values = RNG.integers(low, high + 1, (40, 9, 5)).astype(np.int8)
    values[0, 0, :2] = low, high
    encoded = integers(values, dtype)
    encoded.encoding.check("w", encoded.parts)
    assert encoded.parts["codes"].nbytes == -(-values.size * bits // 8)
    packing = Packing().pad(48, 9, 5).reshape(3, 16, 9, 5).transpose(0, 2, 3, 1)
    wanted = packing.apply(values.astype(dtype))
    found = encoded.then(packing).encoding.decode(encoded.parts)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    assert encoded.then(packing).stands_for(wanted) == (encoded.nbytes + 128 <= wanted.nbytes)
    assert not encoded.then(packing).stands_for(wanted.astype("int32"))


@pytest.mark.parametrize(
    ("low", "dtype"),
    [(100, "int8"), (1 << 14, "int16"), (np.nan, "float32"), (np.inf, "float32"), (0.5, "float32")],
)
def test_integers_beyond_their_type_are_refused(low: float, dtype: str) -> None:
    good = integers(RNG.integers(0, 32, (40, 9, 5)).astype(np.int8), "int8")
    parts = {**good.parts, "low": np.array([low], dtype)}
    with pytest.raises(ArtifactError, match=r"cannot be decoded: (codes of 5 bits on top of|float32 \[1\])"):
        good.encoding.check("w", parts)


def test_little_to_save_is_not_worth_decoding() -> None:
    values = RNG.integers(-127, 128, (1000, 64)).astype(np.int8)
    values[0, :2] = -127, 127
    packing = Packing().pad(1008, 64)
    assert not integers(values, "int8").then(packing).stands_for(packing.apply(values))


def test_numbers_beyond_float16_are_not_cut_off() -> None:
    assert narrow(np.full((50, 60), 70001, np.float32)) is None


def content(encoded: Encoded, **changes: Any) -> bytes:
    """An artifact with one weight in a small form; ``changes`` go into its entry of the manifest."""
    good = handmade.artifact(
        b"no library at all",
        weights=[("w", encoded.encoding.decode(encoded.parts)), ("b", np.ones(3, np.float32))],
        encoded={"w": encoded},
        target=resolve("x86-64-v2"),
    )
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    data = json.loads(members[MANIFEST])
    data["encodings"]["w"] |= changes
    return _packed(list({**members, MANIFEST: json.dumps(data).encode()}.items()))


def opened(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "some.shave"
    path.write_bytes(data)
    return open_artifact(path)


def whole(bits: int, lead: tuple[int, ...]) -> tuple[Encoded, Any]:
    values = RNG.integers(0, 2**bits, SHAPE).astype(np.int8)
    return integers(values, "int8"), values


@pytest.mark.parametrize("make", [lookup, affine, whole])
def test_artifacts_store_the_small_form(make: Any, tmp_path: Path) -> None:
    encoded, wanted = make(3, (40, 1, 1))
    packing = Packing().pad(48, 9, 11).reshape(3, 16, 99).transpose(0, 2, 1)
    contents = opened(tmp_path, content(encoded.then(packing)))
    assert set(contents.stored) == {"b", *(f"w:{part}" for part in encoded.parts)}
    weight, bias = contents.weights
    np.testing.assert_array_equal(weight, packing.apply(wanted))
    np.testing.assert_array_equal(bias, np.ones(3, np.float32))
    with zipfile.ZipFile(tmp_path / "some.shave") as archive:
        stored = [decode(memoryview(archive.read(name))) for name in (SMALL, WEIGHTS)]
    assert sum(array.nbytes for arrays in stored for array in arrays.values()) == encoded.nbytes + 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 4}, r"codes \[1485\] for \[40, 9, 11\] of 4 bits"),
        ({"bits": 0}, "codes of 0 bits"),
        ({"bits": 9}, "codes of 9 bits"),
        ({"view": [40, 9, 12]}, "codes"),
        ({"view": [-40, -9, 11]}, r"view \[-40, -9, 11\]"),
        ({"view": [40.0, 9, 11]}, "view"),
        ({"view": []}, r"view \[\]"),
        ({"view": [3960]}, r"float32 \[1, 1, 1, 8\] for \[3960\]"),
        ({"view": [1 << 40, 9, 11]}, "too much for what is stored"),
        ({"packing": [["pad", [1 << 40, 9, 11]]]}, "too much for what is stored"),
        ({"packing": [["pad", [1 << 70, 9, 11]]]}, "too much for what is stored"),
        ({"packing": [["reshape", [5]]]}, r"reshape \[5\] of \[40, 9, 11\]"),
        ({"packing": [["diagonal", []]]}, "diagonal"),
    ],
)
def test_entries_that_do_not_fit_are_refused_before_anything_is_allocated(
    changes: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=f"it is refused: weight 'w' cannot be decoded: .*{message}"):
        opened(tmp_path, content(lookup(3, (1, 1, 1))[0], **changes))


@pytest.mark.parametrize("changes", [{"kind": "pickle"}, {"kind": 3}, {"bits": True}, {"view": None}, {"packing": 3}])
def test_entries_of_the_wrong_kind_are_no_manifest(changes: Mapping[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="its manifest is not one of format"):
        opened(tmp_path, content(lookup(3, (1, 1, 1))[0], **changes))


def test_parts_of_another_kind_do_not_fit_the_weights(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="its manifest does not describe its weights"):
        opened(tmp_path, content(lookup(3, (1, 1, 1))[0], kind="affine"))


def test_codes_beyond_a_table_are_refused_when_they_are_decoded(tmp_path: Path) -> None:
    good, _ = lookup(3, (1, 1, 1))
    contents = opened(tmp_path, content(good))
    short = {**contents.stored, "w:codebook": contents.stored["w:codebook"][..., :5]}
    with pytest.raises(ArtifactError, match="weight 'w': a code is beyond the 5 entries of its table"):
        _ = type(contents)(contents.manifest, contents.library, short, contents.file).weights


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from(["kind", "bits", "view", "packing"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.sampled_from(["lookup", "pad", "blocks", "reshape"]),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=6,
        ),
        min_size=1,
    )
)
def test_garbage_is_refused_or_harmless(tmp_path: Path, changes: dict[str, Any]) -> None:
    try:
        contents = opened(tmp_path, content(lookup(3, (1, 1, 1))[0], **changes))
        weights = contents.weights
    except ArtifactError:
        return
    assert weights[0].nbytes < 1024 * 1600
