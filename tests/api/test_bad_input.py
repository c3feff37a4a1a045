"""Whatever is wrong with a call or a file: one clear line, the right exit status, nothing half-written."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import shave
from tests.api.conftest import call, call_outside


def fails(line: str, code: int, *words: str) -> None:
    outcome = call(line)
    assert outcome.code == code, outcome
    assert outcome.out == ""
    message = outcome.err.strip()
    assert message.startswith("error: "), message
    assert "Traceback" not in message
    for word in words:
        assert word in message, message


def left(folder) -> set[str]:
    """Files that a command made."""
    return {path.name for path in folder.iterdir() if not path.is_symlink()}


def test_a_file_that_is_not_there(inside):
    fails("compile nothing.onnx -o out.shave", 1, "nothing.onnx: no such file")
    fails("run nothing.shave", 1, "nothing.shave")
    assert left(inside) == set()


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x08\x07" + b"\xff" * 40])
def test_a_file_that_is_no_onnx(inside, content):
    (inside / "bad.onnx").write_bytes(content)
    fails("compile bad.onnx -o out.shave", 1, "bad.onnx")
    assert left(inside) == {"bad.onnx"}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_onnx(inside, share):
    whole = (inside / "net.onnx").read_bytes()
    (inside / "cut.onnx").write_bytes(whole[: int(len(whole) * share)])
    fails("compile cut.onnx -o out.shave", 1, "cut.onnx")
    assert left(inside) == {"cut.onnx"}


def test_external_data_that_is_missing(inside):
    model = onnx.load(inside / "net.onnx")
    onnx.save(model, "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (inside / "weights.bin").unlink()
    fails("compile outside.onnx -o out.shave", 1, "outside.onnx", "weights.bin")
    assert left(inside) == {"outside.onnx"}


def test_unknown_operators_are_all_listed(inside):
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["y"], name="first"),
        helper.make_node("Relu", ["y"], ["z"], name="fine"),
        helper.make_node("Transmogrify", ["z"], ["w"], name="second", domain="my.domain"),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "w")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), "odd.onnx")
    fails("compile odd.onnx -o out.shave", 1, "Frobnicate", "first", "Transmogrify", "second")
    assert left(inside) == {"odd.onnx"}


def test_weights_that_are_not_numbers_are_warned_of_by_name(inside):
    module = torch.nn.Linear(3, 2)
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    shave.trace(module, (torch.zeros(1, 3),)).save("nan.pt2")
    outcome = call_outside("compile nan.pt2 -o out.shave")
    assert outcome.code == 0, outcome.err
    assert "warning: weights hold NaN or infinity: weight" in outcome.err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("imag=1x3x7x5", ["imag", "x"]),
        ("x=1x3x7x5:float64", ["float64", "float32"]),
        ("x=1x3x8", ["x"]),
        ("x=1x4x7x5", ["x"]),
    ],
)
def test_wrong_inputs_at_compile(inside, option, words):
    fails(f"compile net.onnx --input {option} -o out.shave", 1, *words)
    assert left(inside) == set()


def test_an_input_option_that_cannot_be_read(inside):
    outcome = call("compile net.onnx --input x -o out.shave")
    assert outcome.code == 2
    assert "NAME=SHAPE" in outcome.err


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((4, 3, 7, 6), np.float32)}, ["'x'", "dimension 3 is 6"]),
        ({"x": np.zeros((4, 3, 7, 5))}, ["'x'", "float64"]),
        ({"x": np.zeros((3, 7, 5), np.float32)}, ["'x'", "3 dimensions"]),
        ({"y": np.zeros(1, np.float32), "x": np.zeros((4, 3, 7, 5), np.float32)}, ["'y'"]),
    ],
)
@pytest.mark.parametrize("model", ["net.shave", "net.pt2"])
def test_wrong_inputs_at_run(inside, arrays, words, model):
    np.savez("wrong.npz", **arrays)
    fails(f"run {model} --input wrong.npz -o y.npz", 1, *words)
    assert left(inside) == {"wrong.npz"}


def test_inputs_that_are_pickled_or_damaged(inside):
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    fails("run net.shave --input pickled.npy", 1, "pickled.npy")
    (inside / "damaged.npz").write_bytes(b"PK\x03\x04damaged")
    fails("run net.shave --input damaged.npz", 1, "damaged.npz")


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("fold-batchnrom", ["fold-batchnrom", "fold-batchnorm"]),
        ("fold-constants{grwoth=3}", ["grwoth", "growth"]),
        ("fold-constants{growth=many}", ["growth"]),
        ("fold-constants{growth=", ["fold-constants"]),
        ("dedupe,,dead-code", ["dedupe"]),
    ],
)
def test_a_typo_in_a_pipeline(inside, pipeline, words):
    fails(f"compile net.pt2 -p '{pipeline}' -o out.shave", 2, *words)
    assert left(inside) == set()


def test_an_unknown_target(inside):
    fails("compile net.pt2 --target x86-64-v9 -o out.shave", 1, "x86-64-v9", "x86-64-v4")
    assert left(inside) == set()


def test_a_flipped_byte(inside):
    data = bytearray((inside / "net.shave").read_bytes())
    data[len(data) // 2] ^= 1
    (inside / "flipped.shave").write_bytes(data)
    fails("run flipped.shave", 1, "flipped.shave")
    fails("inspect flipped.shave", 1, "flipped.shave")


def test_disagreeing_files_are_not_timed(inside):
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(105, 5))
    shave.trace(other, (torch.zeros(1, 3, 7, 5),)).save("other.pt2")
    outcome = call("bench net.shave --against other.pt2 --rounds 1")
    assert outcome.code == 1
    assert "off by" in outcome.err


def test_comparison_beyond_the_tolerance_fails(inside):
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(105, 5))
    shave.trace(other, (torch.zeros(1, 3, 7, 5),)).save("other.pt2")
    outcome = call("compare net.shave other.pt2 --tolerance 1e-3 --json")
    assert outcome.code == 1
    assert outcome.data["within_tolerance"] is False


def test_a_folder_that_does_not_exist(inside):
    outcome = call("compile net.pt2 -o nowhere/out.shave")
    assert outcome.code == 2
    assert "nowhere" in outcome.err


def test_no_disk_space(inside):
    """A limit on the size of files stands for a disk that fills up while the artifact is written."""
    shutil.copy(inside / "net.shave", "kept.shave")
    before = (inside / "kept.shave").read_bytes()
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import shave; artifact = shave.load('net.shave');"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); artifact.save('kept.shave')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "WriteError" in done.stderr
    assert (inside / "kept.shave").read_bytes() == before
    assert left(inside) == {"kept.shave"}


@pytest.mark.parametrize("wait", [0.5, 4.0])
def test_ctrl_c(inside, wait):
    command = [sys.executable, "-c", "from shave.cli import main; main()", "compile", "net.onnx", "-o", "out.shave"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before it could be interrupted")
    assert process.returncode != 0
    assert left(inside) <= {"out.shave"}
    assert not [name for name in left(inside) if name.endswith(".part")], errors
    assert "out.shave" not in left(inside)
