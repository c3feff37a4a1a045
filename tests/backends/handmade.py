"""A small artifact made by hand: no reader, no passes and no lowering of shave take part."""

from __future__ import annotations

import io
import tempfile
from typing import Any

import numpy as np

from shave.backends.artifact import pack, read_artifact
from shave.backends.runtime import Artifact
from shave.backends.targets import resolve
from shave.backends.tvm.adapter import relax, tirx
from shave.ir.signature import Signature, TensorSpec

WIDTH, OUT = 64, 10


def module(dtype: str = "float32", *, negate: bool = False) -> Any:
    """``main(x, (w, b)) -> (relu(x @ w + b), x as matrices, x itself, b itself)`` with a dynamic batch.

    With ``negate``, the first result has the other sign.
    """
    batch = tirx.Var("batch", "int64")
    x = relax.Var("x", relax.TensorType((batch, WIDTH), dtype))
    weights = relax.Var(
        "weights", relax.TupleType([relax.TensorType((WIDTH, OUT), dtype), relax.TensorType((OUT,), dtype)])
    )
    builder = relax.BlockBuilder()
    with builder.function("main", [x, weights]):
        with builder.dataflow():
            w = builder.emit(relax.TupleGetItem(weights, 0))
            b = builder.emit(relax.TupleGetItem(weights, 1))
            y = builder.emit(relax.op.nn.relu(relax.op.add(relax.op.matmul(x, w), b)))
            if negate:
                y = builder.emit(relax.op.negative(y))
            matrices = builder.emit(relax.op.reshape(x, (batch, 8, 8)))
            results = builder.emit_output((y, matrices, x, b))
        builder.emit_func_output(results)
    return relax.transform.LegalizeOps()(builder.get())


def signature(dtype: str = "float32") -> Signature:
    """What :func:`module` takes and gives."""
    outputs = [("y", ("batch", OUT)), ("matrices", ("batch", 8, 8)), ("same", ("batch", WIDTH)), ("bias", (OUT,))]
    return Signature(
        (TensorSpec("x", ("batch", WIDTH), dtype),),
        tuple(TensorSpec(name, shape, dtype) for name, shape in outputs),
        {"batch": (1, None)},
    )


def weights(dtype: Any = "float32") -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Two weights, the second of a size that is no multiple of 64 bytes."""
    rng = np.random.default_rng(0)
    return [("w", rng.normal(size=(WIDTH, OUT)).astype(dtype)), ("b", rng.normal(size=OUT).astype(dtype))]


def artifact(library: bytes, dtype: Any = "float32", **options: Any) -> bytes:
    """The bytes of an artifact that holds a library built from :func:`module`."""
    stream = io.BytesIO()
    defaults = {
        "weights": weights(dtype),
        "signature": signature(np.dtype(dtype).name),
        "target": resolve("cpu"),
        "report": [{"name": "drop-identities", "text": "drop-identities"}],
        "figures": {"macs": WIDTH * OUT},
    }
    pack(stream, library=library, **{**defaults, **options})
    return stream.getvalue()


def run(library: bytes, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first output of a library built from :func:`module`."""
    with tempfile.TemporaryFile() as stream:
        stream.write(artifact(library))
        stream.flush()
        result: np.ndarray[Any, Any] = Artifact(read_artifact(stream))(x)[0]
    return result


def expected(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first output, in float64."""
    (_, w), (_, b) = weights()
    result: np.ndarray[Any, Any] = np.maximum(x.astype(np.float64) @ w.astype(np.float64) + b, 0)
    return result
