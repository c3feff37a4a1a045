"""Decides whether two programs compute the same, and whether surgery on a program is what it claims to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shave.ir.dtypes import torch_dtype
from shave.ir.program import Program
from shave.passes.compare import compare, outputs_of


def assert_equivalent(
    original: Program, rewritten: Program, inputs: Sequence[torch.Tensor], *, rtol: float = 1e-5, atol: float = 0.0
) -> None:
    """Run both and compare each output as a whole.

    Args:
        original: The reference.
        rewritten: What is judged.
        inputs: By position, for both.
        rtol: Largest difference, relative to the largest magnitude in that output.
        atol: Largest absolute difference; either bound is enough.

    Raises:
        AssertionError: An output has another name or dtype, or differs by more than the bounds; or the reference has no
            finite number in some output, so that to equal it proves nothing.
        CompareError: The number or the shapes of the outputs differ.
    """
    names = [spec.name for spec in original.signature.outputs]
    assert [spec.name for spec in rewritten.signature.outputs] == names
    wants, gots = outputs_of(original(*inputs)), outputs_of(rewritten(*inputs))
    found = compare(lambda *_: wants, lambda *_: gots, [inputs], names)
    for name, want, got in zip(names, wants, gots, strict=True):
        assert want.dtype == got.dtype, f"output {name!r} went from {want.dtype} to {got.dtype}"
        assert not want.numel() or want.isfinite().any(), f"output {name!r} of the reference has no finite element"
        fits = found[name].max_abs <= atol or found[name].max_rel <= rtol
        assert fits, f"output {name!r} moved: {found[name]}"


def masked(program: Program, zeroed: Mapping[str, Any]) -> Program:
    """Copy a program with parts of some weights set to zero, for all readers of them.

    Args:
        program: Stays as it is.
        zeroed: By name of a weight, an index of what to set to zero: ``(slice(None), [0, 3])`` for the input channels 0
            and 3 of a convolution.

    Raises:
        KeyError: No weight has that name.
        ValueError: An index selects nothing.
    """
    copy = program.clone()
    nodes = {str(node.target): node for node in copy.graph.find_nodes(op="get_attr")}
    with copy.rewrite(by="oracle") as rewriter:
        for name, index in zeroed.items():
            tensor = copy.weight(nodes[name]).detach().clone()
            if tensor[index].numel() == 0:
                raise ValueError(f"the index {index} selects nothing of {name}")
            tensor[index] = 0
            rewriter.replace(nodes[name], rewriter.weight(name, tensor, sources=[nodes[name]]))
    return copy


def masked_equivalence(
    original: Program,
    cut: Program,
    zeroed: Mapping[str, Any],
    inputs: Sequence[torch.Tensor],
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
) -> None:
    """Prove the removal of channels: zero what they feed, run the original, compare with the cut program.

    Nothing that the removed channels compute then reaches an output, so both must give the same; and it tells right
    from wrong channels, as their weights differ.

    Raises:
        AssertionError: They differ, see :func:`assert_equivalent`.
    """
    assert_equivalent(masked(original, zeroed), cut, inputs, rtol=rtol, atol=atol)


def random_inputs(program: Program, seed: int, size: int = 3) -> tuple[torch.Tensor, ...]:
    """Draw inputs whose dynamic dimensions are all ``size``: normal floats, small integers (0 or 1)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for spec in program.signature.inputs:
        assert all(isinstance(dim, int) or dim in program.signature.dims for dim in spec.shape), spec
        shape = [dim if isinstance(dim, int) else size for dim in spec.shape]
        dtype = torch_dtype(spec.dtype)
        if dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            inputs.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return tuple(inputs)
