"""What leaves this node: the operator's policy, held against the packed bytes at the moment of publishing and serving.

It stands below the training code: it reads blob and policy, not what a run says about itself. Invariants: the policy in
force is in our feed (`egress.set`) before anything is decided under it; whatever is kept back is an event too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from contrib.adapters import Layout
from contrib.updates import norm_micro
from ledger import events
from ledger.access import egress
from ledger.access.egress import Accept, Answer, Facts, Policy, Reject
from node.collective.seat import Seat
from node.errors import AppendPaused, EgressStopped
from node.sections import Egress as Settings
from protocol import contribution as blobs
from protocol import sparse
from protocol.errors import Refused
from protocol.ids import Digest, MemberId

log = logging.getLogger("fishernet.egress")
_MILLION = 1_000_000


class Egress:
    """The door of one node."""

    def __init__(self, seat: Seat, policy: Policy, *, layout: Callable[[], Layout] | None = None) -> None:
        """Keep to `policy`; `layout` tells which coordinates belong to which module, and is asked only when that matters."""
        self._seat = seat
        self.policy = policy
        self._digest = policy.digest
        self.layout = layout
        self._kept_from: set[MemberId] = set()

    def use(self, policy: Policy) -> None:
        """Keep to another policy from now on; it is in our feed before anything is decided under it."""
        self.policy, self._digest = policy, policy.digest
        self._kept_from.clear()

    def in_force(self) -> Digest:
        """The policy's digest; written into our feed first when it is not the last one there (raises AppendPaused)."""
        known = self._seat.book.policy(self._seat.me)
        if (egress.DEFAULT.to_json() if known is None else known) != self.policy.to_json():
            self._seat.append(events.EgressSet(policy=self.policy.to_json()))
        return self._digest

    def examine(self, blob: bytes, purposes: Sequence[str], *, coordinates: int) -> Answer:
        """Decide on a packed contribution that was made out of rows used for `purposes`."""
        try:
            packed = blobs.unpack(blob, max_bytes=len(blob))
            update = sparse.decode(packed.update, coordinates=coordinates, max_sent=coordinates)
        except Refused as e:
            return Reject(code="unreadable", text=f"couldn't let it out: {e}")
        touched = None
        if self.policy.modules is not None and self.layout is not None:
            touched = modules(self.layout(), update.indices, coordinates)
        facts = Facts(
            size=len(blob),
            norm_micro=norm_micro(update),
            epsilon_micro=packed.card.epsilon_micro,
            modules=touched,
            purposes=tuple(sorted(set(purposes))),
        )
        return egress.examine(self.policy, facts)

    def refuse(self, run: str, answer: Reject, state: Mapping[str, bytes]) -> EgressStopped:
        """Write down, with `state`, that a run stays here; returns the error that says so."""
        policy = self.in_force()
        self._seat.append(events.EgressRefused(run=run, code=answer.code, policy=policy), state=state)
        log.warning("event=egress-refused run=%s code=%s", run, answer.code)
        return EgressStopped(
            f"couldn't publish run {run}: {answer.text}",
            reason=answer.code,
            hint="what was learnt is kept; see [egress] in node.toml: fishernet config show",
        )

    def serves(self, member: MemberId) -> bool:
        """Whether a member gets blobs here; the first refusal to each is written down."""
        if egress.may_fetch(self.policy, member):
            return True
        if member not in self._kept_from:
            try:
                refused = events.EgressRefused(run="", code="member", policy=self.in_force())
                self._seat.append(refused)
                self._kept_from.add(member)
            except AppendPaused:
                log.warning("event=egress-refusal-not-written member=%s", member[:12])
        return False

    @property
    def stopped(self) -> bool:
        """Whether the newest thing that was to leave stayed here, under the policy that is still in force."""
        newest = self._seat.book.stopped.get(self._seat.me)
        return newest == self._digest


def policy_of(settings: Settings) -> Policy:
    """The policy that the section [egress] of node.toml describes."""
    return Policy(
        max_bytes=settings.max_bytes or None,
        max_norm_micro=round(settings.max_norm * _MILLION) or None,
        max_epsilon_micro=round(settings.max_epsilon * _MILLION) or None,
        modules=tuple(sorted(set(settings.modules))) or None,
        purposes=tuple(sorted(set(settings.purposes))) or None,
        members=tuple(sorted(MemberId(m) for m in set(settings.members))) or None,
    )


def modules(layout: Layout, indices: np.ndarray, coordinates: int) -> tuple[str, ...] | None:
    """Names of the modules that hold these coordinates, by the layout; None when it is the layout of another adapter."""
    if layout.coordinates != coordinates:
        return None
    width = sum(out for _, _, out in layout.modules)
    rank = coordinates // width if width else 0
    ends = np.cumsum([out * rank for _, _, out in layout.modules])
    found = np.unique(np.searchsorted(ends, np.asarray(indices, dtype=np.int64), side="right"))
    return tuple(layout.modules[int(i)][0] for i in found)


__all__ = ["Accept", "Egress", "Reject", "modules", "policy_of"]
