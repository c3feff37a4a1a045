"""Hints for names that were mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Give ``; did you mean 'a' or 'b'?``, or nothing if no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=count)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
