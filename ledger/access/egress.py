"""What the operator of a node lets out: a policy, the facts about something that is to leave, and one pure decision.

Knows no blob format and no model; `node.data.egress` finds the facts on the packed bytes. Invariant: what the policy does not
limit passes; a fact that a limit needs and nobody can state is refused. Law: `parse(p.to_json()) == p`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from ledger.errors import BadEvent
from ledger.events.fields import TEXT
from protocol.canon import MAX_INT, Json
from protocol.ids import Digest, MemberId, as_hex, digest_of

_NUMBERS: Final = ("max_bytes", "max_norm_micro", "max_epsilon_micro")
_LISTS: Final = ("modules", "purposes", "members")
_MAX_LIST: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Limits on what leaves; None: no limit of this kind."""

    max_bytes: int | None = None  # of one contribution
    max_norm_micro: int | None = None  # of one update, in millionths
    max_epsilon_micro: int | None = None  # an update without differential privacy states none, and is refused
    modules: tuple[str, ...] | None = None  # names of the base model's modules; * stands for any part of a name
    purposes: tuple[str, ...] | None = None  # for which the rows behind an update were used
    members: tuple[MemberId, ...] | None = None  # who may fetch blobs here

    def to_json(self) -> dict[str, Json]:
        """The form in `egress.set`."""
        numbers: dict[str, Json] = {name: getattr(self, name) for name in _NUMBERS}
        lists: dict[str, Json] = {
            name: None if getattr(self, name) is None else list(getattr(self, name)) for name in _LISTS
        }
        return {**numbers, **lists}

    @property
    def digest(self) -> Digest:
        """What decisions and refusals name it by."""
        return digest_of(self.to_json())


DEFAULT: Final = Policy()  # in force in a feed until it sets another


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is about to leave."""

    size: int
    norm_micro: int
    epsilon_micro: int | None
    modules: tuple[str, ...] | None  # touched; None: not known
    purposes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Accept:
    """It may leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """It stays, with a stable code and a sentence for the operator."""

    code: str
    text: str


Answer: TypeAlias = Accept | Reject


def examine(policy: Policy, facts: Facts) -> Answer:
    """Decide whether a contribution may leave."""
    if policy.max_bytes is not None and facts.size > policy.max_bytes:
        return _no("bytes", f"it has {facts.size} bytes, the policy allows {policy.max_bytes}")
    if policy.max_norm_micro is not None and facts.norm_micro > policy.max_norm_micro:
        return _no("norm", f"its norm is {facts.norm_micro} millionths, the policy allows {policy.max_norm_micro}")
    if policy.max_epsilon_micro is not None:
        if facts.epsilon_micro is None:
            return _no("epsilon", "it states no epsilon, and the policy limits it")
        if facts.epsilon_micro > policy.max_epsilon_micro:
            return _no("epsilon", f"epsilon is {facts.epsilon_micro} millionths, over {policy.max_epsilon_micro}")
    if policy.modules is not None:
        if facts.modules is None:
            return _no("modules", "which modules it touches cannot be found out")
        for module in facts.modules:
            if not any(fnmatchcase(module, allowed) for allowed in policy.modules):
                return _no("modules", f"it touches {module}, which the policy does not name")
    if policy.purposes is not None:
        for purpose in facts.purposes:
            if purpose not in policy.purposes:
                return _no("purpose", f"rows were used for {purpose}, which the policy does not name")
    return Accept()


def may_fetch(policy: Policy, member: MemberId) -> bool:
    """Whether a member gets blobs from this node."""
    return policy.members is None or member in policy.members


def parse(value: Mapping[str, Json]) -> Policy:
    """Read `to_json`'s form strictly.

    Raises:
        BadEvent: other keys or values out of range (Malformed: not a member id).
    """
    if set(value) != {*_NUMBERS, *_LISTS}:
        raise BadEvent(f"couldn't read egress policy: the keys are not {', '.join((*_NUMBERS, *_LISTS))}")
    members = _texts(value["members"], "members")
    return Policy(
        max_bytes=_number(value["max_bytes"], "max_bytes"),
        max_norm_micro=_number(value["max_norm_micro"], "max_norm_micro"),
        max_epsilon_micro=_number(value["max_epsilon_micro"], "max_epsilon_micro"),
        modules=_texts(value["modules"], "modules"),
        purposes=_texts(value["purposes"], "purposes"),
        members=None if members is None else tuple(MemberId(as_hex(m, "member")) for m in members),
    )


def _no(code: str, cause: str) -> Reject:
    return Reject(code=code, text=f"couldn't let it out: {cause}")


def _number(value: Json, key: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INT:
        raise BadEvent(f"couldn't read egress policy: {key} is an integer from 0, or null")
    return value


def _texts(value: Json, key: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > _MAX_LIST:
        raise BadEvent(f"couldn't read egress policy: {key} is a list of at most {_MAX_LIST}, or null")
    found = [each for each in value if isinstance(each, str) and TEXT.match(each)]
    if len(found) != len(value) or found != sorted(set(found)):
        raise BadEvent(f"couldn't read egress policy: {key} are sorted texts, each once")
    return tuple(found)
