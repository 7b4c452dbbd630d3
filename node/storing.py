"""Commands about room for blobs: what lies here and why, and dropping what may go; in a running node and on a stopped one.

A stopped node can ask nobody who else holds a blob, so all of its blobs count as rare. Invariant: nothing here writes an
event, and what a live release, a vote or a pending contribution needs is not dropped by any option.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Final

from node.collective.keeping import Keeper
from node.session import Session
from node.syncing.blobs import BlobStore
from protocol.canon import Json
from protocol.ids import Digest

Args = Mapping[str, Json]


async def show(session: Session, _args: Args) -> Json:
    """See `node.collective.keeping.Keeper.shown`."""
    return await (session.daemon.storage() if session.daemon is not None else _keeper(session).shown())


async def prune(session: Session, args: Args) -> Json:
    """Drop (or with `dry` name) what may go; `rare`: also what only this node is known to hold."""
    rare, dry = bool(args.get("rare")), bool(args.get("dry"))
    if session.daemon is not None:
        return await session.daemon.prune(rare=rare, dry=dry)
    plan = await _keeper(session).prune(rare=rare, dry=dry)
    return {**plan.to_json(), "dropped": not dry, "asked": False}


def _keeper(session: Session) -> Keeper:
    seat = session.need_seat()
    return Keeper(
        seat, BlobStore(session.home.blobs), lambda: session.config.storage, _nobody_answers, now_ms=seat.now_ms
    )


async def _nobody_answers(digests: Collection[Digest]) -> Mapping[Digest, int | None]:
    await asyncio.sleep(0)
    return dict.fromkeys(digests)


COMMANDS: Final = {"storage.show": show, "storage.prune": prune}
READING: Final = frozenset({"storage.show"})
