"""``shave sensitivity``."""

from xml.etree import ElementTree

import numpy as np

from tests.api.conftest import call


def test_table_json_and_chart(inside):
    outcome = call("sensitivity net.onnx --svg scan.svg --json")
    assert outcome.code == 0, outcome.err
    groups = {each["group"]: each for each in outcome.data}
    assert groups
    for each in groups.values():
        errors = [point["error"] for point in each["points"]]
        units = [point["units"] for point in each["points"]]
        assert units == sorted(units, reverse=True)
        assert errors
        assert all(error > 0 for error in errors)
    tree = ElementTree.parse(inside / "scan.svg")
    words = " ".join("".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text"))
    assert all(name in words for name in groups)
    table = call("sensitivity net.onnx")
    assert table.code == 0
    assert all(name in table.out for name in groups)


def test_calibration_data_and_scopes(inside):
    np.savez("many.npz", x=np.random.default_rng(0).standard_normal((4, 3, 7, 5), dtype=np.float32))
    every = call("sensitivity net.onnx --calibrate many.npz --criterion variance --json")
    assert every.code == 0, every.err
    first = every.data[0]["group"]
    fewer = call(f"sensitivity net.onnx --calibrate many.npz --skip {first} --json")
    assert [each["group"] for each in fewer.data] == [each["group"] for each in every.data[1:]]


def test_bad_input(inside):
    for line, message in (
        ("--criterion tailor", "there is no criterion 'tailor'; did you mean 'taylor'"),
        ("--criterion taylor", "needs calibration data"),
        ("--only nowhere", "matches nothing"),
    ):
        outcome = call(f"sensitivity net.onnx {line}")
        assert outcome.code == 2
        assert message in outcome.err


def test_what_integers_cost(inside):
    np.savez("many.npz", x=np.random.default_rng(0).standard_normal((4, 3, 7, 5), dtype=np.float32))
    outcome = call("sensitivity net.onnx --calibrate many.npz --quantize quantize --svg scan.svg --json")
    assert outcome.code == 0, outcome.err
    assert outcome.data
    assert all(each["alone_db"] > 10 for each in outcome.data)
    assert ElementTree.parse(inside / "scan.svg")
    table = call("sensitivity net.onnx --calibrate many.npz --quantize quantize{calibrate=minmax}")
    assert table.code == 0, table.err
    assert "alone" in table.out
    missing = call("sensitivity net.onnx --quantize quantize")
    assert missing.code == 2
    assert "needs --calibrate" in missing.err
