"""The op table: what is known of each operator, as data.

An operator without a row runs, exports and compiles like any other; a pass that needs a fact of it refuses it by name
and never guesses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

import torch
from torch import fx

from shave.ir import macs
from shave.ir.errors import UnsupportedError


class Trait(Flag):
    """Facts that passes ask for."""

    NONE = 0
    ELEMENTWISE = auto()
    """Each output element depends on the elements at the same (broadcast) position alone."""
    REDUCTION = auto()
    """Output elements sum up, or compare, many input elements."""
    MOVEMENT = auto()
    """Moves or repeats elements, computes nothing."""
    NORMALISATION = auto()
    """Divides by a statistic of its input (LayerNorm, softmax ...)."""
    OPAQUE = auto()
    """Never folded, merged or looked through: quantize, dequantize and lookup say how a value is stored."""
    RANDOM = auto()
    """Two calls with equal arguments differ."""
    SIZE = auto()
    """Computes sizes, not tensors."""


@dataclass(frozen=True)
class Op:
    """One row.

    Attributes:
        name: ``namespace.operator`` without the overload.
        traits: What it is.
        macs: Multiply-accumulates of one call; None where it does none worth counting.
    """

    name: str
    traits: Trait
    macs: Callable[[fx.Node, macs.ShapeOf], int] | None = None


_ELEMENTWISE = """
abs acos acosh add addcdiv addcmul alias asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not
bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min clone contiguous copysign cos cosh
deg2rad detach div dropout elu eq erf erfc erfinv exp exp2 expm1 feature_dropout floor floor_divide fmod frac ge gelu
gt hardshrink hardsigmoid hardswish hardtanh hypot isfinite isinf isnan le leaky_relu lerp lgamma log log10 log1p log2
log_sigmoid logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul nan_to_num ne
neg positive pow prelu rad2deg reciprocal relu relu6 remainder round rsqrt rsub selu sigmoid sign signbit silu sin
sinc sinh softplus softshrink sqrt square sub tan tanh threshold to _to_copy trunc where xlogy
"""

_MOVEMENT = """
as_strided broadcast_to cat channel_shuffle chunk constant_pad_nd diagonal expand expand_as flatten flip gather index
index_put index_select lift_fresh_copy movedim narrow numpy_T pad permute pixel_shuffle pixel_unshuffle repeat
repeat_interleave reshape reshape_as roll rot90 scatter select select_scatter slice slice_scatter split
split_with_sizes squeeze stack swapaxes t tile transpose tril triu unbind unflatten unfold unsqueeze view view_as
replication_pad1d replication_pad2d replication_pad3d reflection_pad1d reflection_pad2d reflection_pad3d embedding
"""

_REDUCTION = """
all amax amin any argmax argmin avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d count_nonzero cumprod cumsum linalg_vector_norm logsumexp max max_pool1d max_pool2d max_pool3d
max_pool2d_with_indices max_pool3d_with_indices mean median min norm prod scatter_add scatter_reduce sort std std_mean
sum topk upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d var var_mean grid_sampler grid_sampler_2d
"""

_NORMALISATION = """
_log_softmax _softmax batch_norm group_norm instance_norm layer_norm log_softmax native_group_norm
native_layer_norm rms_norm softmax cosine_similarity
"""

_CREATION = """
arange empty empty_like full full_like new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like eye
linspace
"""

_RANDOM = "bernoulli multinomial normal normal_functional rand rand_like randint randint_like randn randn_like randperm"

_SIZES = "sym_size sym_numel sym_stride sym_storage_offset"


def _rows() -> dict[str, Op]:
    rows: dict[str, Op] = {}

    def add(
        names: str, traits: Trait, count: Callable[[fx.Node, macs.ShapeOf], int] | None = None, namespace: str = "aten"
    ) -> None:
        for name in names.split():
            rows[f"{namespace}.{name}"] = Op(f"{namespace}.{name}", traits, count)

    add(_ELEMENTWISE, Trait.ELEMENTWISE)
    add(_MOVEMENT, Trait.MOVEMENT)
    add(_REDUCTION, Trait.REDUCTION)
    add(_NORMALISATION, Trait.NORMALISATION | Trait.REDUCTION)
    add(_CREATION, Trait.MOVEMENT)
    add(_RANDOM, Trait.RANDOM)
    add(_SIZES, Trait.SIZE)
    add("conv1d conv2d conv3d convolution", Trait.REDUCTION, macs.convolution)
    add("conv_transpose1d conv_transpose2d conv_transpose3d", Trait.REDUCTION, macs.transposed_convolution)
    add("winograd_conv2d", Trait.REDUCTION, macs.winograd_convolution, namespace="shave")
    add("linear", Trait.REDUCTION, macs.linear)
    add("matmul mm bmm mv dot", Trait.REDUCTION, macs.matmul)
    add("addmm baddbmm", Trait.REDUCTION, macs.addmm)
    add("bilinear", Trait.REDUCTION, macs.bilinear)
    add("einsum", Trait.REDUCTION, macs.einsum)
    add("scaled_dot_product_attention", Trait.REDUCTION | Trait.NORMALISATION, macs.attention)
    add("lstm gru rnn_tanh rnn_relu", Trait.REDUCTION, macs.recurrent)
    add(
        "quantize_per_tensor dequantize_per_tensor quantize_per_channel dequantize_per_channel "
        "quantize_per_token dequantize_per_token quantize_per_channel_group dequantize_per_channel_group "
        "choose_qparams choose_qparams_per_token choose_qparams_per_token_asymmetric choose_qparams_symmetric",
        Trait.OPAQUE,
        namespace="quantized_decomposed",
    )
    add("lookup", Trait.OPAQUE, namespace="shave")
    return rows


OPS: dict[str, Op] = _rows()
"""Every row, by name."""


def op_name(node: fx.Node) -> str:
    """``namespace.operator`` of a call (``aten.conv2d``); the Python name for the few calls that are not operators."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name).replace("::", ".")
    return getattr(node.target, "__name__", str(node.target))


def row(node: fx.Node) -> Op:
    """The row of a call's operator.

    Raises:
        UnsupportedError: The table has none.
    """
    found = OPS.get(op_name(node))
    if found is None:
        raise UnsupportedError(f"operator {op_name(node)} (node {node.name}) has no row in the op table")
    return found


def has_trait(node: fx.Node, trait: Trait) -> bool:
    """Whether the call's operator is known to have the trait; False for operators without a row."""
    found = OPS.get(op_name(node)) if node.op == "call_function" else None
    return found is not None and trait in found.traits


def is_random(node: fx.Node) -> bool:
    """Whether two calls with equal arguments may differ."""
    return has_trait(node, Trait.RANDOM) or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an operator call by its name in the schema, whether given by position, keyword or default.

    Raises:
        KeyError: The operator has no argument of that name.
    """
    schema = node.target._schema  # type: ignore[union-attr]
    for position, parameter in enumerate(schema.arguments):
        if parameter.name == name:
            if name in node.kwargs:
                return node.kwargs[name]
            if position < len(node.args) and not parameter.kwarg_only:
                return node.args[position]
            return parameter.default_value
    raise KeyError(f"{op_name(node)} has no argument {name!r}")
