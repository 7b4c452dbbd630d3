"""`fishernet forget`: ask, wait until a release is without it, and write the proof. See `node.collective.forgetting`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.bundles import show, show_descendants, verify
from node.cli.options import Invocation, accepts_common, here, printable, table_of
from protocol.canon import Json
from protocol.errors import Refused

if TYPE_CHECKING:
    from node.home import Home

_LOOK_S = 0.5
_DAY_MS = 86_400_000


@click.command()
@click.argument("target", metavar="[MEMBER|CONTRIBUTION]", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what it would come to; nothing is written.")
@click.option(
    "--days",
    type=click.IntRange(0, 3650),
    default=30,
    show_default=True,
    help="For how long whoever pinned an old release is still served with it.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Where to write the proof."
)
@click.option(
    "--erase-blobs", is_flag=True, help="Of one's own: every holder deletes them too, once a release is without them."
)
@click.option(
    "--no-wait", is_flag=True, help="Ask, and do not wait; the same command later waits and writes the proof."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--verify",
    "bundle",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="BUNDLE",
    help="Check a proof instead (as verify-bundle).",
)
@accepts_common
def forget(
    target: str | None,
    dry_run: bool,
    days: int,
    out: Path | None,
    erase_blobs: bool,
    no_wait: bool,
    yes: bool,
    bundle: Path | None,
) -> int:
    """Have contributions left out of every later release, and prove it.

    Named is a member (by name or id), one contribution (name/number, or 8 digits of its event). One's own go at one's own
    word; another member's when a quorum approves (fishernet collective approve, or this command there). The next release is
    to the byte what it would be without them. What others were trained to from a view that had them in it stays, and is
    listed: removal from a merge is not unlearning.
    """
    if bundle is not None:
        return verify(bundle, None, None)
    if target is None:
        raise click.UsageError("say what: a member, or a contribution")
    invocation = here()
    home = invocation.home()
    plan = _planned(home, target)
    if dry_run:
        invocation.answer(plan, _show_plan)
        return 0
    named = [str(each["event"]) for each in table_of(plan)["asked"]]
    if table_of(plan)["stage"] != "done" and not yes:
        if invocation.json or not sys.stdin.isatty():
            raise Refused("couldn't forget: nobody can be asked here; say --yes, or --dry-run to look first")
        _show_plan(None, plan)
        click.confirm("Forget them?", abort=True, err=True)
    told: dict[str, Json] = {"asked": list(named)}
    if table_of(plan)["stage"] != "done":
        deadline = time.time_ns() // 1_000_000 + days * _DAY_MS
        told |= table_of(invocation.ask("forget", events=list(named), deadline=deadline, destroy=erase_blobs or None))
    state = table_of(invocation.ask("forget.state", events=list(named)))
    if state["stage"] != "done" and not no_wait:
        state = _wait(invocation, named, _say(invocation), _running(home))
    told["state"] = dict(state)
    if state["stage"] == "done":
        target_file = (out or Path(f"forgotten-{str(state['release'])[:16]}.forgotten.json")).absolute()
        made = table_of(invocation.ask("forget.bundle", events=list(named), out=str(target_file)))
        told["bundle"] = dict(made)
    invocation.answer(told, _show_done)
    return 0 if state["stage"] == "done" or no_wait else 2


def _planned(home: Home, target: str) -> dict[str, Any]:
    """What it would come to, from the ledger and the blobs of this home."""
    from ledger.store import Store
    from node.audits import bundling, record
    from node.audits.releases import Blobs
    from node.cli.proofs import collective_of
    from node.collective import forgetting
    from node.collective.replay import Replay

    with Store.open(home.ledger_db, writer=False) as store:
        known = record.read(store, collective_of(home))
    asked = forgetting.targets(known.fold, target)
    blobs = Blobs(home.blobs)
    planned = bundling.plan(known, Replay(known.fold, blobs.read), blobs, asked)
    name = known.fold.charter.name_of
    state = forgetting.state(known.fold, {c.event for c in asked})
    return {
        "stage": state["stage"],
        "text": state["text"],
        "quorum": known.fold.charter.quorum,
        "asked": [
            {"event": c.event, "name": name(known.fold.owner(c.member)), "number": c.number, "fate": known.fold.fate(c)}
            for c in asked
        ],
        "releases": [
            {"number": r.cut.number, "release": r.decision.digest, "model": r.cut.model, "without": r.model,
             "twice": r.twice, "later": len(r.later), "contributions": len(r.gone)}
            for r in planned.again
        ],
        "descendants": [{**d.to_json(), "name": name(known.fold.owner(d.member))} for d in planned.descendants],
    }  # fmt: skip


def _wait(
    invocation: Invocation, named: list[str], say: Callable[[str], None], running: Callable[[], bool]
) -> dict[str, Any]:
    """Ask how far it is until it is done; says what is waited for whenever that changes."""
    last = ""
    while True:
        state = dict(table_of(invocation.ask("forget.state", events=list(named))))
        text = str(state["text"]) + (f" ({state['hint']})" if state.get("hint") else "")
        if text != last:
            say(text)
            last = text
        if state["stage"] == "done":
            return state
        if not running():
            say("no daemon runs on this home, so nothing is decided here: fishernet up, then the same command again")
            return state
        time.sleep(_LOOK_S)


def _running(home: Home) -> Callable[[], bool]:
    from node import control

    return lambda: control.is_up(home)


def _say(invocation: Invocation) -> Callable[[str], None]:
    return (lambda _text: None) if invocation.json else (lambda text: click.echo(printable(text), err=True))


def _show_plan(_out: object, plan: Any) -> None:
    for each in plan["asked"]:
        click.echo(f"{printable(each['name'])}/{each['number']} ({each['fate']}), event {each['event'][:16]}")
    for each in plan["releases"]:
        again = f"model {each['without'][:16]}" if each["without"] else "cannot be merged here (blobs are missing)"
        click.echo(f"  release {each['number']} had {each['contributions']} of it; without: {again}; "
                   f"{each['later']} contributions came in with it or after it")  # fmt: skip
    show_descendants(plan["descendants"])
    click.echo(f"now: {plan['text']}; another member's contribution needs {plan['quorum']} approvals")
    click.echo("removal from a merge is not unlearning: what carries on from it stays until it is trained again")


def _show_done(_out: object, told: Any) -> None:
    for kind, word in (("requests", "asked"), ("proposals", "proposed"), ("approved", "approved")):
        for event in told.get(kind) or []:
            click.echo(f"{word}: event {event[:16]}")
    if (made := told.get("bundle")) is None:
        state = told["state"]
        click.echo(f"{state['text']}" + (f"; {state['hint']}" if state.get("hint") else ""))
        return
    show(None, made["shown"])
    click.echo(
        f"wrote {made['file']} ({made['bytes']} bytes); anybody checks it: fishernet verify-bundle {made['file']}"
    )
