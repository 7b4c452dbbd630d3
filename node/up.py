"""`fishernet up`: opens a home with its keys and its ledger, and runs the daemon on it until a signal or a fatal error.

Invariant: one process works on a home; the passphrase is in no environment of a child.
"""

from __future__ import annotations

import logging
import os

import uvloop

from ledger.store import Store
from node.backups import restoring
from node.collective import succeeding
from node.collective.seat import Seat
from node.daemon import Daemon
from node.errors import NoCollective
from node.home import Home
from node.keys import identity as identities
from node.logs import Logs
from node.session import Session, row_key
from protocol.ids import CollectiveId

log = logging.getLogger("fishernet.daemon")


def main(home: Home, passphrase: str | None, *, accept_fork_risk: bool = False) -> None:
    """Run the node of `home` until SIGTERM or SIGINT.

    Raises:
        HomeBusy, StoreLocked: another process works on the home.
        NoCollective: there is none to run yet.
        Fatal kinds: what ended the daemon.
    """
    logs = Logs(home.path)
    while _life(home, passphrase, accept_fork_risk, logs):
        log.info("event=again")


def _life(home: Home, passphrase: str | None, accept_fork_risk: bool, logs: Logs) -> bool:
    """From a start to a stop; whether the daemon is to start again, with what a restore has left for it."""
    with home.lock():
        restoring.take_staged(home)
        logs.turn(home.read_config().log)
        return _run_locked(home, passphrase, accept_fork_risk, logs)


def _run_locked(home: Home, passphrase: str | None, accept_fork_risk: bool, logs: Logs) -> bool:
    config = home.read_config()
    with Store.open(home.ledger_db) as store:
        if home.next_keys.exists() and config.node.collective:
            told = Seat(home, identities.member_of(home), store, CollectiveId(config.node.collective))
            if (member := succeeding.adopt(home, told.fold)) is not None:
                log.warning("event=keys-changed member=%s", member[:12])
        identity = home.unlock(passphrase)
        if config.ledger.post_quantum and identity.post_quantum is None:
            identities.add_post_quantum(home, passphrase if identities.is_locked(home) else None)
            identity = home.unlock(passphrase)
        session = Session(
            home=home,
            config=config,
            store=store,
            member=identity.member,
            identity=identity,
            row_key=row_key(home, passphrase),
        )
        session.rows_key()  # a wrong passphrase is said now, not at the first run
        os.environ.pop("FISHERNET_PASSPHRASE", None)  # no child inherits it: one of them reads what strangers send
        session.open_seat()
        if session.seat is None:
            raise NoCollective("couldn't start: this node has no collective yet")
        try:
            return uvloop.run(_run(session, accept_fork_risk, logs))
        except BaseExceptionGroup as group:
            raise _first(group) from group


async def _run(session: Session, accept_fork_risk: bool, logs: Logs) -> bool:
    daemon = Daemon(session, accept_fork_risk=accept_fork_risk, logs=logs)
    await daemon.run()
    return daemon.again


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the daemon, out of the groups that carried it."""
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return group
