"""Access to private rows: asked for, decided, written down, and turned into the permit that the row reader demands.

    request -> `ledger.access.decide` -> `access.decided` (allowed or not) -> `data.used` -> contrib.permit.Permit

Knows no rows. Invariants: no permit without its decision in the feed; what was refused is in the feed too; a decision is
used again only for measuring, for an hour at most, and not after anything changed about grants or the rows.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from contrib.permit import COLUMNS, Action, Permit
from ledger import events
from ledger.access.decision import Decision, decide
from ledger.events import AccessRequest, Audience, GrantIssued, Selector
from ledger.events.grants import ACTIONS
from node.collective.seat import Seat
from node.errors import AccessDenied
from node.session import Session
from protocol.canon import Json
from protocol.ids import Digest, EventId, MemberId

PURPOSE: Final = "model-improvement"
_HOLDS_MS: Final = 3_600_000
Permitted = Mapping[str, Mapping[str, Json]]  # data set -> a permit's JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A decision to measure that may be used again."""

    permit: Permit
    root: Digest
    purpose: str
    version: int
    until: int


class Permits:
    """Asks for access in this node's own name, and remembers what was answered."""

    def __init__(
        self, seat: Seat, *, purpose: str = PURPOSE, policy: Callable[[], Digest], now: Callable[[], int] | None = None
    ) -> None:
        """Ask for `purpose`; `policy` names the egress policy in force, and writes it down first if it is new."""
        self._seat = seat
        self.purpose = purpose
        self._policy = policy
        self._now = seat.now_ms if now is None else now
        self._held: dict[str, _Held] = {}
        self._told: dict[tuple[str, str], tuple[tuple[str, ...], int]] = {}

    def would(self, dataset: str, action: Action) -> Decision:
        """How a request would be decided now; nothing is written."""
        return decide(self._seat.book, self._request(dataset, action, ""), self._seat.past())

    def told(self, dataset: str, action: Action) -> bool:
        """Whether a request would be refused just as one was that is written down already."""
        answer = self.would(dataset, action)
        return not answer.allowed and self._told.get((dataset, action)) == (answer.reasons, self._seat.book.version)

    def train(self, datasets: Sequence[str], run: str, *, need: Iterable[str] = ()) -> dict[str, Mapping[str, Json]]:
        """Ask to train on each data set; those that are refused are left out.

        Raises:
            AccessDenied: all of them, or one in `need`; the refusals are in the feed by then, and no grant was used.
            AppendPaused: nothing may be written now, so nothing may be read.
        """
        refused = [name for name in datasets if not self.would(name, "train").allowed]
        if refused and (len(refused) == len(datasets) or not set(refused).isdisjoint(need)):
            answers = {name: self._ask(name, "train", run)[0] for name in refused}
            name = next((n for n in need if n in answers), refused[0])
            raise denied("train on", name, answers[name], self.purpose)
        asked = {name: self._ask(name, "train", run) for name in datasets}
        return {
            name: self._use(name, "train", run, answer, event).to_json()
            for name, (answer, event) in asked.items()
            if answer.allowed
        }

    def still(self, datasets: Sequence[str], run: str, state: Mapping[str, bytes]) -> None:
        """Refuse to let out what a run made of rows whose grant was revoked since.

        Raises:
            AccessDenied: the refusal is in the feed, saved together with `state`.
        """
        for name in datasets:
            answer = self.would(name, "train")
            if "revoked" in answer.reasons:
                self._ask(name, "train", run, state)
                raise denied("publish what was learnt from", name, answer, self.purpose)

    def evaluate(self, datasets: Sequence[str]) -> dict[str, Mapping[str, Json]]:
        """Ask to measure on each data set; those that are refused are left out, and the refusal is written once."""
        found: dict[str, Mapping[str, Json]] = {}
        for name in datasets:
            held = self._held.get(name)
            if held is None or not self._holds(name, held):
                if self.told(name, "evaluate"):
                    continue
                held = self._measure(name)
            if held is not None:
                found[name] = held.permit.to_json()
        return found

    def _measure(self, dataset: str) -> _Held | None:
        self._held.pop(dataset, None)
        run = self._seat.run_id()
        answer, event = self._ask(dataset, "evaluate", run)
        if not answer.allowed:
            return None
        permit = self._use(dataset, "evaluate", run, answer, event)
        now = self._now()
        self._held[dataset] = _Held(
            permit=permit,
            root=self._root(dataset, "evaluate"),
            purpose=self.purpose,
            version=self._seat.book.version,
            until=min(now + _HOLDS_MS, permit.expires_ms or now + _HOLDS_MS),
        )
        return self._held[dataset]

    def _holds(self, dataset: str, held: _Held) -> bool:
        same = held.root == self._root(dataset, "evaluate") and held.purpose == self.purpose
        return same and held.version == self._seat.book.version and self._now() < held.until

    def _ask(
        self, dataset: str, action: Action, run: str, state: Mapping[str, bytes] | None = None
    ) -> tuple[Decision, EventId]:
        """Decide and write it down; nothing comes between the decision and its entry."""
        policy = self._policy()
        request = self._request(dataset, action, run)
        answer = decide(self._seat.book, request, self._seat.past())
        if answer.allowed:
            self._told.pop((dataset, action), None)
        else:
            self._told[dataset, action] = (answer.reasons, self._seat.book.version)
        record = self._seat.append(
            events.AccessDecided(
                request=request, grants=answer.grants, verdict=answer.verdict, reasons=answer.reasons, policy=policy
            ),
            state=state,
        )
        return answer, record.entry.event

    def _use(self, dataset: str, action: Action, run: str, answer: Decision, decision: EventId) -> Permit:
        self._seat.append(
            events.DataUsed(
                dataset=dataset,
                root=self._root(dataset, action),
                rows=self._rows(dataset, action),
                action=action,
                purpose=self.purpose,
                run=run,
                decision=decision,
            )
        )
        selector = answer.selector or Selector()
        columns = None if selector.columns is None else tuple(c for c in COLUMNS if c in selector.columns)
        return Permit(
            dataset=dataset,
            action=action,
            columns=columns,
            tags_all=selector.tags_all,
            tags_none=selector.tags_none,
            expires_ms=answer.expires,
            decision=decision,
        )

    def _request(self, dataset: str, action: Action, run: str) -> AccessRequest:
        return AccessRequest(
            actor=self._seat.me,
            action=action,
            dataset=dataset,
            purpose=self.purpose,
            columns=(),
            rows=self._rows(dataset, action),
            epsilon_micro=None,
            at=self._now(),
            run=run,
        )

    def _rows(self, dataset: str, action: Action) -> int:
        committed = self._seat.dataset_root(dataset)
        if committed is None:
            return 0
        return committed.held_out_rows if action == "evaluate" else committed.train_rows

    def _root(self, dataset: str, action: Action) -> Digest:
        committed = self._seat.dataset_root(dataset)
        if committed is None:
            return Digest("0" * 64)
        return committed.held_out_root if action == "evaluate" else committed.train_root


