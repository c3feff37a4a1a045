"""Pipelines as text: ``fold-batchnorm, prune-channels{ratio=0.5 layers=[a, b] budget={macs=0.5}}``.

Text and objects say the same: ``parse(to_text(passes)) == passes``. The grammar is in :mod:`shave.passes.syntax`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from shave.passes import registry, syntax
from shave.passes.base import Pass
from shave.passes.options import build, options_of, written
from shave.passes.presets import PRESETS
from shave.passes.suggest import nearest


def parse(text: str, extra: Iterable[type[Pass]] = ()) -> tuple[Pass, ...]:
    """Turn text into passes.

    Args:
        text: Passes and presets with their options, separated by commas; may be empty.
        extra: Passes to know besides those in the registry.

    Raises:
        PipelineError: Points at the place at fault, and offers the nearest names of passes and options.
    """
    own = {kind.name: kind for kind in extra}
    passes: list[Pass] = []
    for item in syntax.parse_items(text):
        name = item.name.text
        if name in PRESETS:
            if item.options.values:
                syntax.fail(text, item.options.position, f"{name} is a preset, which takes no options")
            passes += parse(PRESETS[name])
        elif name in own or name in registry.names():
            passes.append(build(own.get(name) or registry.load(name), item.options, text))
        else:
            hint = nearest(name, [*registry.names(), *PRESETS, *own]) or "; `shave passes` lists all"
            syntax.fail(text, item.name.position, f"there is no pass or preset {name!r}{hint}")
    return tuple(passes)


def to_text(passes: Iterable[Pass]) -> str:
    """Write passes as text; options that have their default values are left out."""
    return ", ".join(map(_pass_text, passes))


def as_passes(pipeline: str | Pass | Iterable[str | Pass]) -> tuple[Pass, ...]:
    """Take a pipeline in any form: text, a pass, or a list of both.

    Raises:
        PipelineError: Some text is wrong.
        TypeError: Something is neither text nor a pass, or a pass's class lacks ``@dataclass(frozen=True)``.
    """
    if isinstance(pipeline, str):
        return parse(pipeline)
    if isinstance(pipeline, Pass):
        # Without the decorator a subclass inherits the options of its parent, and silently none of its own.
        if "__dataclass_params__" not in vars(type(pipeline)):
            raise TypeError(f"class {type(pipeline).__name__} lacks the decorator @dataclass(frozen=True)")
        return (pipeline,)
    if isinstance(pipeline, Iterable):
        return tuple(instance for part in pipeline for instance in as_passes(part))
    raise TypeError(f"a pipeline is text or passes, not a {type(pipeline).__name__}")


def _pass_text(instance: Pass) -> str:
    options = options_of(type(instance)).values()
    values = [(option, getattr(instance, field.name)) for option, field in zip(options, fields(instance), strict=True)]
    text = " ".join(f"{option.name}={written(value)}" for option, value in values if not _same(value, option.default))
    return f"{instance.name}{{{text}}}" if text else instance.name


def _same(value: object, default: object) -> bool:
    return type(value) is type(default) and value == default
