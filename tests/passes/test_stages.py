import pytest

from shave.ir.errors import PipelineError
from shave.passes.manager import PassManager
from shave.passes.stages import Stage, check_stages, is_beyond, stage_of
from tests.passes.examples import FloatOnly, Idle, Quantize8, net_program


def test_the_stage_is_read_off_the_operators() -> None:
    program = net_program()
    assert stage_of(program) is Stage.FLOAT
    assert stage_of(PassManager(Quantize8()).run(program)) is Stage.QUANTIZED


def test_stages_go_from_pass_to_pass() -> None:
    stages = check_stages([FloatOnly(), Quantize8(), Idle()], Stage.FLOAT)
    assert stages == [Stage.FLOAT, Stage.FLOAT, Stage.QUANTIZED, Stage.QUANTIZED]


def test_a_pass_out_of_place_is_named_with_the_cause() -> None:
    with pytest.raises(
        PipelineError, match="pass 3, float-only, takes a float program, but after quantize8 it is quantized"
    ):
        check_stages([Idle(), Quantize8(), FloatOnly()], Stage.FLOAT)
    with pytest.raises(PipelineError, match="but after the program given it is lowered"):
        check_stages([FloatOnly()], Stage.LOWERED)


def test_the_pipeline_is_checked_before_anything_runs() -> None:
    program = net_program()
    with pytest.raises(PipelineError, match="put float-only earlier"):
        PassManager([Quantize8(), FloatOnly()]).run(program)
    assert program.report == ()


def test_order_and_words() -> None:
    assert is_beyond(Stage.QUANTIZED, Stage.FLOAT)
    assert not is_beyond(Stage.FLOAT, Stage.FLOAT)
    assert str(Stage.ANY) == "float or quantized or lowered"
