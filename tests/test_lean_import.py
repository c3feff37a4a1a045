"""Importing shave must be quick: the heavy packages are loaded by what needs them."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "tvm", "tvm_ffi", "onnx", "onnx_graphsurgeon", "onnxruntime", "networkx", "sympy")

LISTING = "from shave.passes import registry, presets; assert registry.names() and presets.PRESETS"
PARSING = "from shave.passes.pipeline import parse; assert parse('') == ()"
TARGETS = "import shave.backends.target"


@pytest.mark.parametrize(
    ("code", "limit"),
    [("import shave", 20), (LISTING, 120), (PARSING, 120), (TARGETS, 60)],
    ids=["shave", "registry", "pipeline", "target"],
)
def test_nothing_heavy_is_imported(code: str, limit: int) -> None:
    program = (
        f"import json, sys\nbefore = set(sys.modules)\n{code}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = json.loads(result.stdout)
    assert not set(HEAVY) & {name.partition(".")[0] for name in loaded}
    assert len(loaded) <= limit, loaded


def test_public_names_are_listed_without_being_loaded() -> None:
    code = (
        "import shave, sys; assert 'PassManager' in dir(shave) and shave.__version__; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_names_are_attribute_errors() -> None:
    import shave

    with pytest.raises(AttributeError, match="module 'shave' has no attribute 'comple'"):
        shave.comple  # noqa: B018
