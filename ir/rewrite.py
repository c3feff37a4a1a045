"""The one way to change a program's graph: every new node records who made it and from what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, cast

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensorMode

from shave.ir.program import Program, attribute
from shave.ir.signature import identifier

PROVENANCE = "shave"
"""Key in ``node.meta["custom"]`` under which a node's origin is kept (that mapping survives export and saving)."""


class Rewriter:
    """Changes one program's graph on behalf of one pass.

    Use it as a context: on leaving, nodes and weights that nothing reads any more are dropped and the module is
    recompiled. What nothing read before stays: that is the business of the pass ``dead-code``.

        with program.rewrite(by="fold-batchnorm") as rewriter:
            folded = rewriter.call(aten.conv2d.default, args, before=node, sources=[conv, node])
            rewriter.replace(node, folded)

    New nodes get their FakeTensor by running the operator on the FakeTensors of the arguments, so a call that does not
    fit raises torch's own error at once.
    """

    def __init__(self, program: Program, by: str) -> None:
        self.program = program
        self.by = by
        self._fake = fake_mode(program)
        self._unread = {node for node in program.graph.nodes if not node.users}
        self._renamed: dict[fx.Node, str] = {}

    def __enter__(self) -> Rewriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.sweep(but=self._unread)
            self._take_free_names()
            self.program.module.recompile()

    def call(
        self,
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        before: fx.Node,
        sources: Sequence[fx.Node],
    ) -> fx.Node:
        """Insert an operator call ahead of ``before``.

        Args:
            target: An ATen overload, an operator of ``shave::``, or ``operator.getitem``.
            args: Positional arguments; nodes stand for values.
            kwargs: Keyword arguments.
            before: Where to insert.
            sources: The nodes that the new one stands for; their module, ONNX names and stack go over to it.
        """
        graph = self.program.graph
        with graph.inserting_before(before):
            node = graph.call_function(target, tuple(args), dict(kwargs or {}))
        try:
            node.meta = self._meta(sources)
            node.meta["val"] = infer(node, self._fake)
        except Exception:
            graph.erase_node(node)
            raise
        return node

    def weight(self, name: str, tensor: torch.Tensor, *, sources: Sequence[fx.Node] = ()) -> fx.Node:
        """Add a weight. Returns its ``get_attr`` node, placed behind the other weights.

        A name that is taken gets a number, until the weight that bears it is swept away.
        """
        module, graph = self.program.module, self.program.graph
        parts = [part if part.isdigit() else identifier(part) for part in name.split(".")]
        wanted = next((given for node, given in self._renamed.items() if node.target == name), ".".join(parts))
        target = _free_target(module, wanted)
        _set(module, target, tensor)
        first = next((node for node in graph.nodes if node.op == "call_function"), graph.output_node())
        with graph.inserting_before(first):
            node = graph.create_node("get_attr", target, name=identifier(target))
        node.meta = self._meta(sources)
        node.meta["val"] = self._fake.from_tensor(tensor.detach(), static_shapes=True)
        if target != wanted:
            self._renamed[node] = wanted
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every reader of ``old`` (outputs included) read ``new``; ``old`` goes once nothing reads it."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new, propagate_meta=False)
        self._refresh_output()

    def set_argument(self, node: fx.Node, position: int, value: Any) -> None:
        """Change one positional argument of a call and infer the call's value anew.

        Arguments ahead of it that are not given yet get their defaults.
        """
        args = list(node.args)
        parameters = node.target._schema.arguments if len(args) <= position else ()  # type: ignore[union-attr]
        args += [parameter.default_value for parameter in parameters[len(args) : position + 1]]
        args[position] = value
        node.args = tuple(args)
        node.meta["val"] = infer(node, self._fake)
        node.meta["custom"] = {**node.meta.get("custom", {}), PROVENANCE: {"by": self.by, "from": [node.name]}}

    def set_weight(self, reader: fx.Node, node: fx.Node, tensor: torch.Tensor) -> fx.Node:
        """Give ``reader`` another tensor in place of the weight ``node``.

        Other readers of a shared weight keep theirs: this is the only place where a weight is cloned for writing.
        """
        fresh = self.weight(str(node.target), as_trainable(tensor, self.program.weight(node)), sources=[node])
        reader.replace_input_with(node, fresh)
        return fresh

    def infer_all(self) -> None:
        """Infer every call's value anew, in order: for changes of shape that go through the whole graph."""
        for node in self.program.calls:
            node.meta["val"] = infer(node, self._fake)
        self._refresh_output()

    def erase(self, node: fx.Node) -> None:
        """Drop a node that nothing reads.

        Raises:
            RuntimeError: Something still reads it.
        """
        self.program.graph.erase_node(node)

    def sweep(self, but: Collection[fx.Node] = ()) -> list[fx.Node]:
        """Drop calls and weights that nothing reads; inputs stay, and so does ``but``. Returns what went."""
        dropped = []
        for node in reversed(list(self.program.graph.nodes)):
            idle = node.op in ("call_function", "get_attr") and not node.users
            if idle and node not in but and not is_impure(node):
                dropped.append(node)
                self.program.graph.erase_node(node)
        self._sweep_attributes()
        return dropped

    def _meta(self, sources: Sequence[fx.Node]) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        for key in ("nn_module_stack", "stack_trace"):
            values = [source.meta[key] for source in sources if source.meta.get(key)]
            if values:
                meta[key] = values[-1]
        custom: dict[str, Any] = {}
        for source in sources:
            custom.update(source.meta.get("custom", {}))
        custom[PROVENANCE] = {"by": self.by, "from": [source.name for source in sources]}
        meta["custom"] = custom
        return meta

    def _refresh_output(self) -> None:
        output = self.program.graph.output_node()
        output.meta["val"] = tuple(node.meta["val"] for node in self.program.outputs)

    def _take_free_names(self) -> None:
        """Let weights that replaced others have their names."""
        module, present = self.program.module, set(self.program.graph.nodes)
        for node, wanted in self._renamed.items():
            if node in present and not _is_taken(module, wanted):
                tensor = self.program.weight(node)
                _delete(module, str(node.target))
                _set(module, wanted, tensor)
                node.target = wanted

    def _sweep_attributes(self) -> None:
        module = self.program.module
        used = {node.target for node in self.program.graph.find_nodes(op="get_attr")}
        for name, _ in [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]:
            parts = name.split(".")
            if used.isdisjoint(".".join(parts[:end]) for end in range(1, len(parts) + 1)):
                _delete(module, name)
        module.delete_all_unused_submodules()


