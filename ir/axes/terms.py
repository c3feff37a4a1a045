"""The algebra of axes: an axis is a product or a concatenation of sets of channels.

An axis of size 192 that is later read as ``[3, 4, 16]`` is the row-major product of three sets; one that comes from
``cat`` is a concatenation of sets. A set that nothing has taken apart is an *atom*. Operators make terms equal; making
them equal is unification, in which atoms are bound to terms (union-find) or taken apart where the other side has more
structure. Sets are handled as wholes and never position by position, so the time does not depend on how many channels
an axis has.

A *fixed* term cannot lose positions; it says why. Its structure no longer matters, so it is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import pairwise, takewhile

import numpy as np
from numpy.typing import NDArray


class Form(Enum):
    """How a term is made of others."""

    ATOM = "atom"
    PRODUCT = "product"
    """Of its parts, the last running fastest; each has at least two positions."""
    CONCATENATION = "concatenation"


class Term:
    """A set of positions; see the module.

    Attributes:
        size: Number of positions (for dynamic sizes: in the traced example).
        form: Whether it is taken apart.
        parts: What it is made of.
        fixed: Why no position may go; empty if they may.
        kinds: What the set is known to be (``heads``).
    """

    __slots__ = ("fixed", "form", "kinds", "parent", "parts", "size")

    def __init__(self, size: int, form: Form = Form.ATOM, parts: Sequence[Term] = ()) -> None:
        self.size = size
        self.form = form
        self.parts = tuple(parts)
        self.fixed = ""
        self.kinds: frozenset[str] = frozenset()
        self.parent: Term | None = None

    @property
    def root(self) -> Term:
        """The term that this one was made equal to."""
        top = self
        while top.parent is not None:
            top = top.parent
        term = self
        while term.parent is not None:
            term.parent, term = top, term.parent
        return top

    def __repr__(self) -> str:
        term = self.root
        if term.form is Form.ATOM:
            return f"{term.size}{'!' if term.fixed else ''}"
        return f"({(' x ' if term.form is Form.PRODUCT else ' + ').join(map(repr, term.parts))})"


def product(factors: Iterable[Term]) -> Term:
    """Row-major product; factors of one position drop out."""
    parts = [part for factor in factors if factor.size != 1 for part in _opened(factor, Form.PRODUCT)]
    if len(parts) == 1:
        return parts[0]
    return Term(math.prod(part.size for part in parts), Form.PRODUCT if parts else Form.ATOM, parts)


def concatenation(terms: Iterable[Term]) -> Term:
    """One after the other; empty ones drop out."""
    parts = [part for term in terms if term.size for part in _opened(term, Form.CONCATENATION)]
    if len(parts) == 1:
        return parts[0]
    return Term(sum(part.size for part in parts), Form.CONCATENATION if parts else Form.ATOM, parts)


def _opened(term: Term, form: Form) -> tuple[Term, ...]:
    """Its parts, if it is of the form; else itself."""
    term = term.root
    return term.parts if term.form is form and not term.fixed else (term,)


_SINGLE = "there is only one"


def why_fixed(term: Term) -> str:
    """Why no position of it may go; empty if some may. A lone position never may."""
    term = term.root
    if term.size <= 1:
        return _SINGLE
    if term.form is not Form.ATOM and not term.fixed:
        reasons = list(takewhile(bool, map(why_fixed, term.parts)))
        if len(reasons) == len(term.parts):
            term.fixed = next((reason for reason in reasons if reason != _SINGLE), "it is taken apart one by one")
    return term.fixed


def fix(term: Term, reason: str) -> None:
    """Let no position of it go."""
    term = term.root
    if term.fixed:
        return
    term.fixed = reason
    for part in term.parts:
        fix(part, reason)


def mark(term: Term, kinds: frozenset[str]) -> None:
    """Note what all atoms of a term are known to be."""
    term = term.root
    if not kinds <= term.kinds:
        term.kinds |= kinds
        for part in term.parts:
            mark(part, kinds)


def split(term: Term, offsets: Sequence[int]) -> list[Term]:
    """Take a term apart at ascending offsets strictly inside of it. Returns one term more than there are offsets."""
    term = term.root
    if not offsets:
        return [term]
    bounds = [0, *offsets, term.size]
    if term.fixed:
        pieces = [Term(end - start) for start, end in pairwise(bounds)]
        for piece in pieces:
            fix(piece, term.fixed)
        return pieces
    if term.form is Form.ATOM:
        term.form = Form.CONCATENATION
        term.parts = tuple(Term(end - start) for start, end in pairwise(bounds))
        kinds, term.kinds = term.kinds, frozenset()
        mark(term, kinds)
        return list(term.parts)
    if term.form is Form.PRODUCT:
        return _split_product(term, offsets)
    return _split_concatenation(term, offsets)


def _split_concatenation(term: Term, offsets: Sequence[int]) -> list[Term]:
    pieces: list[list[Term]] = [[] for _ in range(len(offsets) + 1)]
    start = 0
    for part in term.parts:
        inside = [offset - start for offset in offsets if start < offset < start + part.size]
        first = sum(offset <= start for offset in offsets)
        for number, piece in enumerate(split(part, inside)):
            pieces[first + number].append(piece)
        start += part.size
    return [concatenation(piece) for piece in pieces]


def _split_product(term: Term, offsets: Sequence[int]) -> list[Term]:
    """Split the outermost factor; where an offset lies within one of its positions, split the others there."""
    first, *others = term.parts
    inner = product(others)
    cuts = sorted({cut for offset in offsets for cut in (offset // inner.size, -(-offset // inner.size))} - {0})
    if cuts and cuts[-1] == first.size:
        cuts.pop()
    laid: list[Term] = []
    start = 0
    for outer in split(first, cuts):
        block = product([outer, inner])
        inside = [offset - start for offset in offsets if start < offset < start + block.size]
        laid.extend(split(block, inside) if inside else [block])
        start += block.size
    return _split_concatenation(Term(term.size, Form.CONCATENATION, laid), offsets)


def unify(left: Term, right: Term, here: str) -> None:
    """Make two terms equal; what cannot be is fixed, with the operator at fault as the reason.

    Args:
        left: One term.
        right: Another of equal size.
        here: The operator and node that ask for it.
    """
    left, right = left.root, right.root
    if left is right or (left.size <= 1 and right.size <= 1):
        return
    if left.size != right.size:
        _fix_all([left, right], f"{here} gives it another size")
    elif (reason := why_fixed(left)) or (reason := why_fixed(right)):
        _fix_all([left, right], reason)
    elif left.form is Form.ATOM:
        _bind(left, right)
    elif right.form is Form.ATOM:
        _bind(right, left)
    elif left.form is right.form is Form.PRODUCT:
        align(left.parts, right.parts, here)
        _bind(left, right)
    else:
        _unify_pieces(left, right, here)


def align(left: Iterable[Term], right: Iterable[Term], here: str) -> None:
    """Make two row-major products equal, given by their factors: what a reshape does.

    Where a boundary between factors on one side has no counterpart among the multiples on the other, the factors from
    there on are fixed.
    """
    before, after = [[term.root for term in side if term.size != 1] for side in (left, right)]
    _align_from(before, after, here, outer=True)
    if before or after:
        _align_from(before, after, here, outer=False)
    _fix_all([*before, *after], f"{here} mixes it with other axes")


def _align_from(left: list[Term], right: list[Term], here: str, *, outer: bool) -> None:
    """Match factors from the outer or inner end as far as they go, and take those off the lists."""
    end = 0 if outer else -1

    def put(factors: list[Term], terms: Sequence[Term]) -> None:
        factors[:] = [*terms, *factors] if outer else [*factors, *terms]

    while left and right:
        for side in (left, right):
            while (head := side[end].root).form is Form.PRODUCT and not head.fixed:
                side.pop(end)
                put(side, head.parts)
        one, other = left[end].root, right[end].root
        if one.size == other.size:
            left.pop(end)
            right.pop(end)
            unify(one, other, here)
            continue
        large, small = (left, right) if one.size > other.size else (right, left)
        whole, part = large[end].root, small[end].root
        if part.size == 0 or whole.size % part.size:
            return
        matching, rest = Term(part.size), Term(whole.size // part.size)
        unify(whole, product([matching, rest] if outer else [rest, matching]), here)
        large.pop(end)
        put(large, [matching, rest] if outer else [rest, matching])


def _unify_pieces(left: Term, right: Term, here: str) -> None:
    """Make a concatenation and any other term equal, piece by piece."""
    if left.form is not Form.CONCATENATION:
        left, right = right, left
    offsets = sorted(_boundaries(left) | (_boundaries(right) if right.form is Form.CONCATENATION else set()))
    for one, other in zip(split(left, offsets), split(right, offsets), strict=True):
        unify(one, other, here)
    left, right = left.root, right.root
    if left is not right:
        _bind(left, right)


def _boundaries(term: Term) -> set[int]:
    ends, end = set(), 0
    for part in term.parts[:-1]:
        end += part.size
        ends.add(end)
    return ends


def _bind(term: Term, to: Term) -> None:
    term, to = term.root, to.root
    if term is to:
        return
    term.parent = to
    mark(to, term.kinds)
    if term.fixed:
        fix(to, term.fixed)


def _fix_all(terms: Iterable[Term], reason: str) -> None:
    for term in terms:
        fix(term, reason)


def atoms(term: Term) -> Iterator[Term]:
    """The atoms of a term that are not fixed, from first to last; one that occurs twice comes twice."""
    term = term.root
    if why_fixed(term):
        return
    if term.form is Form.ATOM:
        yield term
    for part in term.parts:
        yield from atoms(part)


def positions(term: Term) -> dict[Term, NDArray[np.int64]]:
    """Where the units of each atom that is not fixed lie along the axis.

    Returns:
        For each atom, an array [units, width].
    """
    term = term.root
    if why_fixed(term):
        return {}
    if term.form is Form.ATOM:
        return {term: np.arange(term.size, dtype=np.int64)[:, None]}
    found: dict[Term, list[NDArray[np.int64]]] = {}
    outer, start = 1, 0
    for part in term.parts:
        inner = term.size // (outer * part.size) if term.form is Form.PRODUCT else 1
        for atom, index in positions(part).items():
            if term.form is Form.PRODUCT:
                high = np.arange(outer, dtype=np.int64)[None, :, None, None] * (part.size * inner)
                low = np.arange(inner, dtype=np.int64)[None, None, None, :]
                index = (high + index[:, None, :, None] * inner + low).reshape(len(index), -1)
            else:
                index = index + start
            found.setdefault(atom, []).append(index)
        outer, start = outer * part.size, start + part.size
    return {atom: np.concatenate(arrays, axis=1) for atom, arrays in found.items()}
