"""Fourier transforms, windows and the mel filter bank.

A transform of static length is a product with the matrix of its sines and cosines, in real arithmetic: every backend
has fast products, few have complex numbers. The short-time transform is one strided convolution, with the window in
the kernel. Long transforms, whose matrix would not fit in a cache or even in memory, go through ``torch.fft``.
"""

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_int, as_number

_LONGEST_MATRIX = 1024


@onnx_op("DFT", since=17)
def dft_17(node: OnnxNode, x: Tensor, length: Value | None = None) -> Tensor:
    """Discrete Fourier transform along the axis that is an attribute."""
    return _dft(node, x, length, node.attr("axis", 1))


@onnx_op("DFT", since=20)
def dft_20(node: OnnxNode, x: Tensor, length: Value | None = None, axis: Value | None = None) -> Tensor:
    """Discrete Fourier transform along the axis that is an input."""
    return _dft(node, x, length, -2 if axis is None else _static(as_int(axis), "axis"))


@onnx_op("STFT", since=17)
def stft(
    node: OnnxNode, signal: Tensor, frame_step: Value, window: Tensor | None = None, frame_length: Value | None = None
) -> Tensor:
    """Short-time Fourier transform of (batch, time, 1 or 2) into (batch, frames, frequencies, 2)."""
    if frame_length is not None:
        length = _static(as_int(frame_length), "frame length")
    else:
        length = _static(signal.shape[1] if window is None else window.shape[0], "frame length")
    frequencies = length // 2 + 1 if node.attr("onesided", 1) else length
    parts = signal.shape[2]
    # (parts, time, frequency, real or imaginary) -> kernels (frequency x 2, parts, time)
    kernels = torch.from_numpy(_dft_matrix(length, frequencies, -1.0)[:parts]).to(signal.dtype)
    kernels = kernels.permute(2, 3, 0, 1).reshape(2 * frequencies, parts, length)
    if window is not None:
        kernels = kernels * window.to(signal.dtype)
    spectrum = F.conv1d(signal.transpose(1, 2), kernels, stride=_static(as_int(frame_step), "frame step"))
    return spectrum.reshape(-1, frequencies, 2, spectrum.shape[2]).permute(0, 3, 1, 2)


@onnx_op("HannWindow", "HammingWindow", "BlackmanWindow", since=17)
def window(node: OnnxNode, size: Value) -> Value:
    """A window of a known size as a sum of cosines; periodic unless the node says otherwise."""
    coefficients = {"HannWindow": (0.5, 0.5), "HammingWindow": (25 / 46, 21 / 46), "BlackmanWindow": (0.42, 0.5, 0.08)}
    count = _static(as_int(size), "size")
    period = count if node.attr("periodic", 1) else count - 1
    phase = 2 * np.pi * np.arange(count) / max(period, 1)
    values = sum((-1) ** k * a * np.cos(k * phase) for k, a in enumerate(coefficients[node.op_type]))
    return np.asarray(values).astype(_output_dtype(node))


@onnx_op("MelWeightMatrix", since=17)
def mel_weight_matrix(
    node: OnnxNode, num_mel_bins: Value, dft_length: Value, sample_rate: Value, lower_edge: Value, upper_edge: Value
) -> Value:
    """Triangular filters, evenly spaced in mel, as a matrix (spectrum bins, mel bins)."""
    bins, length, rate = (_static(as_int(v), "size") for v in (num_mel_bins, dft_length, sample_rate))
    low, high = (2595 * np.log10(1 + as_number(edge) / 700) for edge in (lower_edge, upper_edge))
    # The step is that of the operator's definition: the upper edge itself is not reached.
    mel = low + np.arange(bins + 2) * (high - low) / (bins + 2)
    edges = ((length + 1) * 700 * (10 ** (mel / 2595) - 1) // rate).astype(np.int64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    row = np.arange(length // 2 + 1)[:, None]
    rising = np.where(centre > left, (row - left) / np.maximum(centre - left, 1), 1.0)
    falling = (right - row) / np.maximum(right - centre, 1)
    matrix = np.where((row >= left) & (row <= centre), rising, 0.0)
    matrix = np.where((row >= centre) & (row < right), falling, matrix)
    return matrix.astype(_output_dtype(node))


def _dft(node: OnnxNode, x: Tensor, length: Value | None, axis: int) -> Tensor:
    axis %= x.ndim
    inverse, onesided = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    present = x.shape[axis]
    to_real = inverse and onesided
    if length is None:
        points = _static(2 * (present - 1) if to_real else present, "length")
    else:
        points = _static(as_int(length), "length")
    if points > _LONGEST_MATRIX:
        return _fft(x, points, axis, inverse, onesided)
    frequencies = points // 2 + 1 if onesided else points
    if to_real:
        matrix = _inverse_real_matrix(points, frequencies)
    elif inverse:
        matrix = _dft_matrix(points, points, 1.0) / points
    else:
        matrix = _dft_matrix(points, frequencies, -1.0)
    # A signal that is longer than the transform is cut, one that is shorter counts as followed by zeros.
    used = min(_static(present, "length"), matrix.shape[1])
    parts = x.shape[-1]
    signal = x.narrow(axis, 0, used).movedim(axis, -2).flatten(-2)
    weights = torch.from_numpy(matrix[:parts, :used].transpose(1, 0, 2, 3).reshape(used * parts, -1)).to(x.dtype)
    spectrum: Tensor = torch.matmul(signal, weights).reshape(*signal.shape[:-1], *matrix.shape[2:])
    return spectrum.movedim(-2, axis)


def _dft_matrix(points: int, frequencies: int, sign: float) -> np.ndarray:
    """exp(sign * 2 pi i t f / points) as (real or imaginary in, time, frequency, real or imaginary out)."""
    # The product is taken modulo the period in integers, so that large angles lose nothing.
    angle = sign * 2 * np.pi * (np.outer(np.arange(points), np.arange(frequencies)) % points) / points
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)])


def _inverse_real_matrix(points: int, frequencies: int) -> np.ndarray:
    """The inverse transform of half a spectrum into a real signal, as (real or imaginary in, frequency, time, 1)."""
    # Every frequency but the first, and the last of an even length, stands for its mirror image as well.
    count = np.full((frequencies, 1), 2.0)
    count[0] = 1.0
    if points % 2 == 0:
        count[-1] = 1.0
    inverse = _dft_matrix(points, frequencies, 1.0)[:, :, :, :1].transpose(0, 2, 1, 3)
    return np.asarray(inverse * (count / points)[None, :, :, None])


def _fft(x: Tensor, points: int, axis: int, inverse: bool, onesided: bool) -> Tensor:
    signal = torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(signal, points, axis)
        return real.unsqueeze(-1)
    spectrum = torch.fft.ifft(signal, points, axis) if inverse else torch.fft.fft(signal, points, axis)
    if onesided:
        spectrum = spectrum.narrow(axis, 0, points // 2 + 1)
    return torch.view_as_real(spectrum)


def _static(size: "int | torch.SymInt", what: str) -> int:
    if not isinstance(size, int):
        raise ValueError(f"the {what} is a dynamic dimension ({size}); give the model's input a fixed size there")
    return size


def _output_dtype(node: OnnxNode) -> np.dtype:
    return onnx.helper.tensor_dtype_to_np_dtype(node.attr("output_datatype", onnx.TensorProto.FLOAT))
