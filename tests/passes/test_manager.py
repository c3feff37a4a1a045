import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shave.ir.errors import PassError, PipelineError, SignatureError, VerifyError
from shave.ir.from_torch import trace
from shave.passes.base import Pass
from shave.passes.instruments import Instrument, Step
from shave.passes.manager import PassManager
from shave.passes.report import PassReport
from tests.passes.examples import (
    Boast,
    Corrupt,
    Fail,
    Idle,
    NeedsData,
    QuantizeUndeclared,
    ReluToClamp,
    ReluToSilu,
    ScaleQuietly,
    ScaleWeight,
    Tuned,
    aten,
    net_program,
)


def manager(*passes: Pass, **settings: Any) -> PassManager:
    return PassManager(passes, verify=settings.pop("verify", "full"), reproduce=False, **settings)


def test_the_program_given_stays_as_it_is() -> None:
    program = net_program()
    text, digest = str(program), program.structural_hash()
    result = manager(ReluToClamp()).run(program)
    assert (str(program), program.structural_hash(), program.report) == (text, digest, ())
    assert result.structural_hash() != digest
    with pytest.raises(PassError):
        manager(ReluToClamp(), Fail()).run(program)
    assert (str(program), program.structural_hash(), program.report) == (text, digest, ())


def test_reports_are_appended_and_changed_is_computed() -> None:
    program = net_program()
    result = manager(Idle(), ReluToClamp(), Tuned(rank=2)).run(program)
    assert [(report.name, report.text, report.changed) for report in result.report] == [
        ("idle", "idle", False),
        ("relu-to-clamp", "relu-to-clamp", True),
        ("tuned", "tuned{rank=2}", False),
    ]
    assert [entry.names[-1] for entry in result.report[1].applied] == ["first.relu", "second.relu"]
    assert [entry.text for entry in result.report[0].skipped] == ["idle passes do nothing"] * 2
    assert set(result.report[1].seconds) == {"clone", "apply", "verify", "hash", "check"}
    again = manager(Idle()).run(result)
    assert len(again.report) == 4
    assert len(result.report) == 3


def test_the_result_computes_what_the_passes_say() -> None:
    program = net_program()
    x = torch.randn(2, 3, 9, 11)
    result = manager(ReluToClamp(), ScaleWeight(1.0 + 1e-7)).run(program)
    assert [node.target for node in result.calls].count(aten.clamp_min.default) == 2
    torch.testing.assert_close(result(x), program(x), rtol=1e-6, atol=1e-6)


def test_the_drift_of_lossy_passes_is_measured_from_pass_to_pass() -> None:
    program = net_program()
    x = torch.randn(2, 3, 9, 11)
    result = manager(ReluToSilu(), Idle(), ReluToClamp()).run(program, calibration=[(x,)])
    want, got = program(x).double(), result(x).double()  # type: ignore[union-attr]
    drift = result.report[0].drift["output"]
    assert drift.max_abs == pytest.approx(float((want - got).abs().max()), rel=1e-6)
    assert drift.sqnr_db == pytest.approx(
        float(10 * torch.log10(want.square().sum() / (want - got).square().sum())), rel=1e-6
    )
    assert result.report[1].drift == result.report[2].drift == {}


def test_an_exact_pass_that_moves_outputs_is_caught() -> None:
    with pytest.raises(PassError, match=r"pass 2 of 2, scale-weight failed: scale-weight is an exact pass, but output"):
        manager(Idle(), ScaleWeight(2.0)).run(net_program())
    assert manager(ScaleWeight(2.0), check=False).run(net_program()).report[0].drift == {}


def test_a_pass_that_breaks_the_program_is_caught() -> None:
    with pytest.raises(PassError, match="pass 1 of 1, corrupt failed: VerifyError: node relu has no value") as caught:
        manager(Corrupt(), verify="cheap").run(net_program())
    assert isinstance(caught.value.__cause__, VerifyError)
    unchecked = manager(Corrupt(), verify=None, check=False).run(net_program())
    with pytest.raises(VerifyError):
        unchecked.verify()


def test_full_verification_holds_a_pass_to_its_report() -> None:
    with pytest.raises(PassError, match="boast left the program as it was, but reports 1 nodes as applied"):
        manager(Boast()).run(net_program())
    with pytest.raises(PassError, match="scale-quietly changed the program, but reports 0 nodes as applied"):
        manager(ScaleQuietly()).run(net_program())
    assert not manager(Boast(), verify="cheap").run(net_program()).report[0].changed