def as_trainable(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Make a new weight trainable if the one it stems from is."""
    return torch.nn.Parameter(tensor, like.requires_grad) if isinstance(like, torch.nn.Parameter) else tensor


def is_impure(node: fx.Node) -> bool:
    """Whether a call does something besides giving its value (asserts on data, state)."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    return bool(schema.is_mutable) or not schema.returns


def fake_mode(program: Program) -> FakeTensorMode:
    """The mode that made the FakeTensors of this program."""
    values = [node.meta["val"] for node in program.graph.nodes if "val" in node.meta]
    mode = detect_fake_mode(values)
    if mode is None:
        mode = FakeTensorMode()
    return mode


def infer(node: fx.Node, mode: FakeTensorMode) -> Any:
    """Compute a call's FakeTensor (or tuple of them, or symbolic size) from those of its arguments.

    Questions about dynamic sizes are answered by the traced example without a guard, so that asking fixes none.
    Operators run by their Python implementations, as while tracing: that of padding in C++ makes numbers of dynamic
    sizes.
    """
    owner = node.graph.owning_module

    def value(argument: fx.Node) -> Any:
        if "val" in argument.meta:
            return argument.meta["val"]
        return attribute(cast(torch.nn.Module, owner), str(argument.target))

    args = fx.map_arg(node.args, value)
    kwargs = fx.map_arg(node.kwargs, value)
    assert callable(node.target)
    guards = mode.shape_env.suppress_guards() if mode.shape_env is not None else nullcontext()
    with mode, guards, enable_python_dispatcher(), torch.no_grad():
        return node.target(*cast("tuple[Any, ...]", args), **cast("dict[str, Any]", kwargs))


def _free_target(module: torch.nn.Module, target: str) -> str:
    base, count = target, 1
    while _is_taken(module, target):
        target, count = f"{base}_{count}", count + 1
    return target


def _is_taken(module: torch.nn.Module, target: str) -> bool:
    """Whether the name is that of something, or would make a tensor the parent of another."""
    *path, leaf = target.split(".")
    for part in path:
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
        if not isinstance(module, torch.nn.Module):
            return True
    return hasattr(module, leaf)


def _delete(module: torch.nn.Module, target: str) -> None:
    parent, _, leaf = target.rpartition(".")
    delattr(module.get_submodule(parent), leaf)


def _set(module: torch.nn.Module, target: str, tensor: torch.Tensor) -> None:
    *path, leaf = target.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)
