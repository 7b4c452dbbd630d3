"""What `fishernet observe` does: the observer process fetches into a directory, then the audit runs on that directory.

The observer is its own process because py-libp2p and hivemind cannot live in one. Trust: what it fetched is as untrusted
as any file; the audit verifies all of it again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.cli.options import Invocation, progress_console, table_of
from node.cli.progress import working
from node.control import error_from
from node.errors import NodeError
from protocol.canon import Json
from protocol.ids import as_hex

if TYPE_CHECKING:
    from node.home import Home

_WORSE = ("clean", "could-not-check", "findings")
_DEADLINE = 1800.0  # seconds for a whole fetch


def fetch_and_audit(invocation: Invocation, collective: str, into: Path | None, addresses: Sequence[str]) -> Json:
    """Fetch `collective` from `addresses` into `into` (a passing directory when None) and audit it.

    The worse of both verdicts counts: what the observer could not confirm is not clean, whatever the audit finds.

    Raises:
        FishernetError: what the audit raised, or the observer could not even start.
    """
    from node import commands
    from node.home import Home

    as_hex(collective, "collective id")
    home = invocation.home()
    with ExitStack() as stack:
        if into is None:
            into = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fishernet-observed-")))
        target = Home(path=into.absolute())
        with working("fetching feeds and blobs", progress_console()):
            observed = _fetch(home, target, collective, addresses)
        if not target.ledger_db.is_file():
            raise NodeError(f"couldn't observe {collective[:12]}: {observed.get('cause') or 'nothing was fetched'}")
        args: dict[str, Json] = {"collective": collective, "observed": observed}
        result = dict(table_of(commands.run(target, "audit", args, passphrase=lambda: None)))
    seen = {"clean": "clean", "fault": "findings"}.get(str(observed.get("verdict")), "could-not-check")
    unchecked = [str(each) for each in result.get("unchecked") or []]
    unchecked += [f"{node['address']}: {node['error']}" for node in observed.get("nodes") or [] if node.get("error")]
    unchecked += [str(observed["cause"])] if observed.get("cause") else []
    verdict = max(str(result.get("verdict")), seen, key=_WORSE.index)
    return {**result, "verdict": verdict, "unchecked": unchecked, "observed": dict(observed)}


def _fetch(home: Home, target: Home, collective: str, addresses: Sequence[str]) -> Mapping[str, Any]:
    """Run the observer with the identity of `home`, into `target`; its report."""
    command = [sys.executable, "-m", "node.syncing.observer", "--home", str(home.path), "--into", str(target.path)]
    command += ["--collective", collective, *addresses]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_DEADLINE)
    except subprocess.TimeoutExpired:
        raise NodeError(f"couldn't observe {collective[:12]}: no end after {_DEADLINE / 60:.0f} minutes") from None
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = None
    if isinstance(report, dict) and isinstance(report.get("error"), dict):
        raise error_from(report["error"])
    if isinstance(report, dict) and "verdict" in report:
        return report
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {done.returncode}"]
    if missing := re.search(r"No module named '(libp2p|trio|multiaddr)", lines[-1]):
        raise ModuleNotFoundError(lines[-1], name=missing[1])
    raise NodeError(f"couldn't observe {collective[:12]}: {lines[-1]}")
