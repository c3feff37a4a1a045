import json
import subprocess
import sys
import zipfile

import pytest
import torch

import shave
from shave.ir.errors import ReadError, WriteError
from shave.ir.rewrite import PROVENANCE
from tests.modules import Attention, ConvNet, Named

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("module", "inputs", "dynamic"),
    [
        (ConvNet(), (torch.randn(2, 3, 7, 5),), {"x": {0: "batch"}}),
        (Attention(), (torch.randn(2, 6, 16),), {"x": {0: "batch", 1: "length"}}),
        (Named(), (torch.randn(3), torch.randn(3)), None),
    ],
    ids=["conv", "attention", "named"],
)
def test_round_trip(tmp_path, module, inputs, dynamic):
    program = shave.trace(module, inputs, dynamic_shapes=dynamic)
    program.save(tmp_path / "model.pt2")
    again = shave.read(tmp_path / "model.pt2")
    assert again.signature == program.signature
    assert again.structural_hash() == program.structural_hash()
    torch.testing.assert_close(again(*inputs), program(*inputs), rtol=0, atol=0)


def test_provenance_survives(tmp_path):
    program = shave.trace(ConvNet(), (torch.randn(2, 3, 7, 5),))
    relu = next(node for node in program.calls if node.target is aten.relu.default)
    with program.rewrite(by="some-pass") as rewriter:
        rewriter.replace(relu, rewriter.call(aten.silu.default, relu.args, before=relu, sources=[relu]))
    program.save(tmp_path / "model.pt2")
    again = shave.read(tmp_path / "model.pt2")
    silu = next(node for node in again.calls if node.target is aten.silu.default)
    assert silu.meta["custom"][PROVENANCE] == {"by": "some-pass", "from": ["relu"]}


def test_torch_reads_what_shave_writes_and_back(tmp_path):
    module, x = ConvNet().eval(), torch.randn(2, 3, 7, 5)
    shave.trace(module, (x,)).save(tmp_path / "ours.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "ours.pt2").module()(x)[0], module(x))
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "theirs.pt2")
    torch.testing.assert_close(shave.read(tmp_path / "theirs.pt2")(x), module(x))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 and then nothing"])
def test_a_file_that_is_no_archive(tmp_path, content):
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=r"model.pt2: not a .pt2 file"):
        shave.read(path)


def rewritten(source, target, change):
    """Copy an archive, with ``change(name, bytes)`` applied to its members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_pickled_weights_are_refused(tmp_path):
    shave.trace(ConvNet(), (torch.randn(2, 3, 7, 5),)).save(tmp_path / "good.pt2")

    def mark_pickled(name, data):
        if name.endswith("_weights_config.json"):
            config = json.loads(data)
            config["config"]["head.bias"]["use_pickle"] = True
            return json.dumps(config)
        return data

    rewritten(tmp_path / "good.pt2", tmp_path / "bad.pt2", mark_pickled)
    with pytest.raises(ReadError, match=r"weight head\.bias is not a plain tensor but pickled"):
        shave.read(tmp_path / "bad.pt2")


class Explodes:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_pickled_example_inputs_do_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shave.trace(ConvNet(), (torch.randn(2, 3, 7, 5),)).save("good.pt2")
    torch.save(((Explodes(),), {}), "bomb.pt")
    bomb = (tmp_path / "bomb.pt").read_bytes()
    rewritten("good.pt2", "bad.pt2", lambda name, data: bomb if "/sample_inputs/" in name else data)
    with pytest.raises(ReadError, match=r"bad.pt2: torch cannot load it"):
        shave.read("bad.pt2")
    assert not (tmp_path / "exploded").exists()


def test_an_existing_file_survives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"precious")
    program = shave.trace(ConvNet(), (torch.randn(2, 3, 7, 5),))

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full_disk)
    with pytest.raises(WriteError, match=r"cannot write .*model.pt2: No space left"):
        program.save(path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_names_the_problem(tmp_path):
    with pytest.raises(ReadError, match=r"none.onnx: no such file"):
        shave.read(tmp_path / "none.onnx")
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(ReadError, match=r"unknown suffix '.h5'; shave reads .onnx and .pt2"):
        shave.read(tmp_path / "model.h5")


class Quantized(torch.nn.Module):
    def forward(self, x):
        from torch.ao.quantization.fx import _decomposed  # noqa: F401

        codes = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.1, 3, 0, 255, torch.uint8)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(codes, 0.1, 3, 0, 255, torch.uint8)


def test_a_fresh_process_reads_quantized_programs(tmp_path):
    shave.trace(Quantized(), (torch.randn(3, 4),)).save(tmp_path / "model.pt2")
    script = "import sys, shave; print(len(shave.read(sys.argv[1]).calls))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.pt2")], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "2", done.stderr[-500:]
