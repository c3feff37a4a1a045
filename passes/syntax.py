"""The grammar of pipeline text, without knowledge of any pass.

Pipeline
    Items, separated by commas; there may be none.
Item
    A name, then perhaps options.
Options
    Any number of ``name=value`` in braces, separated by white space or a comma. A name may be quoted.
Value
    A bare word, a string in double quotes as in JSON, options, or any number of values in brackets, separated likewise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from shave.ir.errors import PipelineError

T = TypeVar("T")

_TOKEN = re.compile(r'(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[^\s,=\[\]{}"]+)|(?P<mark>[,=\[\]{}])', re.DOTALL)
_SPACE = re.compile(r"\s*")
_DEPTH = 16


@dataclass(frozen=True)
class Word:
    """A bare word; what it means depends on the option's type."""

    text: str
    position: int


@dataclass(frozen=True)
class String:
    """A quoted text."""

    text: str
    position: int


@dataclass(frozen=True)
class Sequence:
    """Values in brackets."""

    values: tuple[Value, ...]
    position: int


@dataclass(frozen=True)
class Options:
    """Names and values in braces, in the order written."""

    values: tuple[tuple[Word, Value], ...]
    position: int


@dataclass(frozen=True)
class Item:
    """One pass (or preset) with its options."""

    name: Word
    options: Options


Value = Word | String | Sequence | Options


def parse_items(text: str) -> list[Item]:
    """Read a pipeline.

    Raises:
        PipelineError: Shows the text with a caret under the place at fault.
    """
    return _Parser(text).pipeline()


def parse_value(text: str) -> Value:
    """Read one value alone, as the command line takes it.

    Raises:
        PipelineError: Shows the text with a caret under the place at fault.
    """
    parser = _Parser(text)
    value = parser.value(0)
    if parser.kind is not None:
        fail(text, parser.position, "expected the end of the text")
    return value


def fail(text: str, position: int, problem: str, cause: Exception | None = None) -> NoReturn:
    """Raise an error that points at a position of a text.

    Raises:
        PipelineError: Always.
    """
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    line = text[start : len(text) if end < 0 else end]
    # Long pipelines are shown around the place at fault only.
    column = position - start
    cut = max(0, column - 60)
    shown = ("..." if cut else "") + line[cut : column + 60]
    caret = " " * (column - cut + (3 if cut else 0)) + "^"
    raise PipelineError(f"{problem}\n  {shown}\n  {caret}") from cause


class _Parser:
    """Recursive descent with one token of look-ahead: ``kind`` and ``lexeme`` are those of the next token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 0
        self.advance()

    def advance(self) -> None:
        space = _SPACE.match(self.text, self.end)
        assert space is not None
        self.position = space.end()
        self.kind: str | None = None
        self.lexeme = ""
        if self.position == len(self.text):
            return
        token = _TOKEN.match(self.text, self.position)
        if token is None:  # only a lone quotation mark fits none of the three
            fail(self.text, self.position, "this string is never closed")
        self.kind, self.lexeme, self.end = token.lastgroup, token.group(), token.end()

    def at(self, mark: str) -> bool:
        return self.kind == "mark" and self.lexeme == mark

    def expect(self, mark: str, instead: str) -> None:
        if not self.at(mark):
            fail(self.text, self.position, instead)
        self.advance()

    def word(self, what: str) -> Word:
        if self.kind != "word":
            fail(self.text, self.position, f"expected {what}")
        word = Word(self.lexeme, self.position)
        self.advance()
        return word

    def pipeline(self) -> list[Item]:
        items: list[Item] = []
        while self.kind is not None:
            if items:
                self.expect(",", "expected a comma before the next pass")
            items.append(self.item())
        return items

    def item(self) -> Item:
        name = self.word("the name of a pass")
        options = self.options(0) if self.at("{") else Options((), name.position)
        return Item(name, options)

    def options(self, depth: int) -> Options:
        position = self.position
        return Options(self.enclosed("{", "}", lambda: self.option(depth)), position)

    def option(self, depth: int) -> tuple[Word, Value]:
        name = self.name()
        self.expect("=", f"expected {name.text}=VALUE")
        return name, self.value(depth)

    def name(self) -> Word:
        """The name of an option is a word; keys of a mapping may be any string."""
        if self.kind != "string":
            return self.word("the name of an option")
        string = self.string()
        return Word(string.text, string.position)

    def string(self) -> String:
        position = self.position
        try:
            text = json.loads(self.lexeme, strict=False)
        except ValueError as error:
            fail(self.text, position, f"this string is not as in JSON: {error}", error)
        self.advance()
        return String(text, position)

    def value(self, depth: int) -> Value:
        if depth > _DEPTH:
            fail(self.text, self.position, f"values are nested more than {_DEPTH} deep")
        position = self.position
        if self.at("["):
            return Sequence(self.enclosed("[", "]", lambda: self.value(depth + 1)), position)
        if self.at("{"):
            return self.options(depth + 1)
        if self.kind == "string":
            return self.string()
        return self.word("a value")

    def enclosed(self, opening: str, closing: str, element: Callable[[], T]) -> tuple[T, ...]:
        start = self.position
        self.expect(opening, f"expected {opening}")
        elements: list[T] = []
        while not self.at(closing):
            if self.kind is None:
                fail(self.text, start, f"this {opening} is never closed")
            if elements and self.at(","):
                self.advance()
            elements.append(element())
        self.advance()
        return tuple(elements)