def test_a_pass_must_declare_the_stage_it_leaves() -> None:
    with pytest.raises(PassError, match="left a quantized program, but declares float"):
        manager(QuantizeUndeclared()).run(net_program())


def test_a_pass_must_return_a_report() -> None:
    class Forgetful(Idle):
        name = "forgetful"
        __dataclass_params__ = Idle.__dataclass_params__  # type: ignore[attr-defined]

        def apply(self, program: Any, context: Any) -> Any:
            return None

    with pytest.raises(PassError, match=r"Forgetful\.apply returned a NoneType, not a Report"):
        manager(Forgetful()).run(net_program())


def test_a_broken_program_is_not_blamed_on_a_pass() -> None:
    program = net_program()
    del program.calls[0].meta["val"]
    with pytest.raises(VerifyError):
        manager(Idle()).run(program)


def test_mistakes_of_the_caller_are_no_failures_of_the_pass(tmp_path: Path) -> None:
    run = PassManager([NeedsData()], reproducers=tmp_path).run
    with pytest.raises(PipelineError, match="needs-data needs calibration"):
        run(net_program())
    with pytest.raises(SignatureError, match="dimension 1 is 4"):
        run(net_program(), calibration=[(torch.zeros(2, 4, 9, 11),)])
    assert list(tmp_path.iterdir()) == []


def test_generators_of_calibration_data_serve_several_passes() -> None:
    data = (torch.full((2, 3, 9, 11), float(number)) for number in range(3))
    result = manager(NeedsData(), NeedsData(), verify="cheap").run(net_program(), calibration=data)
    assert [report.metrics for report in result.report] == [{"batches": 3.0, "mean": 1.0}] * 2


def test_programs_that_cannot_run_on_random_inputs_go_unchecked(caplog: pytest.LogCaptureFixture) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1, 4)
            self.head = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(x))

    program = trace(Lookup(), (torch.zeros(8, dtype=torch.int64),))
    with caplog.at_level(logging.WARNING):
        assert manager(ScaleWeight(2.0)).run(program).report[0].changed
    assert "passes go unchecked" in caplog.text
    with pytest.raises(PassError, match="exact pass"):
        manager(ScaleWeight(2.0)).run(program, calibration=[torch.zeros(8, dtype=torch.int64)])


def test_an_empty_pipeline_gives_an_equal_program() -> None:
    program = net_program()
    result = PassManager("").run(program)
    assert result is not program
    assert result.structural_hash() == program.structural_hash()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="verify='loud'; it is 'cheap', 'full' or None"):
        PassManager("", verify="loud")  # type: ignore[arg-type]
    assert str(PassManager([Tuned(rank=1), Idle()])) == "tuned{rank=1}, idle"


def test_progress_tells_of_each_pass_and_of_what_it_does() -> None:
    events: list[tuple[str, int, int | None]] = []
    data = [torch.zeros(2, 3, 9, 11)] * 2
    manager(NeedsData(), Idle()).run(net_program(), calibration=data, progress=lambda *event: events.append(event))
    assert events == [
        ("needs-data", 0, 2),
        ("needs-data: calibration", 0, 2),
        ("needs-data: calibration", 1, 2),
        ("needs-data: calibration", 2, 2),
        ("needs-data", 1, 2),
        ("idle", 1, 2),
        ("idle", 2, 2),
    ]


def test_instruments_enclose_each_other() -> None:
    calls: list[str] = []

    class Witness(Instrument):
        def __init__(self, name: str) -> None:
            self.name = name

        def before_pipeline(self, program: Any, passes: Any, context: Any) -> None:
            calls.append(f"{self.name} starts")

        def before_pass(self, program: Any, step: Step) -> None:
            calls.append(f"{self.name} before {step.instance.name}")

        def after_pass(self, program: Any, step: Step, report: PassReport) -> None:
            calls.append(f"{self.name} after {report.name}")

        def after_pipeline(self, program: Any) -> None:
            calls.append(f"{self.name} ends")

        def on_failure(self, program: Any, step: Step, error: Exception) -> None:
            calls.append(f"{self.name} sees {error}")

    both = [Witness("outer"), Witness("inner")]
    manager(Idle(), instruments=both).run(net_program())
    assert calls == [
        "outer starts", "inner starts", "outer before idle", "inner before idle",
        "inner after idle", "outer after idle", "inner ends", "outer ends",
    ]  # fmt: skip
    calls.clear()
    with pytest.raises(PassError):
        manager(Fail("x"), instruments=both).run(net_program())
    assert calls[-2:] == ["inner sees x", "outer sees x"]
