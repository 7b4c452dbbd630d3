"""Registers: what a set of contributions adds up to, what recipes may be given, and the digests of both ends.

Knows no torch, keys or ledger: numpy on integers. Invariants: adding and removing are exact in any order, so a register
is a function of the set of updates in it. How registers become one vector is `contrib.recipes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contrib.errors import MergeRefused
from protocol.ids import Digest, MemberId
from protocol.sparse import SparseUpdate

MAX_UNITS = 2**62  # a register's coordinate; one update adds less than 2^47, so int64 never wraps before the check
MAX_WEIGHT = 2**20
MAX_WEIGHTS = 2**30  # all members together: `total * sent` stays an exact int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Register:
    """What one member has contributed in an epoch; the arrays are read-only."""

    units: npt.NDArray[np.int64]  # [P], sum of the values sent, in 2^-24
    counts: npt.NDArray[np.int32]  # [P], how many of the updates sent each coordinate

    def __post_init__(self) -> None:
        """Close the arrays to writing."""
        self.units.setflags(write=False)
        self.counts.setflags(write=False)


def empty(coordinates: int) -> Register:
    """The register of a member that has sent nothing."""
    return Register(units=np.zeros(coordinates, dtype=np.int64), counts=np.zeros(coordinates, dtype=np.int32))


def add(register: Register, update: SparseUpdate) -> Register:
    """Return `register` with `update` in it. Law: `remove(add(r, u), u)` has the bytes of r.

    Raises:
        MergeRefused: another number of coordinates, or a sum over the limit.
    """
    return _shifted(register, [update], 1)


def remove(register: Register, update: SparseUpdate) -> Register:
    """Return `register` as if `update` had never been added.

    Raises:
        MergeRefused: another number of coordinates, or an update that cannot have been in it.
    """
    return _shifted(register, [update], -1)


def registers_of(updates: Iterable[SparseUpdate], coordinates: int) -> Register:
    """The register of a set of updates: `add` for each of them, without a copy for each.

    Raises:
        MergeRefused: as `add`.
    """
    return _shifted(empty(coordinates), updates, 1)


def shift(register: Register, fresh: Iterable[SparseUpdate], gone: Iterable[SparseUpdate]) -> Register:
    """`add` each of `fresh` and `remove` each of `gone`, with one copy for each direction.

    Raises:
        MergeRefused: as they do.
    """
    added = _shifted(register, fresh, 1)
    taken = list(gone)
    return _shifted(added, taken, -1) if taken else added


def _shifted(register: Register, updates: Iterable[SparseUpdate], sign: int) -> Register:
    units, counts = register.units.copy(), register.counts.copy()
    for update in updates:
        if update.coordinates != len(units):
            raise MergeRefused(f"couldn't merge update: {update.coordinates} coordinates, the epoch has {len(units)}")
        at = update.indices
        sums = units[at] + sign * update.units
        if len(at) and int(np.abs(sums).max()) > MAX_UNITS:
            raise MergeRefused("couldn't merge update: a coordinate would leave the range of the register")
        units[at] = sums
        counts[at] += np.int32(sign)
        if sign < 0 and (bool((counts[at] < 0).any()) or bool(((counts[at] == 0) & (sums != 0)).any())):
            raise MergeRefused("couldn't remove update: it is not in the register")
    return Register(units=units, counts=counts)


def check(
    registers: Mapping[MemberId, Register], weights: Mapping[MemberId, int], members: int, coordinates: int
) -> None:
    """Refuse what no recipe merges.

    Raises:
        MergeRefused: weights that do not fit, another P, or a weighted sum that could leave int64.
    """
    if len(weights) != members or not registers.keys() <= weights.keys():
        raise MergeRefused(f"couldn't merge: weights of exactly the {members} members are expected")
    if not all(1 <= weight <= MAX_WEIGHT for weight in weights.values()):
        raise MergeRefused(f"couldn't merge: a weight is not in 1..{MAX_WEIGHT}")
    if sum(weights.values()) > MAX_WEIGHTS:
        raise MergeRefused(f"couldn't merge: the weights sum to more than {MAX_WEIGHTS}")
    bound = 0
    for member, register in registers.items():
        if len(register.units) != coordinates:
            raise MergeRefused(f"couldn't merge: a register of {len(register.units)} coordinates, not {coordinates}")
        bound += weights[member] * max(int(register.units.max(initial=0)), -int(register.units.min(initial=0)))
        if bound >= 2**63:
            raise MergeRefused("couldn't merge: the weighted sum could leave 64 bits")


def register_digest(register: Register) -> Digest:
    """SHA-256 over the domain, P, units and counts (FORMAT.md, "Digests of vectors")."""
    return _vector_digest("register", register.units.astype("<i8"), register.counts.astype("<i4"))


def model_digest(view: npt.NDArray[np.float32]) -> Digest:
    """SHA-256 over the domain, P and the values of an adapter vector; -0.0 counts as 0.0.

    Raises:
        MergeRefused: a value is not finite.
    """
    if not bool(np.isfinite(view).all()):
        raise MergeRefused("couldn't name model: a value is not finite")
    return _vector_digest("model", np.add(view, np.float32(0.0)).astype("<f4"))


def _vector_digest(domain: str, *arrays: npt.NDArray[np.generic]) -> Digest:
    state = hashlib.sha256(b"fishernet/" + domain.encode("ascii") + b"/v1\0" + len(arrays[0]).to_bytes(4, "little"))
    for array in arrays:
        state.update(array.tobytes())
    return Digest(state.hexdigest())
