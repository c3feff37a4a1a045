"""A digest of what a program is, so that *changed* is a fact and not a claim."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import fx
from torch.utils.weak import WeakIdKeyDictionary

from shave.ir.program import Program, attribute

_digests: Any = WeakIdKeyDictionary()
"""Tensor to ((version, address), digest): a weight is read once, however often programs that share it are hashed."""


def structural_hash(program: Program) -> str:
    """SHA-256 over signature, nodes in order, and the bytes of the weights; names of nodes and weights do not count."""
    state = hashlib.sha256(json.dumps(program.signature.to_json(), sort_keys=True).encode())
    _hash_graph(state, program.module)
    return state.hexdigest()


def weight_digest(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and elements of a tensor; remembered until the tensor is written to."""
    stamp = (None if tensor.is_inference() else tensor._version, tensor.data_ptr())
    known = _digests.get(tensor)
    if known is not None and known[0] == stamp:
        return str(known[1])
    elements = tensor.detach().cpu().contiguous().reshape(-1)
    state = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    state.update(elements.view(torch.uint8).numpy().data if elements.numel() else b"")
    digest = state.hexdigest()
    _digests[tensor] = (stamp, digest)
    return digest


def _hash_graph(state: Any, module: fx.GraphModule) -> None:
    index: dict[fx.Node, _Reference] = {}

    def reference(node: fx.Node) -> _Reference:
        # A weight counts where it is first read: in which order the module keeps its weights means nothing.
        if node not in index:
            index[node] = _Reference(len(index))
            if node.op == "get_attr":
                _hash_attribute(state, attribute(module, str(node.target)))
        return index[node]

    for node in module.graph.nodes:
        if node.op != "get_attr":
            target = "" if node.op in ("placeholder", "output") else str(node.target)
            arguments = fx.map_arg((node.args, node.kwargs), reference)  # type: ignore[arg-type]
            state.update(f"{reference(node)!r} {node.op} {target} {arguments!r}\n".encode())
    for node in module.graph.find_nodes(op="get_attr"):
        reference(node)


def _hash_attribute(state: Any, value: Any) -> None:
    if isinstance(value, fx.GraphModule):
        state.update(b"branch(")
        _hash_graph(state, value)
        state.update(b")")
    else:
        state.update(f"weight {weight_digest(value)}\n".encode())


class _Reference:
    """Stands for a node in the text that is hashed."""

    def __init__(self, position: int) -> None:
        self.position = position

    def __repr__(self) -> str:
        return f"%{self.position}"
