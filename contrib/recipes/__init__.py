"""Recipes: how the registers of a cut become one vector. Named, versioned, pure; each names its paper.

    recipe.py       what a recipe is, and its text       exact.py     sums, dot products, the one quotient
    means.py        weighted means and their divisors    tasks.py     task arithmetic, TIES, DARE, DELLA
    coordinates.py  median, trimmed mean                 distances.py Krum, geometric median, centred clipping, soup by likeness
    guarded.py      for sparse registers under attack    informed.py  Fisher, RegMean, outer momentum (need more than registers)
    searched.py     greedy soup, LoraHub (need losses)   senders.py   how many members sent each coordinate

Knows no torch, ledger or network. Laws of every recipe (tests/contrib/test_recipes.py): the order of members does not
matter, a member that sent nothing is as one that is not there, the same arguments give the same value, and equal
registers merge to what they all hold, or to the image that the recipe states. FORMAT.md section 11 is normative.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from contrib import merging
from contrib.errors import MergeRefused
from contrib.merging import Register
from contrib.recipes import coordinates as _coordinates
from contrib.recipes import distances, guarded, informed, means, recipe, searched, tasks
from contrib.recipes.recipe import Chosen, Extra, Recipe, Sent, Vector
from contrib.recipes.senders import Senders, sender_counts, senders
from protocol.ids import MemberId

__all__ = [
    "RECIPES", "Chosen", "Extra", "Recipe", "Senders", "fits_charters", "for_charter", "in_charters", "merge", "parse",
    "sender_counts", "senders",
]  # fmt: skip

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        one.name: one
        for family in (means, guarded, _coordinates, distances, tasks, informed, searched)
        for one in family.RECIPES
    }
)


def parse(text: str) -> Chosen:
    """Read "name/version" or "name/version:key=int,key=int", at most 64 characters, keys ascending, no default spelt out.

    Raises:
        MergeRefused: an unknown recipe or parameter, a value out of bounds, or another spelling of the same choice.
    """
    return recipe.parse(text, RECIPES)


def for_charter(text: object) -> Chosen:
    """Read a recipe that every member can compute from feeds and blobs alone.

    Raises:
        MergeRefused: as `parse`, or a recipe that needs more than registers.
    """
    if not isinstance(text, str):
        raise MergeRefused("couldn't merge: a recipe is a text")
    chosen = parse(text)
    if chosen.recipe.needs:
        needs = ", ".join(sorted(chosen.recipe.needs))
        raise MergeRefused(
            f"couldn't merge: {chosen.recipe.name} needs {needs}, which no feed holds; choose another recipe"
        )
    return chosen


def fits_charters(text: object) -> bool:
    """Whether `for_charter` reads it."""
    try:
        for_charter(text)
    except MergeRefused:
        return False
    return True


def in_charters() -> tuple[str, ...]:
    """The recipes that a charter may name."""
    return tuple(name for name, one in RECIPES.items() if not one.needs)


def merge(
    text: str,
    registers: Mapping[MemberId, Register],
    weights: Mapping[MemberId, int],
    members: int,
    coordinates: int,
    *,
    extra: Extra | None = None,
) -> Vector:
    """Return the merged adapter vector, float32 [P], of the registers of a cut.

    Args:
        text: the recipe; the charter chooses it.
        registers: by member; one that is missing or empty has sent nothing.
        weights: of every member with a seat, from the charter, never from a sender.
        members: how many seats there are; `weights` must name as many.
        coordinates: P of the epoch.
        extra: what the recipe needs beside them.

    Raises:
        MergeRefused: an unknown recipe, weights that do not fit, another P, values over the bounds, or a need not given.
    """
    chosen = parse(text)
    extra = extra or Extra()
    for need in sorted(chosen.recipe.needs):
        if getattr(extra, need) is None:
            raise MergeRefused(f"couldn't merge: {chosen.recipe.name} needs {need}")
    merging.check(registers, weights, members, coordinates)
    spoke = tuple(m for m in sorted(registers) if registers[m].counts.any())
    sent = Sent(
        members=spoke,
        registers=tuple(registers[m] for m in spoke),
        weights=tuple(weights[m] for m in spoke),
        everybody=weights,
        coordinates=coordinates,
        extra=extra,
    )
    return chosen.recipe.merge(sent, chosen.parameters)
