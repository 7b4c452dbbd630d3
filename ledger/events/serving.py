"""Events about answers: which requests by API keys a node took and refused, counted together.

Values and their strict readers only. One event sums up some time, so that the record grows with the variety of requests and
not with their number. Invariant: it holds no word of a prompt or an answer and nothing that a key could be guessed from.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final

from ledger.errors import BadEvent
from ledger.events.fields import MAX_ITEMS, Body, Readers, closed, code, hex_, integer, object_
from ledger.events.grants import MAX_LINKS
from protocol.canon import Json
from protocol.ids import Digest, EventId, as_hex

MAX_SERVED: Final = MAX_ITEMS  # kinds of requests in one event


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Requests of one kind: by one key, for one purpose, to one version, decided alike, under the same grants.

    `model` is the digest that the version is served under (a release, a view, the base); `reason` is why they were refused,
    empty for those that were taken; `grants` are those the key rests on, ascending.
    """

    key: str
    purpose: str
    model: Digest
    reason: str
    grants: tuple[EventId, ...]
    requests: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def kind(self) -> tuple[str, str, str, str, tuple[EventId, ...]]:
        """What requests that are counted together have in common; the order of an event's list."""
        return self.key, self.purpose, self.model, self.reason, self.grants

    def to_json(self) -> dict[str, Json]:
        """The form in an event."""
        return {
            "key": self.key,
            "purpose": self.purpose,
            "model": self.model,
            "reason": self.reason,
            "grants": list(self.grants),
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessServed:
    """What was decided on requests by API keys from `since` on and before `until` (ms), one item for each kind."""

    TYPE: ClassVar[str] = "access.served"
    since: int
    until: int
    served: tuple[Served, ...]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"since": self.since, "until": self.until, "served": [each.to_json() for each in self.served]}


_KEYS: Final = {"key", "purpose", "model", "reason", "grants", "requests", "prompt_tokens", "answer_tokens"}


def _item(value: Json) -> Served:
    body = closed(object_({"served": value}, "served"), _KEYS, "served request")
    grants = body["grants"]
    if not isinstance(grants, list) or len(grants) > MAX_LINKS:
        raise BadEvent(f"couldn't read event: grants are at most {MAX_LINKS}")
    found = tuple(EventId(as_hex(each, "grant")) for each in grants)
    if any(a >= b for a, b in pairwise(found)):
        raise BadEvent("couldn't read event: grants are ascending, each once")
    return Served(
        key=code(body["key"], "key"),
        purpose=code(body["purpose"], "purpose"),
        model=hex_(body, "model"),
        reason="" if body["reason"] == "" else code(body["reason"], "reason"),
        grants=found,
        requests=integer(body, "requests", low=1),
        prompt_tokens=integer(body, "prompt_tokens"),
        answer_tokens=integer(body, "answer_tokens"),
    )


def _served(body: Body) -> AccessServed:
    items = body["served"]
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_SERVED:
        raise BadEvent(f"couldn't read event: served has 1 to {MAX_SERVED} items")
    found = tuple(map(_item, items))
    if any(a.kind >= b.kind for a, b in pairwise(found)):
        raise BadEvent("couldn't read event: served is sorted, each kind once")
    since = integer(body, "since")
    return AccessServed(since=since, until=integer(body, "until", low=since), served=found)


READERS: Final[Readers] = {AccessServed.TYPE: ({"since", "until", "served"}, _served)}
