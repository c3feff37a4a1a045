from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from shave.backends import host, runtime
from shave.backends.runtime import Artifact, load
from shave.backends.targets import resolve
from shave.backends.tvm import vm
from shave.backends.tvm.build import build
from shave.ir.errors import SignatureError
from tests.backends import handmade
from tests.backends.handmade import OUT, WIDTH, expected
from tests.conftest import ROOT

RNG = np.random.default_rng(2)


@pytest.fixture
def artifact(packed: Path) -> Artifact:
    return load(packed)


def _input(batch: int = 3) -> np.ndarray[Any, Any]:
    return RNG.normal(size=(batch, WIDTH)).astype(np.float32)


def _aligned(batch: int = 3) -> np.ndarray[Any, Any]:
    memory = np.empty(batch * WIDTH + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    x = memory[start : start + batch * WIDTH].reshape(batch, WIDTH)
    x[...] = _input(batch)
    return x


# Calls


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_outputs_by_position_and_by_name(artifact: Artifact, batch: int) -> None:
    x = _input(batch)
    for y, matrices, same, bias in (artifact(x), artifact(x=x)):
        np.testing.assert_allclose(y, expected(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(matrices, x.reshape(batch, 8, 8))
        np.testing.assert_array_equal(same, x)
        np.testing.assert_array_equal(bias, handmade.weights()[1][1])


def _forms(x: np.ndarray[Any, Any]) -> dict[str, Any]:
    read_only = x.copy()
    read_only.flags.writeable = False
    shifted = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    shifted[...] = x
    wide = np.repeat(x, 2, axis=1)
    return {
        "aligned": vm.aligned(x),
        "shifted": shifted,
        "read-only": read_only,
        "fortran": np.asfortranarray(x),
        "strided": wide[:, ::2],
        "backwards": x[::-1].copy()[::-1],
        "big-endian": x.astype(">f4"),
        "torch": torch.from_numpy(x.copy()),
        "torch, strided": torch.from_numpy(wide)[:, ::2],
        "torch, shifted": torch.from_numpy(shifted),
        "torch, transposed": torch.from_numpy(np.asfortranarray(x)),
        "torch, trained": torch.nn.Parameter(torch.from_numpy(x.copy())),
        "tvm": vm.to_tensor(vm.aligned(x)),
    }


@pytest.mark.parametrize("form", _forms(_input()))
def test_every_form_of_input(artifact: Artifact, form: str) -> None:
    x = _input(5)
    y, *_ = artifact(_forms(x)[form])
    np.testing.assert_allclose(y, expected(x), rtol=1e-5, atol=1e-5)


def test_usable_inputs_are_not_copied(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = vm.Machine.__call__

    def spy(machine: vm.Machine, arrays: Any) -> Any:
        seen.append(vm.aligned(arrays[0]).ctypes.data)
        return run(machine, arrays)

    monkeypatch.setattr(vm.Machine, "__call__", spy)
    x = _aligned()
    lent = torch.from_numpy(x)
    artifact(x)
    artifact(lent)
    artifact(x[:, ::-1])
    assert seen[:2] == [x.ctypes.data] * 2
    assert seen[2] != x.ctypes.data


def test_results_stay_as_they_are(artifact: Artifact) -> None:
    """Later calls use the same memory pool; they must not reach into earlier results."""
    x = _input()
    first = artifact(x)
    kept = [output.copy() for output in first]
    for _ in range(5):
        artifact(_input())
    del artifact
    gc.collect()
    for output, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(output, copy)


def test_writing_to_results_reaches_nothing(artifact: Artifact) -> None:
    """Two outputs are the input, one is a weight: each must be a copy."""
    x = _aligned()
    before = x.copy()
    for output in artifact(x):
        output[...] = 7
    np.testing.assert_array_equal(x, before)
    np.testing.assert_allclose(artifact(x)[0], expected(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(artifact(x)[3], handmade.weights()[1][1])


def test_narrow_floats(tmp_path: Path) -> None:
    """bfloat16, which neither NumPy nor its DLPack knows."""
    dtype = np.dtype(ml_dtypes.bfloat16)
    library = build(handmade.module("bfloat16"), resolve("cpu"))
    path = tmp_path / "narrow.shave"
    path.write_bytes(handmade.artifact(library, dtype))
    x = _input().astype(dtype)
    (_, w), (_, b) = handmade.weights(dtype)
    exact = np.maximum(x.astype(np.float64) @ w.astype(np.float64) + b.astype(np.float64), 0)
    artifact = load(path)
    for given in (x, torch.from_numpy(x.astype(np.float32)).bfloat16()):
        y, _, same, _ = artifact(given)
        assert y.dtype == dtype
        np.testing.assert_allclose(y.astype(np.float64), exact, rtol=0.05, atol=0.5)
        np.testing.assert_array_equal(same, x)


# Wrong calls


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a(), "missing input 'x'"),
        (lambda a: a(_input(), _input()), "2 inputs given, but the program takes 1"),
        (lambda a: a(y=_input()), "no input is named 'y'; the inputs are x"),
        (lambda a: a(_input(), x=_input()), "'x' is given twice"),
        (lambda a: a(_input().astype(np.float64)), "'x' has dtype float64, but the program takes x: float32"),
        (lambda a: a(np.ones((2, WIDTH), ">i4")), "'x' has dtype int32"),
        (lambda a: a(torch.ones(2, WIDTH, dtype=torch.int8)), "'x' has dtype int8"),
        (lambda a: a(np.ones((2, WIDTH), object)), "'x' has dtype object"),
        (lambda a: a(_input()[:, 1:]), "'x', dimension 1 is 63"),
        (lambda a: a(_input()[0]), "'x' has 1 dimensions"),
        (lambda a: a(_input()[:0]), r"'x', dimension 0 \(batch\) is 0"),
        (lambda a: a([[1.0] * WIDTH]), "'x' is a list, not an array"),
        (lambda a: a(None), "'x' is a NoneType, not an array"),
        (lambda a: a(torch.ones(2, WIDTH, device="meta")), "'x'"),
    ],
)
def test_wrong_calls_are_refused(artifact: Artifact, call: Any, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        call(artifact)
    assert artifact(_input())[0].shape == (3, OUT)


# Threads


def test_default_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(host, "usable_cores", lambda: 1)
    assert runtime.default_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert runtime.default_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert runtime.default_threads() == len(host.usable_processors())
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    assert runtime.default_threads() == 1


def test_threads_reach_tvm(packed: Path) -> None:
    """Also in a thread of its own, where TVM starts another pool of workers."""
    most = len(host.usable_processors())
    seen: list[int] = []

    def run() -> None:
        artifact = load(packed, threads=1)
        for number in (1, most, 1, most):
            artifact.threads = number
            artifact(_input())
            seen.append(vm.ffi().get_global_func("runtime.NumThreads")())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [1, most, 1, most]


@pytest.mark.parametrize("number", [0, -1, 100_000])
def test_impossible_threads(artifact: Artifact, packed: Path, number: int) -> None:
    with pytest.raises(ValueError, match="threads must be from 1 to"):
        artifact.threads = number
    with pytest.raises(ValueError, match="threads must be from 1 to"):
        load(packed, threads=number)
    assert artifact.threads >= 1


def test_many_threads_call_many_artifacts(packed: Path) -> None:
    artifacts = [load(packed, threads=1), load(packed, threads=1), load(packed)]
    inputs = [_input(batch) for batch in range(1, 9)]

    def run(number: int) -> None:
        artifact, x = artifacts[number % 3], inputs[number % 8]
        y, _, same, _ = artifact(x)
        np.testing.assert_allclose(y, expected(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(same, x)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(600)))


def test_in_a_forked_child(artifact: Artifact) -> None:
    """TVM's workers do not survive a fork: the child must not wait for them."""
    artifact.threads = len(host.usable_processors())
    x = _input()
    before = artifact(x)[0]
    program = os.fork()
    if program == 0:
        same = np.array_equal(artifact(x)[0], before)
        os._exit(0 if same else 1)
    _, status = os.waitpid(program, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# Loading


def test_libraries_are_unloaded(packed: Path) -> None:
    def mapped() -> int:
        return sum("memfd:shave" in line for line in Path("/proc/self/maps").read_text().splitlines())

    gc.collect()
    before = mapped()
    artifacts = [load(packed) for _ in range(5)]
    each, rest = divmod(mapped() - before, 5)
    assert each > 0
    assert rest == 0
    del artifacts
    gc.collect()
    assert mapped() == before


def test_libraries_are_not_mistaken_for_each_other(packed: Path, tmp_path: Path) -> None:
    """The file behind a library gets the same descriptor each time; the code must still be its own."""
    other = tmp_path / "other.shave"
    other.write_bytes(handmade.artifact(build(handmade.module(negate=True), resolve("cpu"))))
    x = _input()
    kept = [load(packed), load(other), load(packed), load(other)]
    for artifact, sign in zip(kept, (1, -1, 1, -1), strict=True):
        np.testing.assert_allclose(artifact(x)[0], sign * expected(x), rtol=1e-5, atol=1e-5)


def test_no_file_is_left_open(packed: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    artifact = load(packed)
    artifact(_input())
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the mapping keeps a descriptor of its own


def _run(code: str, packed: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TVM", "OMP"))}
    return subprocess.run(
        [sys.executable, "-c", code, str(packed)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )


CALL = "a = load(sys.argv[1]); y = a(np.ones((2, 64), 'float32'))[0]; assert y.shape == (2, 10), y\n"
HEAD = "import sys; import numpy as np\n"
LOAD = "from shave import load\n"


def test_a_model_can_be_compiled_after_an_artifact_was_loaded(packed: Path) -> None:
    """Files opened since may bear the numbers of the libraries that were loaded: stack traces must not read them."""
    model = ROOT / "examples" / "models" / "digits_cnn.onnx"
    done = _run(f"{HEAD}{LOAD}{CALL}import shave\nshave.compile({str(model)!r})\n", packed)
    assert done.returncode == 0, done.stderr


def test_neither_torch_nor_tvm_is_imported_and_nothing_is_printed(packed: Path) -> None:
    code = HEAD + LOAD + CALL + "assert not {'torch', 'tvm'} & sys.modules.keys(), sys.modules.keys()\n"
    done = _run(code + "a.profile(np.ones((2, 64), 'float32'))", packed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "code",
    [
        HEAD + "import torch\n" + LOAD + CALL + "a(torch.ones(2, 64))",
        HEAD + LOAD + CALL + "import torch, tvm\n" + CALL + "a(torch.ones(2, 64))",
        HEAD + "import tvm, torch\n" + LOAD + CALL + "a(tvm.runtime.tensor(np.ones((2, 64), 'float32')))",
    ],
)
def test_beside_torch_and_tvm_in_any_order(packed: Path, code: str) -> None:
    done = _run(code, packed)
    assert (done.returncode, done.stderr) == (0, "")


def test_profile_names_each_kernel(artifact: Artifact) -> None:
    times = artifact.profile(_input(), rounds=3)
    calls = {time.name: time.calls for time in times}
    assert {"matmul", "add", "relu", "(virtual machine)"} <= calls.keys()
    assert calls["matmul"] == 1
    assert all(time.seconds > 0 for time in times)
    assert [time.seconds for time in times] == sorted((time.seconds for time in times), reverse=True)
    with pytest.raises(ValueError, match="rounds"):
        artifact.profile(_input(), rounds=0)
    with pytest.raises(SignatureError):
        artifact.profile(_input()[0])


def test_what_it_says_of_itself(artifact: Artifact, packed: Path) -> None:
    assert artifact.size == packed.stat().st_size
    assert artifact.signature == handmade.signature()
    assert "x: float32[batch, 64]" in repr(artifact)
    assert artifact.manifest.platform.target == "cpu"
