"""The algebra of axes against brute force: every position is followed by its number."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.ir.axes.terms import (
    Term,
    align,
    atoms,
    concatenation,
    fix,
    mark,
    positions,
    product,
    split,
    unify,
    why_fixed,
)


def labels(term: Term) -> list[frozenset[tuple[int, int]]]:
    """What stands at each position of an axis, as (atom, unit) pairs; fixed positions hold nothing."""
    found = [set() for _ in range(term.size)]
    for atom, index in positions(term).items():
        for unit, places in enumerate(index):
            for place in places:
                found[place].add((id(atom), unit))
    return [frozenset(each) for each in found]


def test_a_product_runs_fastest_over_its_last_factor():
    outer, inner = Term(2), Term(3)
    found = positions(product([outer, inner]))
    np.testing.assert_array_equal(found[outer], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found[inner], [[0, 3], [1, 4], [2, 5]])


def test_a_concatenation_of_a_term_with_itself_holds_each_unit_twice():
    term = Term(3)
    np.testing.assert_array_equal(positions(concatenation([term, term]))[term], [[0, 3], [1, 4], [2, 5]])


def test_unification_takes_an_atom_apart_as_the_other_side_is():
    heads, dims, fused = Term(4), Term(8), Term(32)
    unify(fused, product([heads, dims]), "here")
    assert set(positions(fused)) == {heads.root, dims.root}


def test_a_reshape_refines_both_sides():
    left, right = [Term(6), Term(4)], [Term(2), Term(12)]
    align(left, right, "here")
    assert [atom.size for atom in atoms(left[0])] == [2, 3]
    assert labels(product(left)) == labels(product(right))


def test_factors_that_do_not_fit_are_fixed_and_those_around_them_stay():
    left, right = [Term(5), Term(4), Term(6), Term(7)], [Term(5), Term(6), Term(4), Term(7)]
    align(left, right, "a reshape")
    assert [bool(why_fixed(term)) for term in left] == [False, True, True, False]
    assert "a reshape mixes it" in why_fixed(left[1])


def test_channel_shuffle_and_halves():
    """What ShuffleNet does: [2, c] becomes [c, 2], and the halves go apart."""
    channels = Term(12)
    groups, each = Term(2), Term(6)
    align([channels], [groups, each], "view")
    shuffled = Term(12)
    align([each, groups], [shuffled], "reshape")
    one, other = split(shuffled, [6])
    assert labels(one) + labels(other) == [labels(channels)[i] for i in (0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11)]


def test_a_cut_within_an_odd_product_loses_only_the_unit_that_it_goes_through():
    outer, inner = Term(5), Term(2)
    axis = product([outer, inner])
    one, other = split(axis, [5])
    assert [atom.size for atom in atoms(outer)] == [2, 2]
    assert labels(one) + labels(other) == labels(axis)


def test_concatenations_with_other_boundaries_are_refined():
    a, b, c, d = Term(3), Term(5), Term(4), Term(4)
    left, right = concatenation([a, b]), concatenation([c, d])
    unify(left, right, "here")
    assert labels(left) == labels(right)
    assert sorted(atom.size for atom in atoms(left)) == [1, 3, 4] or [atom.size for atom in atoms(left)] == [3, 4]


def test_what_is_fixed_stays_fixed_whatever_it_meets():
    fixed = Term(8)
    fix(fixed, "it is an input")
    heads, dims = Term(2), Term(4)
    unify(product([heads, dims]), fixed, "here")
    assert why_fixed(heads) == why_fixed(dims) == "it is an input"


def test_sizes_that_differ_are_a_contradiction():
    one, other = Term(3), Term(4)
    unify(one, other, "aten.add (add)")
    assert why_fixed(one) == why_fixed(other) == "aten.add (add) gives it another size"


def test_kinds_go_to_all_parts():
    whole = Term(12)
    mark(whole, frozenset({"heads"}))
    one, other = split(whole, [4])
    assert one.kinds == other.kinds == {"heads"}


@st.composite
def factorings(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two ways to write one number as a product."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), min_size=2, max_size=6))

    def grouped() -> list[int]:
        sizes = [1]
        for prime in primes:
            if draw(st.booleans()):
                sizes.append(1)
            sizes[-1] *= prime
        return sizes

    return grouped(), grouped()


@settings(deadline=None)
@given(factorings())
def test_reshapes_of_one_product_agree_position_by_position(sizes):
    """The boundaries of both come from one row of primes, so that nothing needs to be fixed."""
    left, right = ([Term(size) for size in side] for side in sizes)
    align(left, right, "reshape")
    assert labels(product(left)) == labels(product(right))
    assert not any(why_fixed(term) for term in (*left, *right) if term.size > 1)


@settings(deadline=None)
@given(st.lists(st.integers(2, 5), min_size=1, max_size=3), st.data())
def test_pieces_lie_where_the_whole_had_them(sizes, data):
    axis = product([Term(size) for size in sizes])
    offsets = data.draw(st.lists(st.integers(1, axis.size - 1), unique=True, max_size=4).map(sorted))
    pieces = split(axis, offsets)
    assert [piece.size for piece in pieces] == list(np.diff([0, *offsets, axis.size]))
    assert list(chain.from_iterable(map(labels, pieces))) == labels(axis)


@settings(deadline=None)
@given(st.data())
def test_unified_axes_hold_the_same_everywhere(data):
    size = data.draw(st.sampled_from([8, 12, 18, 24]))

    def draw_axis() -> Term:
        axis = Term(size)
        for _ in range(data.draw(st.integers(0, 2))):
            if data.draw(st.booleans()):
                split(axis, [data.draw(st.integers(1, size - 1))])
            else:
                factor = data.draw(st.sampled_from([n for n in range(2, size) if size % n == 0]))
                unify(axis, product([Term(factor), Term(size // factor)]), "view")
        return axis

    one, other = draw_axis(), draw_axis()
    unify(one, other, "add")
    assert labels(one) == labels(other)


@pytest.mark.parametrize("repeat", [1, 2])
def test_unification_is_idempotent(repeat):
    one, other = Term(6), product([Term(2), Term(3)])
    for _ in range(repeat):
        unify(one, other, "here")
    assert len(list(atoms(one))) == 2
