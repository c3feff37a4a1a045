from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from shave.backends.tvm.adapter import relax, tirx, tvm, tvm_target
from shave.backends.tvm.schedule import tail
from shave.backends.tvm.schedule.tail import RULE, SCHEDULED, explain_tail, schedule_tail
from tests.backends.tvm.schedule.cases import CASES, layer_norm, softmax, windows
from tests.backends.tvm.schedule.harness import compiled, functions, fused, llvm, sample, scheduled, x86

R = relax.op


def check(got: Any, expected: Any, tolerance: float) -> None:
    assert got.shape == expected.shape
    if got.dtype.kind == "f":
        scale = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(got.astype("float64"), expected, rtol=tolerance, atol=tolerance * scale)
    else:
        np.testing.assert_array_equal(got, expected)


def exact(array: Any) -> Any:
    wide = {"f": "float64", "i": "int64", "u": "int64"}.get(array.dtype.kind)
    return array if wide is None else array.astype(wide)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_computes_what_numpy_computes(name: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "PARALLEL_NANOSECONDS", 0)  # with two cores, even small work is shared
    case = CASES[name]
    target = x86(cores)
    module = scheduled(case.inputs, case.compute, target)
    arrays = [sample(shape, dtype, seed) for seed, (shape, dtype) in enumerate(case.inputs)]
    (result,) = compiled(module, target)(*arrays)
    check(result, np.asarray(case.reference(*map(exact, arrays))), case.tolerance)
    assert not [rule for rule in explain_tail(module).values() if "opaque" in rule]


n = tirx.Var("n", "int64")
DYNAMIC = {
    "gelu": ([((n, 33), "float32")], R.nn.gelu, None),
    "softmax-rows": ([((n, 17), "float32")], R.nn.softmax, lambda x: softmax(x, -1)),
    "softmax-columns": ([((3, n), "float32")], R.nn.softmax, lambda x: softmax(x, -1)),
    "layer-norm": (
        [((n, 2, 40), "float32"), ((40,), "float32"), ((40,), "float32")],
        lambda x, a, b: R.nn.layer_norm(x, a, b, [-1]),
        layer_norm,
    ),
    "transpose": ([((2, n, 33), "float32")], lambda x: R.permute_dims(x, [0, 2, 1]), lambda x: x.swapaxes(1, 2)),
    "concat": (
        [((n, 20), "float32"), ((n, 20), "float32")],
        lambda x, y: R.concat([x, y], 0),
        lambda x, y: np.concatenate([x, y], 0),
    ),
    "matmul": ([((n, 20), "float32"), ((20, 33), "float32")], R.matmul, lambda a, b: a @ b),
    "mean-columns": ([((3, n), "float32")], lambda x: R.mean(x, [1]), lambda x: x.mean(1)),
    "mean-rows": ([((n, 30), "float32")], lambda x: R.mean(x, [0]), lambda x: x.mean(0)),
    "max-pool": (
        [((n, 2, 9, 9, 16), "float32")],
        lambda x: R.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1), layout="NCHW16c"),
        lambda x: windows(x, 3, 2, 1, -np.inf).max((-1, -2)),
    ),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_sizes_known_at_run_time_only(name: str) -> None:
    inputs, compute, reference = DYNAMIC[name]
    reference = reference or CASES["gelu-7"].reference
    run = compiled(scheduled(inputs, compute, x86(2)), x86(2))
    for size in (1, 7, 133):
        shapes = [[size if isinstance(d, tvm.ir.Var) else d for d in shape] for shape, _ in inputs]
        arrays = [sample(shape, "float32", seed) for seed, shape in enumerate(shapes)]
        check(run(*arrays)[0], reference(*map(exact, arrays)), 2e-6)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("add-relu-100", "map"),
        ("gelu-100", "map"),
        ("softmax-100", "reduce-lanes, map, reduce-lanes, map"),
        ("layer-norm-100", "reduce-lanes, scalar, reduce-lanes, map"),
        ("mean-middle", "reduce-vector, map"),
        ("transpose-100", "transpose"),
        ("max-pool-blocked", "reduce-vector"),
        ("group-norm", "reduce-lanes, map"),
        ("matmul-100", "reduce-vector"),
        ("where", "map"),
    ],
)
def test_rule(name: str, rule: str) -> None:
    case = CASES[name]
    assert list(explain_tail(scheduled(case.inputs, case.compute, x86())).values()) == [rule]


