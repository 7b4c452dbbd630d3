"""What a recipe is, and the text that names one: "ties/1", "ties/1:keep=100,scale=800".

Knows no method. Invariant: one choice has one text (keys ascend, defaults are left out), so a charter's bytes name the
arithmetic completely; what a version of a recipe computes never changes, another arithmetic is another version.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from contrib.errors import MergeRefused
from contrib.merging import Register
from protocol.ids import MemberId

Vector: TypeAlias = npt.NDArray[np.float32]  # [P]
Matrix: TypeAlias = npt.NDArray[np.float64]  # [rank, rank]

MAX_TEXT = 64  # as a charter's recipe
_TEXT = re.compile(r"([a-z][a-z0-9-]*/[1-9][0-9]*)(?::([a-z]+=[0-9]+(?:,[a-z]+=[0-9]+)*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What some recipes need beside registers; each names what it needs in `Recipe.needs`."""

    losses: Callable[[Vector], float] | None = None  # held-out loss of a merged vector, in nats
    grams: Mapping[MemberId, tuple[Matrix, ...]] | None = None  # h.T @ h of h = A x, by module in vector order
    shapes: tuple[tuple[int, int], ...] = ()  # (width out, rank) of the modules; goes with `grams`
    previous: tuple[Vector, ...] | None = None  # the same recipe's plain means at the cuts before, oldest first
    fishers: Mapping[MemberId, npt.NDArray[np.float32]] | None = None  # [P], diagonal, of every member that sent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sent:
    """The arguments of a merge, checked: who sent something, in ascending order of id, and everybody's weights."""

    members: tuple[MemberId, ...]  # m of them
    registers: tuple[Register, ...]  # [m] x [P]
    weights: tuple[int, ...]  # [m]
    everybody: Mapping[MemberId, int]  # weights of all n seats
    coordinates: int  # P
    extra: Extra

    @property
    def total(self) -> int:
        """W: the weight of all seats."""
        return sum(self.everybody.values())

    def only(self, chosen: list[int]) -> Sent:
        """The same merge of some of those that sent, by their places."""
        return Sent(
            members=tuple(self.members[i] for i in chosen),
            registers=tuple(self.registers[i] for i in chosen),
            weights=tuple(self.weights[i] for i in chosen),
            everybody=self.everybody,
            coordinates=self.coordinates,
            extra=self.extra,
        )

    def with_silent(self) -> Sent:
        """The same merge in which everybody sent every coordinate: what was not sent is a zero (no copies are made)."""
        registers = dict(zip(self.members, self.registers, strict=True))
        zeros = np.broadcast_to(np.int64(0), self.coordinates)
        ones = np.broadcast_to(np.int32(1), self.coordinates)
        members = tuple(sorted(self.everybody))
        return Sent(
            members=members,
            registers=tuple(
                Register(units=registers[m].units if m in registers else zeros, counts=ones) for m in members
            ),
            weights=tuple(self.everybody[m] for m in members),
            everybody=self.everybody,
            coordinates=self.coordinates,
            extra=self.extra,
        )


Merge: TypeAlias = Callable[[Sent, Mapping[str, int]], Vector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A named, versioned way to merge registers; `merge` is a pure function of what was sent and of the parameters."""

    name: str
    about: str  # one line for people
    paper: str
    absent: str  # what a coordinate means that a member did not send
    breakdown: str  # how many or which hostile members it withstands on sparse registers, and which not
    merge: Merge
    equal: str = "themselves"  # what registers that are all the same merge to
    parameters: Mapping[str, int] = field(default_factory=dict)  # defaults; shares are in permille
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # both ends belong to it
    needs: frozenset[str] = frozenset()  # of losses, grams, previous, fishers; none: fit for a charter
    exact: bool = True  # the same arguments give the same bytes on every machine
    tolerance: float = 0.0  # nats; see the recipes that are searched for by losses

    def __post_init__(self) -> None:
        """Close the mappings to writing."""
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))
        object.__setattr__(self, "bounds", MappingProxyType(dict(self.bounds)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A recipe with all its parameters."""

    recipe: Recipe
    parameters: Mapping[str, int]

    @property
    def text(self) -> str:
        """The one text of this choice."""
        own = {k: v for k, v in sorted(self.parameters.items()) if v != self.recipe.parameters[k]}
        return self.recipe.name + (":" + ",".join(f"{k}={v}" for k, v in own.items()) if own else "")


def _nearest(text: str, known: Mapping[str, Recipe]) -> str:
    near = difflib.get_close_matches(text[:MAX_TEXT], known, n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else ""


def parse(text: str, known: Mapping[str, Recipe]) -> Chosen:
    """Read a recipe's text.

    Raises:
        MergeRefused: an unknown recipe or parameter, a value out of its bounds, or not the one text of this choice.
    """
    match = _TEXT.fullmatch(text) if len(text) <= MAX_TEXT else None
    if match is None:
        raise MergeRefused(
            f"couldn't merge: {text[:80]!r} is not a recipe{_nearest(text, known)}; write name/version or "
            "name/version:key=1,other=2; `fishernet recipes` lists them"
        )
    recipe = known.get(match[1])
    if recipe is None:
        raise MergeRefused(
            f"couldn't merge: unknown recipe {match[1]!r}{_nearest(match[1], known)}; `fishernet recipes` lists them"
        )
    given = {key: int(value) for key, value in (one.split("=") for one in (match[2] or "").split(",") if one)}
    for key, value in given.items():
        if key not in recipe.parameters:
            has = ", ".join(recipe.parameters) or "none"
            raise MergeRefused(f"couldn't merge: {recipe.name} has no parameter {key!r} (it has {has})")
        low, high = recipe.bounds[key]
        if not low <= value <= high:
            raise MergeRefused(f"couldn't merge: {key} of {recipe.name} is {low} to {high}, not {value}")
    chosen = Chosen(recipe=recipe, parameters=MappingProxyType({**recipe.parameters, **given}))
    if chosen.text != text:
        raise MergeRefused(f"couldn't merge: recipe {text!r} is written {chosen.text!r}")
    return chosen
