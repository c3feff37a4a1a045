"""What every pass promises, as tests that the test class of each pass inherits."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from torch import fx

import shave
from shave.ir.program import Program
from shave.ir.rewrite import PROVENANCE
from shave.passes import registry
from shave.passes.base import Exactness, Pass
from shave.passes.compare import outputs_of
from shave.passes.manager import PassManager
from shave.passes.pipeline import parse, to_text
from shave.passes.report import PassReport
from tests.conftest import ROOT
from tests.passes.oracle import assert_equivalent, random_inputs

SIZES = (3, 1, 6)
"""Sizes of the dynamic dimensions that results are run with."""

GOLDEN = Path(__file__).parent / "golden"
"""Texts of programs as passes leave them. With SHAVE_RECORD=1 in the environment, tests write them anew, and fail."""


class PassContract(ABC):
    """Subclass it as ``TestContract``; what it inherits is tried on each of its cases.

    Attributes:
        idempotent: Whether a second run finds nothing left to do.
        golden: The cases whose text after the pass is recorded, in ``golden/<pass>-<case>.txt``.
        onnx: The cases whose result is written to ONNX and run in ONNX Runtime; empty for none.
    """

    idempotent: ClassVar[bool] = True
    golden: ClassVar[tuple[str, ...]] = ()
    onnx: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def make_pass(self) -> Pass:
        """The pass, with options as it is to be tried."""

    @abstractmethod
    def cases(self) -> Mapping[str, Callable[[], Program]]:
        """Programs by name, each with something to do for the pass; one at least has a dynamic dimension."""

    @abstractmethod
    def candidates(self, program: Program) -> Iterable[fx.Node]:
        """The nodes of a program of which the report must speak."""

    def run_arguments(self, program: Program) -> dict[str, Any]:
        """What ``PassManager.run`` is given besides the program: calibration data, for instance."""
        return {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        wanted = {"case": list(self.cases()), "golden_case": self.golden, "onnx_case": self.onnx}
        for name, cases in wanted.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, cases)

    def test_the_program_given_stays_as_it_is(self, case: str) -> None:
        original = self.cases()[case]()
        text, digest, weights = str(original), original.structural_hash(), dict(original.weights())
        _manager(self.make_pass()).run(original, **self.run_arguments(original))
        assert (str(original), original.structural_hash()) == (text, digest)
        assert all(tensor is weights[name] for name, tensor in original.weights())

    def test_it_has_something_to_do_and_leaves_a_valid_program(self, case: str) -> None:
        original, result = _result(type(self), case)
        assert result.report[-1].changed
        result.verify(full=True)
        assert [spec.name for spec in result.signature.inputs] == [spec.name for spec in original.signature.inputs]
        assert [spec.name for spec in result.signature.outputs] == [spec.name for spec in original.signature.outputs]

    def test_exact_passes_keep_the_outputs_whatever_the_dynamic_sizes(self, case: str) -> None:
        original, result = _result(type(self), case)
        instance = self.make_pass()
        if instance.exactness is Exactness.LOSSY:
            assert result.report[-1].drift, "a lossy pass has its drift measured"
            return
        for seed, size in enumerate(SIZES):
            inputs = random_inputs(original, seed, size)
            assert_equivalent(original, result, inputs, rtol=instance.tolerance)

    def test_some_case_has_a_dynamic_dimension(self) -> None:
        assert any(make().signature.dims for make in self.cases().values())

    def test_it_is_deterministic(self, case: str) -> None:
        original, result = _result(type(self), case)
        again = _manager(self.make_pass()).run(original, **self.run_arguments(original))
        assert again.structural_hash() == result.structural_hash()
        assert str(again) == str(result)
        assert [_entries(r) for r in again.report] == [_entries(r) for r in result.report]

    def test_another_process_comes_to_the_same(self, case: str) -> None:
        _, result = _result(type(self), case)
        theirs = _digests_elsewhere(tuple(sorted(map(_path, _contracts()))))
        assert theirs[_path(type(self))][case] == [result.structural_hash(), str(result)]

    def test_a_second_run_changes_nothing(self, case: str) -> None:
        if not self.idempotent:
            return
        original, result = _result(type(self), case)
        again = _manager(self.make_pass()).run(result, **self.run_arguments(original))
        assert not again.report[-1].changed, again.report[-1].applied

    def test_it_stands_in_the_registry_under_the_name_of_its_file(self) -> None:
        kind = type(self.make_pass())
        assert registry.load(kind.name) is kind
        *_, folder, file = kind.__module__.split(".")
        assert kind.name.replace("-", "_") in (file, f"{folder}_{file}")
        assert (kind.__doc__ or "").strip().partition("\n")[0].endswith(".")

    def test_its_options_survive_as_text(self) -> None:
        instance = self.make_pass()
        assert parse(str(instance)) == (instance,)
        assert to_text(parse(str(instance))) == str(instance)

    def test_the_report_speaks_of_every_candidate(self, case: str) -> None:
        original, result = _result(type(self), case)
        spoken = {entry.node for entry in result.report[-1].entries}
        assert {node.name for node in self.candidates(original)} <= spoken
        assert all(entry.text for entry in result.report[-1].entries)

    def test_every_new_node_tells_where_it_comes_from(self, case: str) -> None:
        original, result = _result(type(self), case)
        old = {node.name: node.target for node in original.graph.nodes}
        for node in result.graph.nodes:
            if node.op in ("call_function", "get_attr") and old.get(node.name) != node.target:
                origin = node.meta["custom"][PROVENANCE]
                assert origin["by"] == self.make_pass().name
                assert origin["from"], f"{node.name} stems from nothing"

    def test_the_result_can_be_saved_and_read(self, case: str, tmp_path: Path) -> None:
        _, result = _result(type(self), case)
        result.save(tmp_path / "result.pt2")
        read = shave.read(tmp_path / "result.pt2")
        assert_equivalent(result, read, random_inputs(result, 0), rtol=0.0)

    def test_onnx_runtime_runs_the_result(self, onnx_case: str, tmp_path: Path) -> None:
        _, result = _result(type(self), onnx_case)
        result.to_onnx(tmp_path / "result.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "result.onnx", providers=["CPUExecutionProvider"])
        for seed, size in enumerate(SIZES):
            inputs = random_inputs(result, seed, size)
            names = [spec.name for spec in result.signature.inputs]
            gots = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
            for want, got in zip(outputs_of(result(*inputs)), gots, strict=True):
                np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-5 * float(want.abs().max()))

    def test_the_text_is_as_recorded(self, golden_case: str) -> None:
        _, result = _result(type(self), golden_case)
        file = GOLDEN / f"{self.make_pass().name}-{golden_case}.txt"
        if os.environ.get("SHAVE_RECORD") == "1":
            file.write_text(f"{result}\n")
            pytest.fail(f"recorded {file.name}")
        assert f"{result}\n" == file.read_text()


def run_pass(instance: Pass | str, program: Program, **arguments: Any) -> tuple[Program, PassReport]:
    """Run a pass under full verification, its exactness checked; give the new program and the pass's report."""
    result = _manager(instance).run(program, **arguments)
    return result, result.report[-1]


