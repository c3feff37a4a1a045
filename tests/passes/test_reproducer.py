import json
from pathlib import Path

import pytest
import torch

from shave.ir.errors import PassError, PipelineError, ReadError
from shave.ir.reader import read
from shave.passes.manager import PassManager
from shave.passes.reproducer import FOLDER_VARIABLE, replay
from tests.passes.examples import Fail, NeedsData, ReluToClamp, net_program


def failing_run(tmp_path: Path, count: int = 3) -> Path:
    data = [(torch.full((2, 3, 9, 11), float(number)),) for number in range(count)]
    manager = PassManager([ReluToClamp(), NeedsData(fail=True)], reproducers=tmp_path)
    with pytest.raises(PassError, match="RuntimeError: the mean is") as caught:
        manager.run(net_program(), calibration=data, seed=11, evaluate=lambda program: 1.0)
    folder = caught.value.reproducer
    assert folder is not None
    assert str(caught.value).endswith(f"Replay it by: shave replay {folder}")
    return folder


def test_a_failure_can_be_replayed(tmp_path: Path) -> None:
    folder = failing_run(tmp_path)
    assert folder == tmp_path / "shave-reproducer-needs-data-1"
    with pytest.raises(
        PassError, match=r"pass 1 of 1, needs-data\{fail=true\} failed: RuntimeError: the mean is 1.000000"
    ):
        replay(folder, passes=[NeedsData])
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "a replay writes no reproducer"


def test_it_holds_the_program_from_before_the_failing_pass(tmp_path: Path) -> None:
    folder = failing_run(tmp_path)
    before = PassManager(ReluToClamp()).run(net_program())
    assert read(folder / "program.pt2").structural_hash() == before.structural_hash()
    manifest = json.loads((folder / "reproducer.json").read_text())
    assert manifest["pipeline"] == "needs-data{fail=true}"
    assert (manifest["seed"], manifest["verify"], manifest["not_saved"]) == (11, "cheap", ["evaluate"])
    assert manifest["error"] == "RuntimeError: the mean is 1.000000"
    assert "in apply" in manifest["traceback"]
    assert manifest["versions"]["torch"] == torch.__version__


def test_a_pass_that_was_mended_replays_to_the_end(tmp_path: Path) -> None:
    folder = failing_run(tmp_path)
    manifest = json.loads((folder / "reproducer.json").read_text())
    (folder / "reproducer.json").write_text(json.dumps({**manifest, "pipeline": "needs-data"}))
    assert replay(folder, passes=[NeedsData]).report[-1].metrics == {"batches": 3.0, "mean": 1.0}


def test_of_the_data_the_first_batches_are_kept(tmp_path: Path) -> None:
    folder = failing_run(tmp_path, count=20)
    with pytest.raises(PassError, match=r"the mean is 3\.500000"):
        replay(folder, passes=[NeedsData])


def test_none_is_overwritten(tmp_path: Path) -> None:
    first, second = failing_run(tmp_path), failing_run(tmp_path)
    assert (first.name, second.name) == ("shave-reproducer-needs-data-1", "shave-reproducer-needs-data-2")


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "new"))
    with pytest.raises(PassError):
        PassManager(Fail()).run(net_program())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["shave-reproducer-fail-1"]
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PassError):
        PassManager(Fail()).run(net_program())
    assert (tmp_path / "shave-reproducer-fail-1").is_dir()


def test_a_folder_that_cannot_be_made_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PassError, match="boom\nNo reproducer could be written: ") as caught:
        PassManager(Fail("boom"), reproducers=tmp_path / "file").run(net_program())
    assert caught.value.reproducer is None
    assert str(caught.value.__cause__) == "boom"


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shave.ir.program.Program.save", full_disk)
    with pytest.raises(PassError, match="No space left on device"):
        PassManager(Fail(), reproducers=tmp_path).run(net_program())
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_is_not_registered_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="there is no pass or preset 'needs-data'"):
        replay(failing_run(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the manifest of a reproducer"),
        ("[]", "it lacks one of format, pipeline, seed"),
        ('{"format": 1, "pipeline": 3, "seed": 0}', "it lacks one of"),
        ('{"format": 99, "pipeline": "", "seed": 0}', "has format 99, but this shave reads 1"),
        ('{"format": 1, "pipeline": "", "seed": 0, "verify": "loud"}', "verify is 'loud'"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "reproducer.json").write_text(text)
    with pytest.raises(ReadError, match=message):
        replay(tmp_path)


def test_what_is_no_reproducer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"reproducer\.json: not the manifest"):
        replay(tmp_path / "missing")


@pytest.mark.parametrize("damage", [b"junk", b""])
def test_damaged_calibration_data_is_refused(tmp_path: Path, damage: bytes) -> None:
    folder = failing_run(tmp_path)
    (folder / "calibration.safetensors").write_bytes(damage)
    with pytest.raises(ReadError, match="not the calibration data of a reproducer"):
        replay(folder, passes=[NeedsData])
