"""Options of passes: from pipeline text to typed values and back.

Types that an option may have: bool, int, float, str, Literal, None, tuples, mappings from names, and unions of these.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from shave.passes import syntax
from shave.passes.base import Pass
from shave.passes.suggest import nearest

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf|nan")
_BARE = re.compile(r"[A-Za-z_/][\w./:*+?^$|()\\<>-]*", re.ASCII)
_KEYWORDS = ("true", "false", "none", "inf", "nan")


@dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        name: As written in pipelines.
        type: The annotation, resolved.
        default: Its default, or ``dataclasses.MISSING``.
        search: Values that a search may try; None if there is nothing to search.
        help: What it does.
    """

    name: str
    type: Any
    default: Any
    search: tuple[Any, ...] | None
    help: str

    @property
    def type_text(self) -> str:
        """The type as people read it: ``float``, ``l1|l2|fpgm``, ``[str ...]``."""
        return _type_text(self.type)


def options_of(kind: type[Pass]) -> dict[str, Option]:
    """The options of a pass by name, in the order declared; a field ``max_error`` is written ``max-error``."""
    hints = get_type_hints(kind)
    found = [
        Option(
            field.name.replace("_", "-"),
            hints[field.name],
            _default(field),
            field.metadata.get("search"),
            field.metadata.get("help", ""),
        )
        for field in fields(kind)
    ]
    return {option.name: option for option in found}


def build(kind: type[Pass], written: syntax.Options, text: str) -> Pass:
    """Make a pass from the options written in a pipeline.

    Raises:
        PipelineError: An option is unknown, missing, given twice, of the wrong type, or refused by the pass; points at
            its place in ``text``.
    """
    known = options_of(kind)
    values: dict[str, Any] = {}
    for word, value in written.values:
        if word.text not in known:
            hint = nearest(word.text, known) or f"; it takes {', '.join(known) or 'no options'}"
            syntax.fail(text, word.position, f"pass {kind.name} has no option {word.text!r}{hint}")
        if word.text in values:
            syntax.fail(text, word.position, f"option {word.text} is given twice")
        values[word.text] = convert(value, known[word.text].type, text, word.text)
    for name, option in known.items():
        if option.default is MISSING and name not in values:
            syntax.fail(text, written.position, f"pass {kind.name} needs the option {name}={option.type_text}")
    try:
        return kind(**{name.replace("-", "_"): value for name, value in values.items()})
    except ValueError as error:
        syntax.fail(text, written.position, f"pass {kind.name}: {error}", error)


def convert(value: syntax.Value, wanted: Any, text: str, name: str) -> Any:
    """Turn a written value into one of the wanted type.

    Raises:
        PipelineError: It is not of that type.
    """
    try:
        return _convert(value, wanted)
    except _Mismatch as mismatch:
        wrong = mismatch.value
        hint = nearest(wrong.text, _choices(mismatch.wanted)) if isinstance(wrong, syntax.Word) else ""
        syntax.fail(text, wrong.position, f"option {name} takes {_type_text(mismatch.wanted)}{hint}")


def written(value: Any) -> str:
    """Write a value so that it reads back as itself."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and value not in _KEYWORDS
        return value if bare else json.dumps(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{written(str(key))}={written(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"a value of type {type(value).__name__} cannot be written in a pipeline")


class _Mismatch(Exception):
    def __init__(self, value: syntax.Value, wanted: Any) -> None:
        self.value = value
        self.wanted = wanted


def _convert(value: syntax.Value, wanted: Any) -> Any:
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return _convert_union(value, wanted)
    if origin is tuple and isinstance(value, syntax.Sequence):
        kinds = get_args(wanted)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(value.values)
        if len(kinds) == len(value.values):
            return tuple(_convert(item, kind) for item, kind in zip(value.values, kinds, strict=True))
    elif _is_mapping(wanted) and isinstance(value, syntax.Options):
        return _convert_mapping(value, get_args(wanted)[1])
    elif isinstance(value, syntax.String):
        if wanted is str or (origin is Literal and value.text in get_args(wanted)):
            return value.text
    elif isinstance(value, syntax.Word):
        return _convert_word(value, wanted)
    raise _Mismatch(value, wanted)


def _convert_word(word: syntax.Word, wanted: Any) -> Any:
    text = word.text
    if wanted is str:
        return text
    if wanted is bool and text in ("true", "false"):
        return text == "true"
    if wanted is int and _INTEGER.fullmatch(text):
        return int(text)
    if wanted is float and _FLOAT.fullmatch(text):
        return float(text)
    if wanted in (None, type(None)) and text == "none":
        return None
    if get_origin(wanted) is Literal:
        for choice in get_args(wanted):
            if written(choice) == text or choice == text:
                return choice
    raise _Mismatch(word, wanted)


def _convert_union(value: syntax.Value, wanted: Any) -> Any:
    """Try the narrow types first, whatever the order of the union: ``5`` is an int for ``str | float | int``."""
    order = {type(None): 0, bool: 1, int: 2, float: 3, str: 5}
    for kind in sorted(get_args(wanted), key=lambda kind: order.get(kind, 4)):
        with suppress(_Mismatch):
            return _convert(value, kind)
    raise _Mismatch(value, wanted)


def _convert_mapping(value: syntax.Options, kind: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word, item in value.values:
        if word.text in found:
            raise _Mismatch(word, dict[str, kind])
        found[word.text] = _convert(item, kind)
    return found


def _is_mapping(wanted: Any) -> bool:
    origin = get_origin(wanted)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _choices(wanted: Any) -> list[str]:
    if get_origin(wanted) is Literal:
        return [str(choice) for choice in get_args(wanted)]
    if get_origin(wanted) in (Union, types.UnionType):
        return [choice for kind in get_args(wanted) for choice in _choices(kind)]
    return ["true", "false"] if wanted is bool else []


def _type_text(wanted: Any) -> str:
    origin = get_origin(wanted)
    if origin is Literal:
        return "|".join(written(choice) for choice in get_args(wanted))
    if origin in (Union, types.UnionType):
        return "|".join(_type_text(kind) for kind in get_args(wanted))
    if origin is tuple:
        kinds = get_args(wanted)
        inner = [_type_text(kind) for kind in kinds if kind is not Ellipsis]
        return f"[{', '.join(inner)}{', ...' if Ellipsis in kinds else ''}]"
    if _is_mapping(wanted):
        return "{" + f"NAME={_type_text(get_args(wanted)[1])} ..." + "}"
    return "none" if wanted is type(None) else str(wanted.__name__)


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