def reasons(report: PassReport) -> dict[str, str]:
    """What a report says of each node, by name: ``applied: ...`` or ``skipped: ...``."""
    return {entry.node: f"{entry.verdict}: {entry.text}" for entry in report.entries}


def print_digests(contracts: Iterable[str]) -> None:
    """Run the passes of contracts on their cases and print digests and texts as JSON."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in contracts:
        module, _, name = path.partition(":")
        kind = getattr(importlib.import_module(module), name)
        results = {case: _result(kind, case)[1] for case in kind().cases()}
        found[path] = {case: [result.structural_hash(), str(result)] for case, result in results.items()}
    sys.stdout.write(json.dumps(found))


def _manager(instance: Pass | str) -> PassManager:
    return PassManager(instance, verify="full", reproduce=False)


@cache
def _result(kind: type[PassContract], case: str) -> tuple[Program, Program]:
    contract = kind()
    original = contract.cases()[case]()
    return original, _manager(contract.make_pass()).run(original, **contract.run_arguments(original))


def _entries(report: PassReport) -> list[tuple[str, str, str]]:
    return [(entry.verdict, entry.node, entry.text) for entry in report.entries]


def _contracts(kind: type[PassContract] = PassContract) -> list[type[PassContract]]:
    """All that pytest has collected: in a run of the whole suite, one process then serves them all."""
    below = [each for child in kind.__subclasses__() for each in (child, *_contracts(child))]
    return [each for each in below if each.__name__.startswith("Test")]


def _path(kind: type[PassContract]) -> str:
    return f"{kind.__module__}:{kind.__name__}"


@cache
def _digests_elsewhere(contracts: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Run the contracts in a process that orders its sets differently."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    code = f"from tests.passes.contract import print_digests; print_digests({list(contracts)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