def denied(action: str, dataset: str, answer: Decision, purpose: str) -> AccessDenied:
    """The refusal in words."""
    return AccessDenied(
        f"couldn't {action} data set {dataset}: no grant allows it for {purpose} ({', '.join(answer.reasons)})",
        reasons=answer.reasons,
        hint=f"fishernet grant check {dataset} --action train --purpose {purpose}",
    )


# -- what the owner of a data set says about it ------------------------------------------------------------------------
def describe(
    session: Session,
    dataset: str,
    *,
    tags: Iterable[str] = (),
    columns: Iterable[str] = (),
    purposes: Iterable[str] = (PURPOSE,),
    retention_days: int | None = None,
    licence: str = "",
    basis: str = "",
) -> EventId | None:
    """Write what a data set of ours is (`data.described`); None when it is described so already.

    Raises:
        NoCollective, AppendPaused: nothing was written.
    """
    seat = session.need_seat()
    event = events.DataDescribed(
        dataset=dataset,
        tags=tuple(sorted(set(tags))),
        columns=tuple(sorted(set(columns))),
        purposes=tuple(sorted(set(purposes))),
        retention_days=retention_days,
        licence=licence,
        basis=basis,
    )
    events.parse(event.TYPE, event.to_json())  # what we sign, others can read
    known = seat.book.described.get((seat.me, dataset))
    if known is not None and known[1] == event:
        return None
    return seat.append(event).entry.event


def to_itself(
    owner: MemberId, dataset: str, *, purposes: Iterable[str], actions: Iterable[str], basis: str, nonce: Digest
) -> GrantIssued:
    """A grant by which an owner alone may use all of a data set, without end."""
    return GrantIssued(
        dataset=dataset,
        selector=Selector(),
        actions=tuple(sorted(set(actions))),
        purposes=tuple(sorted(set(purposes))),
        audience=Audience(members=(owner,)),
        not_before=0,
        expires=None,
        uses=None,
        epsilon_micro=None,
        depth=0,
        parent=None,
        basis=basis,
        nonce=nonce,
    )


def self_grant(
    session: Session,
    dataset: str,
    *,
    purposes: Iterable[str] = (PURPOSE,),
    actions: Iterable[str] = ACTIONS,
    basis: str = "",
) -> EventId | None:
    """Grant ourselves the use of a new data set of ours, without expiry; None when we ever granted something on it.

    That we did so with an earlier key of our seat counts too: its grants, and what was taken from them, are still ours.

    Raises:
        NoCollective, AppendPaused: nothing was written.
    """
    seat = session.need_seat()
    past = seat.past()
    if any(past.who(seat.book.grants[g].issuer) == seat.me for g in seat.book.named.get(dataset, ())):
        return None
    event = to_itself(
        seat.me, dataset, purposes=purposes, actions=actions, basis=basis, nonce=Digest(secrets.token_hex(32))
    )
    events.parse(event.TYPE, event.to_json())
    return seat.append(event).entry.event
