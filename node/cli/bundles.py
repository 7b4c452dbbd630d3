"""`fishernet verify-bundle`: what a proof of forgetting shows, offline. Needs PyNaCl and the file; numpy with --blobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.options import accepts_common, here, printable, reading

_WORDS = {
    "view": "its view had it",
    "unsent-rest": "what was learnt before and not sent may be in it",
    "view-unknown": "the view it began with could not be identified",
    "card-missing": "its card was not at hand",
}


@click.command("verify-bundle")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--collective", metavar="ID", help="It must be of this collective.")
@click.option(
    "--blobs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Merge both releases again from the contributions in this folder.",
)
@accepts_common
def verify_bundle(file: Path, collective: str | None, blobs: Path | None) -> int:
    """Check a proof that contributions were forgotten, offline. Ends with 1 when it does not hold.

    Needs no home, no ledger and no network. It shows which releases had them, that the quorum of the charter decided one
    without them, and that no feed was rewritten in between. What only its maker vouches for is said; with --blobs registers,
    models and cards are repeated too, and it ends with 2 when some of them are not in the folder.
    """
    return verify(file, collective, blobs)


def verify(file: Path, collective: str | None, blobs: Path | None) -> int:
    """Check a file and say what it shows; the exit code."""
    from ledger import bundle, bundle_check
    from node.audits import bundle_words
    from protocol.ids import CollectiveId, as_hex

    with file.open("rb") as opened:
        data = opened.read(bundle.MAX_FILE + 1)
    wanted = CollectiveId(as_hex(collective, "collective id")) if collective else None
    with reading(file, "a proof that something was forgotten"):
        decoded = bundle.decode(data)
    checked = bundle_check.check(decoded, wanted)
    told = bundle_words.described(checked)
    code = 0
    if blobs is not None:
        from node.audits import bundle_blobs
        from node.audits.releases import Blobs

        again = bundle_blobs.repeat(checked, Blobs(blobs).read)
        told["repeated"] = {
            "releases": list(again.releases),
            "without": list(again.without),
            "views": again.views,
            "missing": list(again.missing),
        }
        code = 2 if again.missing else 0
    here().answer(told, show)
    return code


def show(_out: object, told: Any) -> None:
    """The same for people."""
    click.echo(f"the bundle holds: collective {printable(told['name'])} ({told['collective']})")
    new, old = told["new"], told["old"]
    for each in told["asked"]:
        where = ", ".join(map(str, each["was_in"])) or "none (it waited)"
        why = "its author's request" if each["reason"] == "erased" else "a decision of the collective"
        click.echo(f"  {printable(each['name'])}/{each['number']} was in releases {where}; left out by {why}")
    click.echo(f"  release {new['number']} is without it: {new['release']}, decided by a quorum of {new['quorum']}")
    if old is not None:
        click.echo(f"  the release before it: {old['number']}, {old['release']}")
    click.echo(
        f"  {told['entries']} entries under the signed heads of {told['feeds']} feeds, none rewritten in between"
    )
    click.echo(f"the word of its maker {told['maker'][:12]}:")
    for each in told["releases"]:
        again = each["without"] or "could not be merged again"
        click.echo(
            f"  release {each['number']} without it would be model {again}" + ("" if each["twice"] else " (one way)")
        )
    show_descendants(told["descendants"])
    if (again := told.get("repeated")) is not None:
        numbers = ", ".join(map(str, again["releases"])) or "none"
        click.echo(
            f"repeated from blobs: releases {numbers}; {again['views']} cards; {len(again['missing'])} blobs missing"
        )
    click.echo(told["statement"])


def show_descendants(rows: Any) -> None:
    """Who was trained on what had it in it."""
    click.echo(f"  later contributions that carry on from it: {len(rows) or 'none'}")
    for each in rows:
        verb = "contains" if each["certainty"] == "contains" else "may contain"
        click.echo(f"    {printable(each['name'])}/{each['number']} {verb} something of it: {_WORDS[each['why']]}")
