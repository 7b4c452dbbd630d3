"""What a node does when it is told to: one function for each command, the same offline and inside the daemon.

`run` asks the daemon of a home when one listens, else opens the home here. A function gets a `Session` and JSON arguments
and returns JSON (shapes: cli/render.py). Invariant: whatever a command changes is one signed event, or a file of this node.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from ledger import charter as charters
from ledger import events
from ledger.amending import amended, check_keys
from ledger.charter import Member
from node import config, control, peering, storing
from node import session as sessions
from node.audits import auditing
from node.collective import charters as wishes
from node.collective import forgetting, reports, succeeding
from node.collective.seat import Seat, now_ms
from node.data import carrying, curating, erasing, granting, residual, taking
from node.errors import DaemonDown, NoCollective, NotAllowed
from node.home import Home
from node.ports import Running
from node.session import Session
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import CollectiveId, EventId, as_hex

Args = Mapping[str, Json]
Command = Callable[[Session, Args], Awaitable[Json]]


def run(
    home: Home,
    name: str,
    args: Args,
    *,
    passphrase: Callable[[], str | None],
    told: Callable[[str, float], None] = lambda _stage, _part: None,
) -> Json:
    """Do `name` on `home`: through its daemon when that runs, else here; then `told` hears how far it is.

    Raises:
        FishernetError: what the command raises; DaemonDown for one that only a daemon can do.
    """
    if name == "audit":
        return _audit(home, args)
    command = COMMANDS.get(name)
    if command is None:
        raise Refused(f"couldn't do {name!r}: no such command")
    if control.is_up(home):
        return control.call(home, name, args, timeout=None)
    if name in LIVE:
        raise DaemonDown(
            f"couldn't do {name}: no daemon runs on {home.path}", hint=f"start it with: fishernet up --home {home.path}"
        )
    if name in READING:
        with sessions.reading(home) as session:
            return asyncio.run(_call(command, session, args))
    with sessions.writing(home, passphrase()) as session:
        session.told = told
        return asyncio.run(_call(command, session, args))


async def dispatch(session: Session, name: str, args: Args) -> Json:
    """Do `name` inside the daemon (raises Refused for an unknown one)."""
    command = COMMANDS.get(name)
    if command is None:
        raise Refused(f"couldn't do {name!r}: no such command")
    return await command(session, args)


async def _call(command: Command, session: Session, args: Args) -> Json:
    return await command(session, args)


# -- collective ------------------------------------------------------------------------------------------------------
async def _create(session: Session, args: Args) -> Json:
    if session.config.node.collective:
        raise NotAllowed(
            "couldn't create collective: this node belongs to one already", hint="use another --home for another one"
        )
    if session.identity is None:
        raise NotAllowed("couldn't create collective: the key is not open")
    name = str(args.get("model") or session.config.node.model)
    if not name:
        raise NotAllowed("couldn't create collective: no base model is named", hint="--model smollm2-135m")
    model = await asyncio.to_thread(session.find_model, name)
    founder = Member(
        id=session.member,
        name=session.config.node.name,
        role="contributor",
        organisation=str(args.get("organisation") or ""),
    )
    charter = wishes.draft(args, model, founder)
    collective = charters.collective_id(charter)
    key = session.identity.key
    seat = Seat(session.home, session.member, session.store, collective, key=key)
    seat.append(events.Genesis(charter=charter.to_json()))
    seat.append(events.PeerBound(binding=dict(session.identity.binding)))
    seat.append(session.identity.bound(collective))
    config.update(session.home.config_file, "node", "collective", collective)
    session.open_seat()
    session.commit_data()
    return reports.charter(session.need_seat().fold)


async def _show(session: Session, _args: Args) -> Json:
    return reports.charter(session.need_seat().fold)


async def _invite(session: Session, args: Args) -> Json:
    member = wishes.seat(args)
    as_hex(member["id"], "member id")
    return _propose(session, [{"op": "add", "member": member}])


async def _amend(session: Session, args: Args) -> Json:
    found = wishes.changes(session.need_seat().fold.charter, args)
    if not found:
        raise NotAllowed("couldn't amend charter: nothing would change")
    return _propose(session, found)


def _propose(session: Session, changes: list[dict[str, Json]]) -> Json:
    seat = _voter(session)
    fold = seat.fold
    texts, found = [], []
    for change in changes:
        amended(fold.charter, change)
        check_keys(fold.ever_members(), change)
        texts.append(reports.describe(fold, change))
        found.append(seat.append(events.AmendmentProposed(change=change)).entry.event)
    others = fold.charter.quorum - 1
    need = f"; {others} more approval{'s' if others > 1 else ''} needed (collective approve)" if others else ""
    return {"text": "proposed to " + ", and to ".join(texts) + need, "proposals": list(found), "proposal": found[0]}


async def _approve(session: Session, args: Args) -> Json:
    seat = _voter(session)
    wanted = str(args.get("proposal"))
    found = [e for e in seat.fold.asked if e.startswith(wanted)]
    if len(wanted) < 8 or len(found) != 1:
        raise NotAllowed(
            f"couldn't approve {wanted[:12]}: {len(found)} open amendments have this id",
            hint="fishernet collective requests",
        )
    seat.append(events.AmendmentApproved(proposal=EventId(found[0])))
    return {"text": "approved: " + reports.describe(seat.fold, seat.fold.asked[found[0]].change), "proposal": found[0]}


async def _join(session: Session, args: Args) -> Json:
    wanted = as_hex(args.get("collective"), "collective id")
    if session.config.node.collective not in {"", wanted}:
        raise NotAllowed(
            "couldn't join collective: this node belongs to another one", hint="use another --home for another one"
        )
    peers = args.get("peers")
    known = [*session.config.network.peers, *(str(p) for p in peers)] if isinstance(peers, list) else []
    if known:
        config.update(session.home.config_file, "network", "peers", tuple(dict.fromkeys(known)))
    config.update(session.home.config_file, "node", "collective", wanted)
    return {
        "text": "asking to join; start the node with: fishernet up. A member admits you with: "
        f"fishernet collective invite {session.member} --name {session.config.node.name!r}",
        "collective": wanted,
        "member": session.member,
    }


async def _requests(session: Session, _args: Args) -> Json:
    seat = session.need_seat()
    asking: list[Json] = list(session.daemon.asking()) if session.daemon else []
    return {"requests": asking, "proposals": reports.proposals(seat.fold)}


async def _give_seat(session: Session, args: Args) -> Json:
    seat = session.need_seat()
    if not seat.fold.known or seat.fold.charter.member(seat.me) is None:
        raise NotAllowed(
            "couldn't ask for succession: this node has no seat", hint="hand the statement to a member that has"
        )
    return succeeding.propose(seat, args.get("statement"))


def _voter(session: Session) -> Seat:
    seat = session.need_seat()
    mine = seat.fold.charter.member(seat.me)
    if mine is None or not mine.votes:
        raise NotAllowed("couldn't change the charter: this node has no voting seat")
    return seat


# -- what is -----------------------------------------------------------------------------------------------------------
async def _status(session: Session, _args: Args) -> Json:
    found: dict[str, Json] = {"node": session.config.node.name, "member": session.member, "running": False}
    if session.seat is not None:
        found |= reports.status(session.seat)
        found |= erasing.status(session, now_ms())
    if session.daemon is not None:
        found |= session.daemon.status()
    if (warning := session.store.sqlite_warning()) is not None:
        found["sqlite"] = warning
    if session.home.recovery_file.exists():
        found["recovery_file"] = str(session.home.recovery_file)
    return found


async def _log(session: Session, args: Args) -> Json:
    limit = args.get("limit")
    return reports.log(session.need_seat(), limit if isinstance(limit, int) else None)


async def _train(session: Session, args: Args) -> Json:
    steps = args.get("steps")
    return await _running(session, "train").train_now(steps if isinstance(steps, int) else None)


async def _measure(session: Session, _args: Args) -> Json:
    return await _running(session, "measure").measure()


async def _reload(session: Session, _args: Args) -> Json:
    return _running(session, "reload", hint="it reads node.toml when it starts: fishernet up").reload()


async def _look(session: Session, _args: Args) -> Json:
    return await _running(session, "ask members").look()


async def _restart(session: Session, _args: Args) -> Json:
    _running(session, "restart").restart()
    return {"restarts": True}


def _running(session: Session, verb: str, *, hint: str = "fishernet up") -> Running:
    """The daemon that works on this home (raises DaemonDown where none does)."""
    if session.daemon is None:
        raise DaemonDown(f"couldn't {verb}: no daemon runs", hint=hint)
    return session.daemon


def _audit(home: Home, args: Args) -> Json:
    collective = str(args.get("collective") or "")
    if not collective:
        collective = home.read_config().node.collective
    if not collective:
        raise NoCollective("couldn't audit: this node has no collective")
    observed = args.get("observed")
    options = auditing.Options(
        observed=observed if isinstance(observed, dict) else None,
        now_ms=now_ms(),
        strict=args.get("strict") is True,
        report=args.get("report") is True,
    )
    return auditing.run(home.ledger_db, home.blobs, CollectiveId(as_hex(collective)), options)


# -- forgetting --------------------------------------------------------------------------------------------------------
async def _forget(session: Session, args: Args) -> Json:
    deadline = args.get("deadline")
    rest = residual.nothing()  # what was learnt and not sent yet may come from the same rows
    until = deadline if isinstance(deadline, int) else now_ms() + erasing.DEADLINE_MS
    destroy = args.get("destroy") is True
    told = forgetting.ask(session.need_seat(), _events(args), until, destroy=destroy, state=rest)
    if told["requests"]:
        residual.forget_moments(session.home.runs)  # nor may what Adam knew of them carry on
    if session.daemon is None:
        session.eraser().answer()  # the daemon does it after every change
    return told


async def _forget_state(session: Session, args: Args) -> Json:
    return forgetting.state(session.need_seat().fold, _events(args))


async def _forget_bundle(session: Session, args: Args) -> Json:
    from node.audits import bundle_words, bundling
    from node.files import write_new

    if session.identity is None:
        raise NotAllowed("couldn't make bundle: the key is not open")
    seat, home, out = session.need_seat(), session.home, Path(str(args.get("out")))
    session.store.heads(seat.collective)  # signs our own newest head, so that the file can show all of our feed
    make = functools.partial(bundling.make, key=session.identity.key, ts=now_ms())
    data, checked = await asyncio.to_thread(make, home.ledger_db, home.blobs, seat.collective, _events(args))
    await asyncio.to_thread(write_new, out, data, mode=0o644)
    return {"file": str(out), "bytes": len(data), "shown": bundle_words.described(checked)}


def _events(args: Args) -> list[EventId]:
    given = args.get("events")
    return [EventId(as_hex(each, "event")) for each in given] if isinstance(given, list) else []


COMMANDS: Final[Mapping[str, Command]] = {
    "collective.create": _create,
    "collective.show": _show,
    "collective.invite": _invite,
    "collective.approve": _approve,
    "collective.join": _join,
    "collective.amend": _amend,
    "collective.requests": _requests,
    "data.add": curating.add,
    "data.list": curating.list_,
    "data.forget": curating.forget,
    "data.seal": curating.seal,
    **granting.COMMANDS,
    **carrying.COMMANDS,
    **taking.COMMANDS,
    **peering.COMMANDS,
    **storing.COMMANDS,
    "config.reload": _reload,
    "restart": _restart,
    "doctor.look": _look,
    "forget": _forget,
    "forget.state": _forget_state,
    "forget.bundle": _forget_bundle,
    "key.propose": _give_seat,
    "status": _status,
    "log": _log,
    "train.now": _train,
    "measure": _measure,
}
READING: Final = frozenset(
    {
        "collective.show",
        "collective.requests",
        "data.list",
        "status",
        "log",
        "forget.state",
        *granting.READING,
        *carrying.READING,
        *peering.READING,
        *storing.READING,
    }
)
LIVE: Final = frozenset({"train.now", "measure", "config.reload", "restart", "doctor.look"})
