"""Checks of this node's part in its collective: peers, reachability, clocks, feeds, forks, votes, versions, bans.

Takes the fold of the ledger and what the running daemon says of itself ({} where none runs); pure but for the wall clock that
is given. Knows no socket.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ledger.collective import Collective
from ledger.entry import Record
from node.doctor.finding import Finding, fail, ok, warn
from protocol.ids import MemberId

Live = Mapping[str, Any]
_SKEW_MS: Final = (2_000, 60_000)  # warn, fail
_AHEAD_MS: Final = 5_000
_ATTEMPTS: Final = 3


def daemon(live: Live) -> Iterator[Finding]:
    """Whether it runs, has its network, and may write."""
    if not live:
        yield warn("daemon", "the node does not run: nothing is said of peers, reachability and votes", "fishernet up")
        return
    yield ok("daemon", "running" if live["ready"] else "running, and not a working member yet")
    if not live["network"]:
        yield fail(
            "network",
            f"the network daemon is down: {live['network_error'] or 'it is being started'}",
            "fishernet status",
        )
    if live["lines_lost"]:
        yield warn("log", f"{live['lines_lost']} lines found no room", "df -h; fishernet config show")


def paused(reason: str | None, full: str | None) -> Iterator[Finding]:
    """Why nothing is written, if so."""
    if reason is None and full is None:
        yield ok("writing", "this node may write into its feed")
    elif reason is None:
        yield fail("writing", str(full), "free some space; it goes on by itself")
    elif "frozen" in reason:
        yield fail("writing", reason, "fishernet key revoke --recovery FILE")
    elif "another node" in reason:
        yield fail("writing", reason, "stop the other node, then start this one again")
    elif "no seat" in reason:
        yield warn("writing", reason, "ask a member for: fishernet collective invite MEMBER")
    else:
        yield warn("writing", reason, "fishernet peer list; fishernet peer add MULTIADDR")


def peers(fold: Collective, me: MemberId, live: Live) -> Iterator[Finding]:
    """Who is connected, and whether that is enough to decide anything."""
    others = [each for each in live["peers"] if each["member"] != me]
    missing = [each["name"] for each in others if not each["connected"]]
    if others and len(missing) == len(others):
        yield fail(
            "peers", "nobody is connected", "fishernet peer add MULTIADDR, as `fishernet status` prints it at a member"
        )
    elif missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        yield warn(
            "peers",
            f"{len(others) - len(missing)} of {len(others)} members connected; missing: {shown}",
            "fishernet peer list",
        )
    else:
        yield ok("peers", f"all {len(others)} other members connected")
    if fold.known:
        up = {each["member"] for each in others if each["connected"]} | {me}
        here = sum(1 for member in fold.charter.members if member.votes and member.id in up)
        if here < fold.charter.quorum:
            cause = f"{here} voting members are together and {fold.charter.quorum} are needed: nothing can be decided"
            yield warn("quorum", cause, "fishernet peer list")
    if live["quarantined"]:
        cause = f"{live['quarantined']} peers or feeds are left alone for a while after failures"
        yield warn("quarantine", f"{cause}; last: {live['sync_error'] or 'unknown'}", "fishernet status")
    if live["bans"]:
        shown = ", ".join(f"{ban['who'][-12:]} ({ban['why']})" for ban in live["bans"][:4])
        yield warn("bans", f"{len(live['bans'])} stand: {shown}", "fishernet peer list; fishernet peer unban PEER")


def reachability(live: Live) -> Iterator[Finding]:
    """Whether others can dial us, as they have tried."""
    looks = [look for look in live["looks"] if any(each is not None for each in look["opens"])]
    if not live["looks"]:
        yield warn("reachability", "no member that could tell is connected", "fishernet peer list")
    elif not looks:
        yield ok("reachability", "not tried: members see us through a relay or at no address")
    elif reached := [look for look in looks if any(look["opens"])]:
        yield ok("reachability", f"{reached[0]['name']} reaches us at {reached[0]['address'].rsplit('/', 2)[0]}")
    else:
        port, seen = live["ports"][0], looks[0]["address"].rsplit("/", 2)[0]
        cause = (
            f"{looks[0]['name']} sees us at {seen} and port {port} does not open there: a firewall or NAT is between"
        )
        relays = f"{live['relays']} relays are known" if live["relays"] else "no relay is known"
        yield warn(
            "reachability",
            f"{cause}; {relays}",
            f"forward TCP port {port} to this machine, or name a relay in [network] relays",
        )


def clock(records: Mapping[MemberId, Sequence[Record]], me: MemberId, now_ms: int, live: Live) -> Iterator[Finding]:
    """Our clock against the members': by their answers, or by the times that their newest entries claim."""
    cure = "timedatectl set-ntp true; or: chronyc makestep"
    looks = live["looks"] if live else []
    if looks:
        offset = statistics.median(look["offset_ms"] for look in looks)
        error = max(look["rtt_ms"] for look in looks) / 2
        text = f"{abs(offset) / 1000:.1f} s {'behind' if offset > 0 else 'ahead of'} the median of {len(looks)} members"
        off = abs(offset) - error
        yield (
            fail("clock", text, cure) if off > _SKEW_MS[1] else warn("clock", text, cure) if off > _SKEW_MS[0] else
            ok("clock", f"within {(abs(offset) + error) / 1000:.2f} s of {len(looks)} members")
        )  # fmt: skip
        return
    newest = {m: max(r.entry.header.ts for r in found) for m, found in records.items() if m != me and found}
    ahead = {m: ts - now_ms for m, ts in newest.items() if ts - now_ms > _AHEAD_MS}
    if ahead and len(ahead) * 2 > len(newest):
        text = f"the newest entries of {len(ahead)} of {len(newest)} members are {max(ahead.values()) / 1000:.0f} s in the future"
        yield warn("clock", text, cure)
    elif newest:
        yield ok("clock", "no member's newest entry lies in the future; nobody could be asked")


