"""Checks of one home: ports, permissions, keys, configuration, databases, base model, what a restore or an eraser left.

Works beside a running daemon and without one; reads only. Knows no peer.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from node.config import literal
from node.doctor.finding import Finding, fail, ok, warn
from node.errors import NodeError
from node.errors_network import PortTaken
from node.home import Home, model_cache
from node.keys import identity
from node.network import endpoints
from node.sections import NodeConfig
from protocol.errors import FishernetError

_WAL: Final = 256 << 20


def ports(config: NodeConfig, *, running: bool) -> list[Finding]:
    """Whether the node can listen where it is told to; a running one does."""
    if running:
        return [ok("ports", f"listening on {', '.join(config.network.listen)}")]
    found = []
    for address in config.network.listen:
        port = address.rsplit("/", 1)[1]
        try:
            endpoints.check_ports([address])
        except PortTaken as e:
            cure = f"ss -ltnp 'sport = :{port}'; or: fishernet config set network.listen {literal([_next(address)])}"
            found.append(fail("ports", str(e), cure))
    host, number = config.serve.host, config.serve.port
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if number:
                probe.bind((host, number))
        except (OSError, OverflowError) as e:
            cause = f"couldn't listen on {host} port {number} (the API): {getattr(e, 'strerror', e)}"
            found.append(
                fail("ports", cause, f"ss -ltnp 'sport = :{number}'; or: fishernet config set serve.port {number + 1}")
            )
    return found or [ok("ports", "free")]


def _next(address: str) -> str:
    head, port = address.rsplit("/", 1)
    return f"{head}/{int(port) + 1 if int(port) < 65535 else 4242}"


def permissions(home: Home) -> list[Finding]:
    """Whether somebody else can read keys, rows or the ledger."""
    open_ = [
        path
        for path in (home.path, home.keys, *home.keys.glob("**/*"), home.config_file, home.ledger_db, home.rows_db)
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    if open_:
        names = ", ".join(str(path) for path in open_[:4])
        return [fail("permissions", f"others can read {names}", f"chmod -R go-rwx {home.path}")]
    return [ok("permissions", "private")]


def keys(home: Home) -> list[Finding]:
    """Whether the keys are there, locked, and the recovery key offline."""
    try:
        member = identity.member_of(home)
        locked = identity.is_locked(home)
    except NodeError as e:
        return [fail("keys", str(e), e.hint or f"fishernet key restore FILE --home {home.path}")]
    found = [ok("keys", f"member {member[:12]}, {'locked by a passphrase' if locked else 'not locked'}")]
    if home.recovery_file.exists():
        cause = "the recovery key lies beside the keys it is to replace when they are lost or stolen"
        found.append(warn("recovery key", cause, f"mv {home.recovery_file} /media/offline/"))
    if home.next_keys.exists():
        found.append(warn("next keys", "keys wait for this node's seat to be given to them", "fishernet key show"))
    return found


def databases(home: Home) -> list[Finding]:
    """Whether ledger and rows are whole, and the write-ahead log is taken in."""
    found = []
    for name, path in (("ledger", home.ledger_db), ("rows", home.rows_db)):
        if not path.exists():
            continue
        damage = _damage(path)
        wal = Path(f"{path}-wal")
        size = wal.stat().st_size if wal.exists() else 0
        if damage:
            found.append(fail(name, f"{path.name} is damaged: {damage}", "fishernet restore FILE"))
        elif size > _WAL:
            cause = f"the write-ahead log has {size >> 20} MiB: a program that reads it keeps it from being taken in"
            found.append(warn(name, cause, f"fuser -v {wal}"))
        else:
            found.append(ok(name, f"whole, {path.stat().st_size >> 10} KiB, log {size >> 10} KiB"))
    if home.withheld_rows.exists():
        cause = "rows of a backup were put aside: rows of theirs were forgotten after it was made"
        cure = f"stop the node; mv {home.withheld_rows} {home.rows_db}; fishernet data forget --subject -; start it"
        found.append(warn("withheld rows", cause, cure))
    return found


def _damage(path: Path, limit_s: float = 1.5) -> str:
    """The first fault that SQLite finds, "" for none. A file too large for the time we have is looked at as far as it goes."""
    import time

    deadline = time.monotonic() + limit_s
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as database:
            database.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
            said = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as e:
        return "" if "interrupted" in str(e) else str(e)
    except sqlite3.Error as e:
        return str(e)
    return "" if said == "ok" else said


def base_model(wanted: str, name: str) -> list[Finding]:
    """Whether the base model with the digest `wanted` is in the cache, with the files it had when it came."""
    from contrib import models
    from contrib.errors import UnknownModel

    try:
        model = models.find(wanted, model_cache())
    except UnknownModel as e:
        return [fail("base model", f"{name} ({wanted[:12]}) is not here: {e}", f"fishernet model add {name}")]
    return [ok("base model", f"{model.name} ({model.digest[:12]})")]


def every(home: Home, config: NodeConfig, *, running: bool) -> Iterator[Finding]:
    """All checks of this file but the base model's, which needs the charter."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        lambda: ports(config, running=running),
        lambda: permissions(home),
        lambda: keys(home),
        lambda: databases(home),
    )
    for check in checks:
        try:
            yield from check()
        except (OSError, FishernetError) as e:
            yield fail("home", f"couldn't look: {e}", f"ls -la {home.path}")
