"""Decides before any work what a peer may have: streams, requests, bytes, signature checks; and who is banned.

Each known member has an account of its own; all others share one small one, so that a thousand fresh peer ids get no more than
one. Faults give points that halve every ten minutes; with half of the threshold a member is treated as a stranger, with all of
it banned for a growing time. Knows no protocol, no feed and no network: it is asked and told. Called from one event loop.
Invariant: its memory is bounded whatever number of peer ids comes, and faults without points never lead to a ban.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from node.errors_network import OverQuota
from node.guarding.bans import Ban, BanBook, parse_who, text_of
from node.guarding.buckets import Bucket
from node.guarding.limits import Fault, Kind, Limits, Quota, Rate, family, fault_of
from protocol.canon import Json
from protocol.ids import MemberId, PeerId

__all__ = ["Ban", "Fault", "Guard", "Limits", "fault_of"]

log = logging.getLogger(__name__)

MAX_MEMBERS = 2048  # accounts
MAX_STRANGERS = 1024
_HANG_UPS = 32  # at one look, so that hanging up costs little too
_SAID = Rate(per_s=0.1, burst=20)  # bans of strangers that are told one by one
_FORGET_S = 7 * 86_400.0  # a ban that ended longer ago does not make the next one longer


class _Account:
    """What one peer (or all strangers together) has taken lately."""

    __slots__ = ("buckets", "held", "points", "points_at", "quota", "refusals", "streams")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.buckets: dict[str, Bucket] = {}
        self.refusals: Bucket | None = None
        self.points = self.points_at = 0.0
        self.streams = self.held = 0

    def bucket(self, kind: Kind, protocol: str, now: float) -> Bucket:
        name = f"{kind}{family(protocol)}" if kind == "requests" else kind
        if name not in self.buckets:
            self.buckets[name] = Bucket(self.quota.rate(kind, protocol), now)
        return self.buckets[name]


class Guard:
    """The gate that every peer passes. `known` says in each call whether the peer speaks for a member."""

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        book: Path | None = None,
        told: Callable[[Ban], None] = lambda _ban: None,
        member_of: Callable[[PeerId], MemberId | None] = lambda _peer: None,
    ) -> None:
        """Bans are kept in `book` and told to `told` when the guard makes one; `member_of` says whom a peer speaks for."""
        self._limits, self._clock, self._wall = limits, clock, wall
        self.told, self.member_of = told, member_of
        self._book = BanBook(book)
        self._members: OrderedDict[PeerId, _Account] = OrderedDict()
        self._strangers: OrderedDict[PeerId, _Account] = OrderedDict()
        self._crowd = _Account(limits.strangers)
        self._streams = self._held = 0
        self._say = Bucket(_SAID, clock())
        self._counts: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()

    # -- cost --------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def stream(self, peer: PeerId, protocol: str, *, known: bool) -> Iterator[bool]:
        """Yield whether a stream of `peer` may be served; the place is given back at the end of the block."""
        if not self._enter(peer, protocol, known):
            yield False
            return
        crowd, own = not self._trusted(peer, known), self._account(peer, known)
        self._streams += 1
        own.streams += 1
        self._crowd.streams += crowd
        try:
            yield True
        finally:
            self._streams -= 1
            own.streams -= 1
            self._crowd.streams -= crowd

    def _enter(self, peer: PeerId, protocol: str, known: bool) -> bool:
        if self.banned(peer):
            self._counts["refused_banned"] += 1
            return False
        limits, own = self._limits, self._account(peer, known)
        trusted = self._trusted(peer, known)
        room = self._streams < limits.streams and own.streams < (
            limits.streams_per_peer if trusted else limits.streams_per_stranger
        )
        if not room or (not trusted and self._crowd.streams >= limits.streams_strangers):
            self._refuse(peer, known, "streams")
            return False
        if not self._take(peer, protocol, "requests", 1, known):
            self._refuse(peer, known, "requests")
            return False
        self._counts["streams_served"] += 1
        return True

    @contextlib.contextmanager
    def hold(self, peer: PeerId, size: int) -> Iterator[None]:
        """Keep `size` bytes of answers in memory for `peer` until the end of the block.

        Raises:
            OverQuota: it (or everybody together) holds too much already: it reads too slowly.
        """
        known = peer in self._members
        limits, own, crowd = self._limits, self._account(peer, known), not self._trusted(peer, known)
        most = limits.held_strangers if crowd else limits.held_per_peer
        mine = self._crowd.held if crowd else own.held
        if mine + size > most or self._held + size > limits.held:
            self._refuse(peer, known, "held")
            raise OverQuota(f"couldn't serve {peer[-6:]}: too many answers that it has not read yet")
        self._held += size
        own.held += size
        self._crowd.held += size * crowd
        try:
            yield
        finally:
            self._held -= size
            own.held -= size
            self._crowd.held -= size * crowd

    def spend(self, peer: PeerId, protocol: str, kind: Kind, amount: float = 1, *, known: bool | None = None) -> None:
        """Take the cost of work that is about to be done for `peer`.

        Raises:
            OverQuota: it has used up its share; the work is not to be done.
        """
        known = peer in self._members if known is None else known
        if not self._take(peer, protocol, kind, amount, known):
            self._refuse(peer, known, kind)
            raise OverQuota(f"couldn't serve {peer[-6:]}: its share of {kind} is used up for now")

    def pace(self, peer: PeerId, kind: Kind, amount: int, *, known: bool | None = None) -> float:
        """Count bytes of a stream that is being served; the seconds to wait before the next ones."""
        known = peer in self._members if known is None else known
        now = self._clock()
        self._counts[f"bytes_{kind}"] += amount
        wait = self._account(peer, known).bucket(kind, "", now).pay(amount, now)
        if not self._trusted(peer, known):
            wait = max(wait, self._crowd.bucket(kind, "", now).pay(amount, now))
        return wait

    def answers(self, peer: PeerId, protocol: str, *, known: bool) -> bool:
        """Whether one call of `peer` (of the DHT, say) is looked at."""
        if self.banned(peer):
            self._counts["refused_banned"] += 1
            return False
        if not self._take(peer, protocol, "requests", 1, known):
            self._refuse(peer, known, "requests")
            return False
        return True

    def hears(self, origin: PeerId, *, known: bool) -> bool:
        """Whether an announcement made by `origin` is looked at; one that is dropped costs a look at the next heads."""
        if self.banned(origin) or not self._take(origin, "", "gossip", 1, known):
            self._counts["refused_gossip"] += 1
            return False
        return True

    def _take(self, peer: PeerId, protocol: str, kind: Kind, amount: float, known: bool) -> bool:
        now = self._clock()
        own = self._account(peer, known).bucket(kind, protocol, now)
        if not own.take(amount, now):
            return False
        if not self._trusted(peer, known) and not self._crowd.bucket(kind, protocol, now).take(amount, now):
            own.give(amount)
            return False
        return True

    def _refuse(self, peer: PeerId, known: bool, kind: str) -> None:
        self._counts[f"refused_{kind}"] += 1
        now, own = self._clock(), self._account(peer, known)
        if own.refusals is None:
            own.refusals = Bucket(self._limits.refusals, now)
        if not own.refusals.take(1, now):
            self.fault(peer, Fault.FLOOD)

    def _trusted(self, peer: PeerId, known: bool) -> bool:
        return known and self.score(peer) < self._limits.threshold / 2

    def _account(self, peer: PeerId, known: bool) -> _Account:
        """The peer's account, newest last; the longest unused one without an open stream is forgotten first."""
        mine, other = (self._members, self._strangers) if known else (self._strangers, self._members)
        account = mine.get(peer)
        if account is not None:
            mine.move_to_end(peer)
            return account
        quota = self._limits.member if known else self._limits.stranger
        account = other.pop(peer, None) or _Account(quota)
        if account.quota is not quota:  # it turned out to be a member, or is none any more
            account.quota = quota
            account.buckets.clear()
        mine[peer] = account
        idle = (name for name, each in mine.items() if not (each.streams or each.held) and name != peer)
        if len(mine) > (MAX_MEMBERS if known else MAX_STRANGERS) and (oldest := next(idle, None)) is not None:
            del mine[oldest]
        return account

    # -- faults ------------------------------------------------------------------------------------------------------
    def score(self, peer: PeerId) -> float:
        """The points of a peer now."""
        account = self._members.get(peer) or self._strangers.get(peer)
        if account is None or not account.points:
            return 0.0
        return float(account.points * 0.5 ** ((self._clock() - account.points_at) / self._limits.half_life_s))

    def fault(self, peer: PeerId, fault: Fault) -> None:
        """Count a fault; enough of them is a ban for a growing time."""
        self._faults[fault.code] += 1
        if not fault.points or self.banned(peer):
            return
        account = self._account(peer, self.member_of(peer) is not None or peer in self._members)
        account.points, account.points_at = self.score(peer) + fault.points, self._clock()
        log.debug("event=fault peer=%s code=%s points=%.0f", peer[-6:], fault.code, account.points)
        if account.points >= self._limits.threshold:
            account.points = 0.0
            self._ban_for(peer, fault)

    def blame(self, peer: PeerId, error: Exception) -> None:
        """Count the fault that `error` shows, raised by bytes of `peer`; most errors show none."""
        if (fault := fault_of(error)) is not None:
            self.fault(peer, fault)

    def _ban_for(self, peer: PeerId, fault: Fault) -> None:
        now = self._wall()
        times = self._book.times(peer, now, _FORGET_S) + 1
        lasts = min(self._limits.first_ban_s * 4.0 ** (times - 1), self._limits.longest_ban_s)
        member = self.member_of(peer)
        why = f"too many faults, the last was {fault.code}"
        ban = Ban(
            peer=peer, member=member, by="guard", code=fault.code, why=why, since=now, until=now + lasts, times=times
        )
        self._book.put(ban)
        self._counts["bans_made"] += 1
        if member is not None or self._say.take(
            1, self._clock()
        ):  # strangers come by the thousand: not a line for each
            whom = member[:12] if member else "none"
            log.warning("event=ban peer=%s member=%s code=%s seconds=%.0f", peer[-6:], whom, fault.code, lasts)
            self.told(ban)

    # -- bans --------------------------------------------------------------------------------------------------------
    def banned(self, peer: PeerId) -> bool:
        """Whether nothing is to be served to, taken from or dialled at this peer."""
        if not self._book:  # asked for every peer at every choice
            return False
        now = self._wall()
        if self._book.get(peer, now) is not None:
            return True
        member = self.member_of(peer)
        return member is not None and self._book.get(member, now) is not None

    def unwelcome(
        self, connected: Collection[PeerId], *, before: Collection[PeerId], known: Callable[[PeerId], bool]
    ) -> list[PeerId]:
        """Some of the connected peers to hang up on: the banned, then strangers over the limit, of those the newest first.

        Whoever was here `before` keeps its place, so that a crowd that comes cannot push out a newcomer who is being answered.
        """
        banned = [peer for peer in connected if self.banned(peer)]
        strangers = [peer for peer in connected if not known(peer) and not self.banned(peer)]
        over = max(0, len(strangers) - self._limits.strangers_connected)
        newest = sorted(strangers, key=lambda peer: peer in before)[:over]
        return [*banned, *newest][:_HANG_UPS]

    def banned_member(self, member: MemberId) -> bool:
        """Whether the operator has banned a member, whichever peer speaks for it."""
        return bool(self._book) and self._book.get(member, self._wall()) is not None

    def ban(self, who: str, seconds: float | None, why: str) -> Ban:
        """The operator's ban of a peer or a member, by id; None: until `unban`.

        Raises:
            Malformed: neither a peer id nor a member id.
            TooLarge: too many bans stand already.
        """
        peer, member = parse_who(who)
        now = self._wall()
        until = None if seconds is None else now + max(0.0, seconds)
        member = self.member_of(peer) if peer is not None else member
        ban = Ban(peer=peer, member=member, by="operator", code="operator", why=text_of(why), since=now, until=until)
        self._book.put(ban)
        log.warning("event=ban who=%s by=operator until=%s", who[-12:], "lifted" if until is None else f"{until:.0f}")
        self.told(ban)
        return ban

    def unban(self, who: str) -> bool:
        """Lift a ban of a peer or member, and forget its points; whether there was one."""
        for accounts in (self._members, self._strangers):
            if who in accounts:
                accounts[PeerId(who)].points = 0.0
        found = self._book.lift(who)
        if found is not None:
            log.info("event=unban who=%s", who[-12:])
        return found is not None

    def bans(self) -> list[Ban]:
        """Every ban that stands, the newest last."""
        now = self._wall()
        return sorted((b for b in self._book if b.until is None or b.until > now), key=lambda b: b.since)

    def save(self) -> None:
        """Keep all bans on disk, those of strangers too: at the end of a run."""
        self._book.save()

    def use(self, limits: Limits) -> None:
        """Go by other limits from now on; streams that are open stay."""
        self._limits, self._crowd.quota = limits, limits.strangers
        self._crowd.buckets.clear()
        for accounts, quota in ((self._members, limits.member), (self._strangers, limits.stranger)):
            for account in accounts.values():
                account.quota, account.refusals = quota, None
                account.buckets.clear()

    @property
    def refused(self) -> int:
        """Streams that were not served, for whatever reason."""
        return sum(self._counts[f"refused_{why}"] for why in ("banned", "streams", "requests"))

    def status(self) -> dict[str, Json]:
        """Flat counters and levels."""
        bans = self.bans()
        return {
            "streams": self._streams,
            "stranger_streams": self._crowd.streams,
            "member_accounts": len(self._members),
            "stranger_accounts": len(self._strangers),
            "bytes_held": self._held,
            "bans": len(bans),
            "bans_by_operator": sum(ban.by == "operator" for ban in bans),
            **{name: self._counts[name] for name in _COUNTS},
            **{f"fault_{fault.code.replace('-', '_')}": self._faults[fault.code] for fault in Fault},
        }


_COUNTS = (
    "streams_served", "bans_made", "bytes_in", "bytes_out", "refused_banned", "refused_streams", "refused_requests",
    "refused_held", "refused_in", "refused_out", "refused_verify", "refused_gossip",
)  # fmt: skip