def feeds(fold: Collective, me: MemberId, live: Live) -> Iterator[Finding]:
    """Whether all that is known to exist is here, and whose feed is forked."""
    names = {member.id: member.name for member in fold.charter.members} if fold.known else {}
    if live:
        behind = {
            m: f["known"] - f["size"] for m, f in live["feeds"].items() if f["known"] > f["size"] and not f["frozen"]
        }
        total = sum(behind.values())
        if total:
            worst = max(behind, key=lambda m: behind[m])
            cause = (
                f"{total} entries of {len(behind)} feeds are known and not here, most of {names.get(worst, worst[:12])}"
            )
            yield warn("sync", cause, "fishernet status; it goes on while somebody who has them is connected")
        else:
            yield ok("sync", f"{sum(fold.sizes.values())} entries of {len(fold.sizes)} feeds, nothing is missing")
    if me in fold.forked:
        yield fail(
            "fork", "this node's feed is proven forked and frozen for ever", "fishernet key revoke --recovery FILE"
        )
    others = [names.get(member, member[:12]) for member in fold.forked if member != me]
    if others:
        yield warn(
            "fork",
            f"proven forked: {', '.join(others)}",
            "fishernet fork show; fishernet collective amend --remove MEMBER",
        )
    if fold.double_votes:
        who = {names.get(vote.first.member, vote.first.member[:12]) for vote in fold.double_votes}
        yield warn("votes", f"voted twice in one attempt: {', '.join(sorted(who))}", "fishernet log")


def votes(fold: Collective, live: Live) -> Iterator[Finding]:
    """Whether a decision is stuck."""
    if live and (live["attempt"] or 0) >= _ATTEMPTS:
        cause = f"decision {fold.height} is in its attempt {live['attempt']}: voters are missing, slow, or disagree"
        yield warn("decision", cause, "fishernet status; fishernet log")
    elif fold.known:
        yield ok("decision", f"{len(fold.releases)} releases, {len(fold.pending())} contributions wait")


def versions(fold: Collective, me: MemberId, records: Mapping[MemberId, Sequence[Record]]) -> Iterator[Finding]:
    """What the members say they run, by their last start."""
    found: dict[MemberId, Mapping[str, str]] = {}
    for member, newest in records.items():
        for record in newest:
            if record.entry.header.type == "node.started" and record.body is not None:
                body: Any = record.body.value()
                found[member] = dict(body["versions"])
    mine = found.pop(me, None)
    if mine is None or not found or not fold.known:
        return
    names = {member.id: member.name for member in fold.charter.members}
    for package in ("fishernet", "hivemind"):
        other = {
            names.get(m, m[:12]): theirs[package]
            for m, theirs in found.items()
            if theirs.get(package) not in {None, mine.get(package)}
        }
        if other:
            shown = ", ".join(f"{name} {version[:32]}" for name, version in sorted(other.items())[:6])
            cause = f"{package} {mine.get(package)} here, others: {shown}"
            yield warn("versions", cause, "update the older ones: pip install --upgrade fishernet")
            return
    yield ok("versions", f"fishernet {mine.get('fishernet')} at all {len(found) + 1} members that said so")