@pytest.mark.parametrize("name", ["softmax-100", "gelu-100", "layer-norm-100", "silu-twice", "log-softmax", "quantize"])
def test_vectors_fill_the_registers_and_call_nothing(name: str) -> None:
    case = CASES[name]
    text = llvm(scheduled(case.inputs, case.compute, x86(cpu="skylake-avx512")), x86(cpu="skylake-avx512"))
    assert "<16 x float>" in text or "<64 x float>" in text
    for function in ("expf", "erff", "tanhf", "logf", "roundf", "llvm.exp", "llvm.log", "llvm.tanh"):
        assert f"@{function}" not in text


def parallel_loops(module: Any) -> int:
    return str(module).count("T.parallel(")


def test_threads_share_large_work_only() -> None:
    def add(rows: int) -> Any:
        return scheduled([((rows, 1000), "float32")] * 2, lambda x, y: R.nn.relu(R.add(x, y)), x86(2))

    assert parallel_loops(add(3)) == 0
    assert parallel_loops(add(3000)) == 1


def test_stages_of_a_row_share_one_parallel_loop() -> None:
    module = scheduled([((12, 128, 128), "float32")], R.nn.softmax, x86(2))
    assert parallel_loops(module) == 1
    assert "T_softmax_exp = T.alloc_buffer((T.int64(128),))" in str(module)  # one row of exponentials at a time


def test_accumulators_are_registers_inside_of_a_parallel_loop() -> None:
    module = scheduled([((12, 128, 128), "float32")], R.nn.softmax, x86(2))
    text = llvm(module, x86(2))
    assert "__tvm_parallel_lambda" in text
    assert "AllocWorkspace" not in text


def test_one_core_gets_no_parallel_loop() -> None:
    module = scheduled([((1000, 1000), "float32")], R.nn.gelu, x86(1))
    assert parallel_loops(module) == 0


def test_kernels_are_left_alone() -> None:
    module = fused([((3, 100), "float32")], R.nn.relu)
    (name,) = (g for g, f in module.functions.items() if isinstance(f, tirx.PrimFunc))
    module[name] = module[name].with_attr(SCHEDULED, True)
    again = schedule_tail(module, x86())
    tvm.ir.assert_structural_equal(again[name], module[name])
    assert explain_tail(again) == {name.name_hint: "kernel"}


def test_scheduling_twice_changes_nothing() -> None:
    once = scheduled([((3, 100), "float32")], R.nn.softmax, x86())
    tvm.ir.assert_structural_equal(schedule_tail(once, x86()), once)


def test_statements_of_unknown_form_are_shared_by_threads_where_that_is_safe() -> None:
    @T.prim_func(s_tir=True)
    def odd(x: T.Buffer((40, 50), "float32"), y: T.Buffer((40, 50), "float32")) -> None:
        T.func_attr({"tirx.noalias": True})
        for i, j in T.grid(40, 50):
            with T.sblock("guarded"):
                vi, vj = T.axis.remap("SS", [i, j])
                T.where(i * 50 + j < 1990)
                y[vi, vj] = x[vi, vj] + T.float32(1)

    module = schedule_tail(tvm.IRModule({"odd": odd}), x86(2))
    assert explain_tail(module) == {"odd": "parallel opaque: block guarded runs under a condition"}
    assert "T.parallel(40)" in str(module)


def test_a_dependence_between_iterations_is_kept() -> None:
    @T.prim_func(s_tir=True)
    def scan(x: T.Buffer((50,), "float32")) -> None:
        for i in range(49):
            with T.sblock("scan"):
                v = T.axis.opaque(49, i)
                x[v + 1] = x[v + 1] + x[v]

    module = schedule_tail(tvm.IRModule({"scan": scan}), x86(2))
    assert "opaque" in explain_tail(module)["scan"]
    values = sample((50,), "float32", 0)
    buffer = tvm.runtime.tensor(values)
    built(module["scan"], x86())(buffer)
    check(buffer.numpy(), np.cumsum(values, dtype="float64"), 1e-5)


def test_every_function_carries_its_rule() -> None:
    module = scheduled([((3, 100), "float32")], R.nn.gelu, x86())
    for function in functions(module).values():
        assert function.attrs[SCHEDULED]
        assert str(function.attrs[RULE]) == "map"


