"""Who is banned, by whom, why and until when; kept in one private file over a restart.

    bans.json   written here only (mode 0600); losing it lifts the bans
Bans by the operator end only when told; bans by the guard end by themselves, and each further one of the same peer or member
lasts four times longer. Knows no faults and no clock. Invariant: at most `MAX_BANS` bans of each kind (for a while an eighth
more), and strangers' bans never displace those of members or of the operator.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from node.files import write_new
from protocol.errors import Malformed, TooLarge
from protocol.ids import MemberId, PeerId

log = logging.getLogger(__name__)

MAX_BANS: Final = 1024
_MAX_FILE: Final = 2 << 20
_MEMBER: Final = re.compile(r"[0-9a-f]{64}\Z")
_PEER: Final = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")
_CODE: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}\Z")
_WHY: Final = re.compile(r"[^\x00-\x1f\x7f]{0,200}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """One ban of a peer or of a member (all its peers). Times are seconds since 1970; `until` None: until it is lifted."""

    peer: PeerId | None
    member: MemberId | None  # for a peer's ban: whom it spoke for when it was banned, or None for a stranger
    by: Literal["guard", "operator"]
    code: str  # of the fault, or "operator"
    why: str
    since: float
    until: float | None
    times: int = 1  # the how manieth ban of this one

    @property
    def who(self) -> str:
        """The peer id, or for a ban of a member its id."""
        return self.peer or self.member or ""


def parse_who(text: str) -> tuple[PeerId | None, MemberId | None]:
    """A peer id or a member id as a person writes it.

    Raises:
        Malformed: it is neither.
    """
    if _PEER.match(text):
        return PeerId(text), None
    if _MEMBER.match(text):
        return None, MemberId(text)
    raise Malformed(f"couldn't take {text[:60]!r}: a peer id (12D3KooW...) or a member id (64 hex digits) is expected")


class BanBook:
    """All bans that stand, by peer or member."""

    def __init__(self, path: Path | None) -> None:
        """Read what an earlier run kept; a damaged file is put aside and said."""
        self._path = path
        self._bans: dict[str, Ban] = {}
        self._look_at = MAX_BANS
        self._times: dict[str, tuple[int, float]] = {}  # who -> bans so far, end of the last
        if path is not None and path.exists():
            self._load(path)

    def __iter__(self) -> Iterator[Ban]:
        """Every ban, also those whose time is over and that nobody has asked about since."""
        return iter(tuple(self._bans.values()))

    def __bool__(self) -> bool:
        """Whether there may be a ban at all."""
        return bool(self._bans)

    def get(self, who: str, now: float) -> Ban | None:
        """The ban of a peer or member that stands at `now`."""
        ban = self._bans.get(who)
        if ban is not None and ban.until is not None and ban.until <= now:
            del self._bans[who]
            return None
        return ban

    def put(self, ban: Ban) -> None:
        """Remember a ban; one of the operator is not replaced by one of the guard.

        Raises:
            TooLarge: the operator has banned too many already.
        """
        held = self._bans.get(ban.who)
        if held is not None and held.by == "operator" and ban.by == "guard":
            return
        if ban.by == "operator" and held is None and sum(b.by == "operator" for b in self) >= MAX_BANS:
            raise TooLarge(f"couldn't ban {ban.who[:16]}: {MAX_BANS} bans of yours stand already; lift some")
        self._bans.pop(ban.who, None)  # the newest last
        self._bans[ban.who] = ban
        if ban.by == "guard":
            self._times.pop(ban.who, None)
            self._times[ban.who] = (ban.times, ban.until or ban.since)
        self._trim()
        if (
            ban.by == "operator" or ban.member is not None
        ):  # strangers come by the thousand: they wait for the next save
            self.save()

    def lift(self, who: str) -> Ban | None:
        """Forget a ban and how often there was one; None when there was none."""
        found = self._bans.pop(who, None)
        self._times.pop(who, None)
        if found is not None:
            self.save()
        return found

    def times(self, who: str, now: float, forget_s: float) -> int:
        """How many bans of the guard this one has had, when the last ended less than `forget_s` ago."""
        count, ended = self._times.get(who, (0, 0.0))
        return count if now < ended + forget_s else 0

    def save(self) -> None:
        """Write the file; a full disk costs the next start its memory of bans, and is said."""
        if self._path is None:
            return
        value = {"v": 1, "bans": [asdict(ban) for ban in self], "times": [[w, *t] for w, t in self._times.items()]}
        try:
            write_new(self._path, json.dumps(value, indent=1).encode("ascii"), mode=0o600)
        except OSError as e:
            log.warning("event=bans-not-saved path=%s cause=%s", self._path, e.strerror)

    def _trim(self) -> None:
        """The oldest bans of strangers go, and of members; looked at only when there may be an eighth too many."""
        if len(self._bans) >= self._look_at:
            for strangers in (True, False):
                group = [b for b in self._bans.values() if b.by == "guard" and (b.member is None) == strangers]
                for ban in group[: max(0, len(group) - MAX_BANS)]:
                    del self._bans[ban.who]
            self._look_at = len(self._bans) + MAX_BANS // 8
        while len(self._times) > 2 * MAX_BANS:
            del self._times[next(iter(self._times))]

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE + 1)
            if len(data) > _MAX_FILE:
                raise Malformed("couldn't read bans: the file is too large")
            bans, times = parse_bans(data)
        except (OSError, Malformed) as e:
            log.warning("event=bans-not-read path=%s cause=%s", path, e)
            with contextlib.suppress(OSError):
                path.replace(path.with_name(f"{path.name}.bad"))
            return
        self._bans, self._times = {ban.who: ban for ban in bans}, times
        self._trim()


def parse_bans(data: bytes) -> tuple[list[Ban], dict[str, tuple[int, float]]]:
    """Read the file's bytes: bans, and how often each was banned.

    Raises:
        Malformed: it is not such a file.
    """
    try:
        value = json.loads(data)
        if not (isinstance(value, dict) and value["v"] == 1):
            raise Malformed("couldn't read bans: an unknown form")
        bans = [_ban(each) for each in value["bans"]]
        times = {str(who): (int(n), float(at)) for who, n, at in value["times"]}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as e:
        raise Malformed(f"couldn't read bans: {type(e).__name__}") from None
    for who in times:
        parse_who(who)
    return bans, times


def _ban(value: dict[str, object]) -> Ban:
    peer, member = value["peer"], value["member"]
    by, code, why = value["by"], value["code"], value["why"]
    if not isinstance(code, str) or not _CODE.match(code) or not isinstance(why, str) or not _WHY.match(why):
        raise Malformed("couldn't read bans: code and why are short texts")
    if value.keys() != {"peer", "member", "by", "code", "why", "since", "until", "times"} or (peer or member) is None:
        raise Malformed("couldn't read bans: a ban has other fields")
    return Ban(
        peer=None if peer is None else parse_who(str(peer))[0],
        member=None if member is None else parse_who(str(member))[1],
        by="operator" if by == "operator" else "guard",
        code=code,
        why=why,
        since=_seconds(value["since"]),
        until=None if value["until"] is None else _seconds(value["until"]),
        times=int(_seconds(value["times"])),
    )


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise Malformed("couldn't read bans: a time is a number of seconds")
    return float(value)


def text_of(why: str) -> str:
    """`why` as it may stand in the file, a log line or an event: one line of at most 200 characters."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", why)[:200]
