from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from shave.backends.targets import resolve
from shave.backends.tvm.adapter import tvm
from shave.backends.tvm.build import build
from shave.backends.tvm.schedules import Kernel
from shave.backends.tvm.static import with_pointers
from shave.backends.tvm.tune import meter as meter_module
from shave.backends.tvm.tune.meter import Meter, Variants
from shave.backends.tvm.tune.network import Network
from shave.ir.errors import CompileError
from shave.ir.program import Program
from shave.passes.manager import PassManager
from tests.backends.tvm.tune.conftest import X, other_schedule

# In the place of the matrix product: [2, 24] with packed weights and bias to [2, 10].


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def wrong(
    a: T.Buffer((48,), "float32"),
    b: T.Buffer((384,), "float32"),
    bias: T.Buffer((10,), "float32"),
    c: T.Buffer((20,), "float32"),
) -> None:  # type: ignore[valid-type]
    with T.sblock("root"):
        for i in range(20):
            c[i] = a[i] + b[i] + bias[i % 10]  # type: ignore[index]


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def crash(
    a: T.Buffer((48,), "float32"),
    b: T.Buffer((384,), "float32"),
    bias: T.Buffer((10,), "float32"),
    c: T.Buffer((20,), "float32"),
) -> None:  # type: ignore[valid-type]
    with T.sblock("root"):
        for i in range(20):
            c[i * 1000000000000] = a[i] + b[i] + bias[i % 10]  # type: ignore[index]


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def endless(
    a: T.Buffer((48,), "float32"),
    b: T.Buffer((384,), "float32"),
    bias: T.Buffer((10,), "float32"),
    c: T.Buffer((20,), "float32"),
) -> None:  # type: ignore[valid-type]
    with T.sblock("root"):
        for i in range(1 << 60):
            c[i % 20] = c[(i + 1) % 20] * a[i % 48] + b[i % 384] + bias[i % 10]  # type: ignore[index]


@pytest.fixture(scope="module")
def network(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Network:
    return Network(program, resolve("cpu"), tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meter]:
    path = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    np.savez(path, x=X.numpy())
    meter = Meter(1, path)
    yield meter
    meter.stop()


def variants(network: Network, function: Any, tmp_path: Path) -> Variants:
    """The network with a function in the place of its matrix product."""
    (name,) = [name for kernel, name in network.names.items() if kernel.name == "matmul"]
    functions = dict(network._lowered.module.functions.items())
    (variable,) = [variable for variable in functions if variable.name_hint == name]
    functions[variable] = with_pointers(function.without_attr("global_symbol"))
    path = tmp_path / f"{function.attrs['global_symbol']}.so"
    path.write_bytes(build(tvm.IRModule(functions), resolve("cpu")))
    return Variants(network.artifact, [path], {name: "float32"})


def test_each_step_is_timed_in_each_round(meter: Meter, network: Network, kernels: dict[str, Kernel]) -> None:
    library = network.variant({kernel: other_schedule(kernel) for kernel in kernels.values()})
    both = Variants(network.artifact, [library], dict.fromkeys(network.names.values(), "float32"))
    (with_two, alone) = meter.steps([both, Variants(network.artifact)], seconds=1e-3)
    assert [len(with_two), len(alone)] == [2, 1]
    steps = {number for numbers in network.steps.values() for number in numbers}
    for samples in [*with_two, *alone]:
        assert len(samples) >= meter_module._FEWEST_ROUNDS
        assert all(0 <= seconds < 1 for taken in samples for seconds in taken)
        assert all(steps <= set(range(len(taken))) for taken in samples)
    assert {len(samples) for samples in [*with_two, *alone]} == {len(alone[0])}


def test_whole_calls(meter: Meter, network: Network) -> None:
    first, second = meter.whole([Variants(network.artifact)] * 2, seconds=1e-3)
    assert len(first) == len(second) >= meter_module._FEWEST_ROUNDS
    assert all(0 < seconds < 1 for seconds in [*first, *second])


def test_other_results_are_refused(meter: Meter, network: Network, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"matmul_.*: 20 of 20 results differ from those of the default schedule"):
        meter.steps([variants(network, wrong, tmp_path)], seconds=1e-3)


def test_codes_may_differ_by_one_next_to_a_tie() -> None:
    codes = np.array([0, 7, 255], np.uint8)
    meter_module._compare("a", codes, np.array([1, 6, 255], np.uint8))
    with pytest.raises(CompileError, match="a: 1 of 3 results differ"):
        meter_module._compare("a", codes, np.array([0, 7, 253], np.uint8))


def quantized(program: Program) -> Program:
    return PassManager("quantize").run(program, calibration=[(X,)])


def test_kernels_of_integers_have_other_schedules(program: Program, meter: Meter, tmp_path: Path) -> None:
    network = Network(quantized(program), resolve("cpu"), tmp_path)
    integers = [kernel for kernel in network.names if kernel.integers]
    assert {kernel.epilogue.dtype for kernel in integers} == {"uint8", "float32"}
    library = network.variant({kernel: other_schedule(kernel) for kernel in integers})
    dtypes = {network.names[kernel]: kernel.epilogue.dtype for kernel in integers}
    (samples,) = meter.steps([Variants(network.artifact, [library], dtypes)], seconds=1e-3)
    assert len(samples) == 2


def test_a_crash_costs_one_measurement(meter: Meter, network: Network, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"the program under test crashed on a variant \(SIG(SEGV|BUS)\)"):
        meter.steps([variants(network, crash, tmp_path)], seconds=1e-3)
    assert len(meter.steps([Variants(network.artifact)], seconds=1e-3)) == 1


def test_what_never_ends_is_ended(
    meter: Meter, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_module, "_LONGEST", 3.0)
    with pytest.raises(CompileError, match="a variant took longer than 3 s"):
        meter.steps([variants(network, endless, tmp_path)], seconds=1e-3)
