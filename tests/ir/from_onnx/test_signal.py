"""Fourier transforms, windows and filter banks against NumPy in double precision and ONNX Runtime."""

import numpy as np
import pytest

from shave.ir.errors import ReadError
from shave.ir.from_onnx.export import export_onnx
from tests.ir.from_onnx.runtime import assert_like_runtime, export_and_run, one_node_model

RNG = np.random.default_rng(0)


def parts(spectrum: np.ndarray) -> np.ndarray:
    return np.stack([spectrum.real, spectrum.imag], -1)


def transform(x: np.ndarray, *, axis: int, length: int | None = None, opset: int = 20, **attributes) -> np.ndarray:
    constants = {"axis": np.array(axis)} | ({} if length is None else {"length": np.array(length)})
    order = ["x", "" if length is None else "length", "axis"]
    return export_and_run(one_node_model("DFT", {"x": x}, constants, order=order, opset=opset, **attributes), {"x": x})[
        0
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 12])
@pytest.mark.parametrize("length", [None, 5, 9])
@pytest.mark.parametrize("is_complex", [False, True])
def test_forward_and_inverse(size, length, is_complex):
    x = RNG.normal(size=(2, size, 3, 1 + is_complex)).astype(np.float32)
    signal = x[..., 0] + (1j * x[..., 1] if is_complex else 0)
    for inverse, reference in ((0, np.fft.fft), (1, np.fft.ifft)):
        expected = parts(reference(signal.astype(complex), n=length, axis=1))
        np.testing.assert_allclose(transform(x, axis=1, length=length, inverse=inverse), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("axis", [1, -2])
def test_half_spectrum_and_back(size, axis):
    x = RNG.normal(size=(2, 3, size, 1)).astype(np.float32)
    along = 2 if axis == -2 else 1
    half = transform(x, axis=axis, onesided=1)
    np.testing.assert_allclose(half, parts(np.fft.rfft(x[..., 0].astype(float), axis=along)), rtol=1e-5, atol=5e-6)
    back = transform(half, axis=axis, length=x.shape[along], inverse=1, onesided=1)
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=5e-6)


def test_axis_is_an_attribute_before_opset_20():
    x = RNG.normal(size=(2, 5, 4, 2)).astype(np.float32)
    model = one_node_model("DFT", {"x": x}, {}, order=["x"], opset=17, axis=2)
    (y,) = export_and_run(model, {"x": x})
    np.testing.assert_allclose(y, parts(np.fft.fft(x[..., 0] + 1j * x[..., 1], axis=2)), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("onesided", [0, 1])
def test_long_transforms_use_the_fast_one(onesided):
    x = RNG.normal(size=(1, 2000, 1)).astype(np.float32)
    y = transform(x, axis=1, onesided=onesided)
    expected = parts((np.fft.rfft if onesided else np.fft.fft)(x[..., 0].astype(float), axis=1))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)
    if onesided:
        np.testing.assert_allclose(transform(y, axis=1, inverse=1, onesided=1), x, rtol=1e-4, atol=1e-5)


def test_large_angles_lose_nothing():
    # exp(-2 pi i t f / n) for t f far beyond n: a naive angle in float32 would be off by a percent.
    x = np.zeros((1, 1021, 1), np.float32)
    x[0, 1019] = 1
    y = transform(x, axis=1)
    np.testing.assert_allclose(y, parts(np.fft.fft(x[..., 0].astype(float), axis=1)), atol=3e-7)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(("onesided", "is_complex"), [(0, False), (1, False), (0, True)])
def test_short_time_transform(windowed, onesided, is_complex):
    x = RNG.normal(size=(2, 37, 1 + is_complex)).astype(np.float32)
    window = np.hanning(9).astype(np.float32)
    constants = {"step": np.array(4), "window": window} if windowed else {"step": np.array(4), "length": np.array(9)}
    order = ["x", "step", "window"] if windowed else ["x", "step", "", "length"]
    model = one_node_model("STFT", {"x": x}, constants, order=order, onesided=onesided)
    (y,) = export_and_run(model, {"x": x})
    signal = x[..., 0] + (1j * x[..., 1] if is_complex else 0)
    frames = np.stack([signal[:, start : start + 9] for start in range(0, 37 - 9 + 1, 4)], 1)
    frames = frames * window if windowed else frames
    expected = parts(np.fft.fft(frames.astype(complex), axis=-1))[:, :, : 5 if onesided else 9]
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=5e-6)


def test_short_time_transform_is_one_real_convolution():
    x = RNG.normal(size=(1, 400, 1)).astype(np.float32)
    constants = {"step": np.array(160), "window": np.hanning(64).astype(np.float32)}
    model = one_node_model("STFT", {"x": x}, constants, order=["x", "step", "window"])
    graph = export_onnx(model).graph
    assert [str(node.target) for node in graph.nodes].count("aten.conv1d.default") == 1
    assert not any(node.meta["val"].is_complex() for node in graph.nodes if hasattr(node.meta.get("val"), "is_complex"))


@pytest.mark.parametrize("op_type", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(op_type, periodic):
    model = one_node_model(op_type, {}, {"size": np.array(11)}, order=["size"], periodic=periodic)
    assert_like_runtime(model, {}, rtol=1e-5, atol=1e-6)


def test_mel_filters():
    constants = {
        "bins": np.array(8), "length": np.array(64), "rate": np.array(8192),
        "low": np.array(20, np.float32), "high": np.array(4000, np.float32),
    }  # fmt: skip
    assert_like_runtime(one_node_model("MelWeightMatrix", {}, constants, order=list(constants)), {}, rtol=1e-6)


def test_size_from_the_data_is_refused():
    model = one_node_model("HannWindow", {"size": np.array(11)}, {}, order=["size"])
    with pytest.raises(ReadError, match=r"node 'the_node' \(HannWindow\)"):
        export_onnx(model)