def test_bfloat16_is_rounded_once_per_value() -> None:
    target = x86()
    module = scheduled([((3, 133), "bfloat16")], R.nn.gelu, target)
    values = sample((3, 133), "float32", 0).astype("bfloat16")
    (result,) = compiled(module, target)(values)
    expected = CASES["gelu-7"].reference(values.astype("float64"))
    np.testing.assert_allclose(result.astype("float64"), expected, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sigmoid"])
def test_limits_of_functions(name: str) -> None:
    special = np.array(
        [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, -1e-40, 88.7, -103.0, 3e38, -3e38, 1.0] * 3, "float32"
    )
    compute = {"exp": R.exp, "log": R.log, "tanh": R.tanh, "sigmoid": R.sigmoid}[name]
    (result,) = compiled(scheduled([((36,), "float32")], compute, x86()), x86())(special)
    with np.errstate(all="ignore"):
        wide = special.astype("float64")
        reference = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "sigmoid": lambda v: 1 / (1 + np.exp(-v))}[name]
        expected = reference(wide).astype("float32")
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-38)


def built(function: Any, target: Any) -> Any:
    return tvm.compile(function.with_attr("global_symbol", "main"), tvm_target(target)).mod["main"]


def test_guarded_windows_read_a_padded_copy() -> None:
    te = tvm.te
    x, w = te.placeholder((3, 20), "float32", "x"), te.placeholder((5,), "float32", "w")
    k = te.reduce_axis((0, 5), "k")

    def element(c: Any, i: Any) -> Any:
        inside = tirx.all(i + k >= 2, i + k < 22)
        return te.sum(tirx.if_then_else(inside, x[c, i + k - 2], tirx.const(0.0, "float32")) * w[k], axis=k)

    y = te.compute((3, 20), element, "y")
    function = te.create_prim_func([x, w, y]).with_attr("global_symbol", "main")
    module = schedule_tail(tvm.IRModule({"main": function}), x86())
    assert explain_tail(module) == {"main": "map, reduce-vector"}
    a, b = sample((3, 20), "float32", 0), sample((5,), "float32", 1)
    out = tvm.runtime.tensor(np.zeros((3, 20), "float32"))
    built(module["main"], x86())(tvm.runtime.tensor(a), tvm.runtime.tensor(b), out)
    view = np.lib.stride_tricks.sliding_window_view(np.pad(a.astype("float64"), ((0, 0), (2, 2))), 5, axis=1)
    check(out.numpy(), view @ b, 2e-6)


def test_a_guard_that_tests_more_than_the_edge_stays() -> None:
    te = tvm.te
    x = te.placeholder((20,), "float32", "x")
    k = te.reduce_axis((0, 5), "k")

    def element(i: Any) -> Any:
        seen = tirx.all(i + k >= 3, i + k < 22)  # one more is hidden than lies outside
        return te.sum(tirx.if_then_else(seen, x[i + k - 2], tirx.const(0.0, "float32")), axis=k)

    function = te.create_prim_func([x, te.compute((20,), element, "y")]).with_attr("global_symbol", "main")
    module = schedule_tail(tvm.IRModule({"main": function}), x86())
    a = sample((20,), "float32", 0)
    out = tvm.runtime.tensor(np.zeros(20, "float32"))
    built(module["main"], x86())(tvm.runtime.tensor(a), out)
    hidden = np.pad(np.concatenate([[0.0], a[1:].astype("float64")]), 2)
    check(out.numpy(), np.lib.stride_tricks.sliding_window_view(hidden, 5).sum(-1), 2e-6)


def test_wrap_around_is_two_plain_copies() -> None:
    te = tvm.te
    x = te.placeholder((4, 56), "float32", "x")
    y = te.compute((4, 56), lambda c, i: x[c, (i + 3) % 56], "y")
    function = te.create_prim_func([x, y]).with_attr("global_symbol", "main")
    module = schedule_tail(tvm.IRModule({"main": function}), x86())
    assert "%" not in str(module["main"].body)
    a = sample((4, 56), "float32", 0)
    out = tvm.runtime.tensor(np.zeros((4, 56), "float32"))
    built(module["main"], x86())(tvm.runtime.tensor(a), out)
    check(out.numpy(), np.roll(a, -3, 1), 0)
