"""Commands about peers: list them, add an address, ban and unban; the same in a running node and on a stopped one.

A peer is named by its peer id, a member by its id, the first digits of it, or its name in the charter. Offline the address
goes into node.toml and the ban into the ban book, where the next start finds them. Invariant: nothing here writes an event;
an operator's ban is this node's own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from node import config
from node.errors import NotAllowed
from node.guarding.bans import Ban
from node.guarding.guard import Guard
from node.session import Session
from protocol import addresses
from protocol.canon import Json
from protocol.errors import Malformed
from protocol.ids import MemberId, PeerId

Args = Mapping[str, Json]
_SHORTEST: Final = 8  # digits of a member id


async def list_(session: Session, _args: Args) -> Json:
    """{"members": [...], "others": [...], "configured": [...], "bans": [...]}; without a daemon nobody is connected."""
    daemon, seat = session.daemon, session.need_seat()
    linked = daemon.linked() if daemon else {}
    speaks = {m: p for p, m in seat.fold.peers.items()}
    members: list[Json] = []
    for member in seat.fold.charter.members if seat.fold.known else ():
        mine = [peer for peer, who in linked.items() if who == member.id]
        if member.id != seat.me:
            peer = mine[0] if mine else speaks.get(member.id)
            up = bool(mine) or peer in linked
            members.append({"name": member.name, "member": member.id, "peer": peer, "connected": up})
    shown = {each["peer"] for each in members if isinstance(each, dict)}
    return {
        "running": daemon is not None,
        "members": members,
        "others": [{"peer": peer, "member": who} for peer, who in linked.items() if peer not in shown],
        "configured": list(session.config.network.peers),
        "bans": [_shown(session, ban) for ban in (daemon.bans() if daemon else _book(session).bans())],
    }


async def add(session: Session, args: Args) -> Json:
    """Keep an address in node.toml, and dial it now where a daemon runs."""
    full = str(args.get("address"))
    _, peer = addresses.split(full)
    peers = (*session.config.network.peers, full)
    _configure(session, tuple(dict.fromkeys(peers)))
    if session.daemon is not None:
        session.daemon.add_peer(full)
    return {"address": full, "peer": peer, "dialled": session.daemon is not None}


async def remove(session: Session, args: Args) -> Json:
    """Take every address of a peer out of node.toml, and hang up."""
    peer, _ = _who(session, str(args.get("peer")))
    held = session.config.network.peers
    left = tuple(full for full in held if addresses.split(full)[1] != peer)
    if peer is None or left == held:
        raise NotAllowed("couldn't remove peer: node.toml has no address of it", hint="fishernet peer list")
    _configure(session, left)
    if session.daemon is not None:
        await session.daemon.drop_peer(peer)
    return {"peer": peer, "removed": len(held) - len(left)}


async def ban(session: Session, args: Args) -> Json:
    """Have nothing to do with a peer or member for `seconds`, or until it is lifted."""
    given, why = args.get("seconds"), str(args.get("why") or "by the operator")
    seconds = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else None
    peer, member = _who(session, str(args.get("who")))
    who = member or peer
    if who is None or member == session.member:
        raise NotAllowed("couldn't ban: that is this node itself")
    made = session.daemon.ban(who, seconds, why) if session.daemon else _book(session).ban(who, seconds, why)
    return _shown(session, made)


async def unban(session: Session, args: Args) -> Json:
    """Lift the bans of a peer, or of a member and its peers (also those that the guard made)."""
    peer, member = _who(session, str(args.get("who")))
    book = session.daemon or _book(session)
    wanted = [b.who for b in book.bans() if (peer and b.peer == peer) or (member and b.member == member)]
    lifted = [who for who in wanted if book.unban(who)]
    if not lifted:
        raise NotAllowed("couldn't lift ban: there is none of this peer or member", hint="fishernet peer list")
    return {"lifted": list(lifted)}


def _configure(session: Session, peers: tuple[str, ...]) -> None:
    """Write the addresses into node.toml; what else changed there waits for a reload."""
    config.update(session.home.config_file, "network", "peers", peers)
    network = session.config.network.model_copy(update={"peers": peers})
    session.config = session.config.model_copy(update={"network": network})


def _book(session: Session) -> Guard:
    """The bans of a node that does not run."""
    return Guard(book=session.home.bans)


def _who(session: Session, text: str) -> tuple[PeerId | None, MemberId | None]:
    """The peer or the member that is meant.

    Raises:
        Malformed: nobody, or more than one.
    """
    fold = session.need_seat().fold
    known = {m: "" for m in fold.ever_members()} if fold.known else {}
    known |= {m.id: m.name for m in fold.charter.members} if fold.known else {}
    if text.startswith("12D3KooW"):
        return PeerId(text), None  # the book checks the rest
    found = [m for m, name in known.items() if text in {name, m} or (len(text) >= _SHORTEST and m.startswith(text))]
    if len(found) == 1:
        return None, found[0]
    if len(text) == 64 and not found:
        return None, MemberId(text)
    why = f"{len(found)} members are called so" if found else "no member has this name or id, and it is no peer id"
    raise Malformed(f"couldn't find {text[:64]!r}: {why}")


def _shown(session: Session, ban: Ban) -> dict[str, Json]:
    fold = session.need_seat().fold
    seat = fold.charter.member(ban.member) if fold.known and ban.member else None
    return {
        "who": ban.who,
        "peer": ban.peer,
        "member": ban.member,
        "name": seat.name if seat else None,
        "by": ban.by,
        "code": ban.code,
        "why": ban.why,
        "since": round(ban.since * 1000),
        "until": None if ban.until is None else round(ban.until * 1000),
    }


COMMANDS: Final = {"peer.list": list_, "peer.add": add, "peer.remove": remove, "peer.ban": ban, "peer.unban": unban}
READING: Final = frozenset(COMMANDS)  # none of them needs the key or writes into the ledger
