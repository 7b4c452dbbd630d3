"""`fishernet collective`: create | show | invite | approve | join | amend | requests. Every change is voted on."""

from __future__ import annotations

import json
from pathlib import Path

import click

from node.cli import completing
from node.cli.options import accepts_common, here
from protocol.canon import Json

_ROLE = click.option(
    "--role",
    type=click.Choice(["contributor", "endorser", "auditor"]),
    default="contributor",
    show_default=True,
    help="A contributor trains and votes, an endorser votes, an auditor reads.",
)
_PPM = 1_000_000


@click.group()
@accepts_common
def collective() -> None:
    """Create, join and change a collective."""


@collective.command()
@click.option("--name", required=True, help="A name for people.")
@click.option(
    "--model",
    shell_complete=completing.models,
    help="Base model by name or digest.  [default: [node] model of the configuration]",
)
@click.option("--rank", type=click.IntRange(1, 1024), help="Rank of the adapter.  [default: 16]")
@click.option("--alpha", type=click.IntRange(1, 4096), help="Scale of the adapter, alpha/rank.  [default: the rank]")
@click.option("--target", "targets", multiple=True, help="Adapted module; repeat it.  [default: q_proj, v_proj]")
@click.option(
    "--preset",
    type=click.Choice(["lan", "balanced", "slow-link"]),
    help="Density and bits for a link: about 1/8, 1/30 or 1/100 of a dense adapter's bytes.  [default: lan]",
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    help="Part of the coordinates sent.  [default: the preset's, 0.2]",
)
@click.option(
    "--bits",
    "--value-bits",
    "bits",
    type=click.Choice(["1", "2", "3", "4", "8"]),
    help="Bits of a sent value; 1 is the sign alone, times its block's scale.  [default: the preset's, 8]",
)
@click.option(
    "--recipe",
    shell_complete=completing.recipes,
    help="How contributions are merged; `fishernet recipes` lists it.  [default: contributor-mean/1]",
)
@click.option(
    "--tolerance", type=click.FloatRange(0), help="Rise of a voter's loss still accepted, nats.  [default: 0.02]"
)
@click.option("--held-out-min", type=click.IntRange(1), help="Rows a voter must measure on.  [default: 200]")
@click.option("--wait-for", type=click.IntRange(1), help="Members to wait for before a release is proposed.")
@click.option("--patience", type=click.FloatRange(0), help="Seconds after which fewer are enough.  [default: 60]")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), help="Seconds of one voting attempt.  [default: 20]"
)
@click.option(
    "--member",
    "members",
    multiple=True,
    metavar="ID[:NAME[:ROLE[:ORGANISATION]]]",
    help="Another founding member, by the id that `fishernet init` printed there; repeat it.",
)
@click.option("--organisation", help="Who runs this node.  [default: its name]")
@click.option(
    "--cosignatures",
    type=click.IntRange(0),
    help="Other organisations that must have cosigned a feed before a release covers what is new in it.  [default: 0]",
)
@click.option("--faults", type=click.IntRange(0), help="Hostile members tolerated.  [default: floor((members-1)/3)]")
@accepts_common
def create(
    name: str,
    model: str | None,
    rank: int | None,
    alpha: int | None,
    targets: tuple[str, ...],
    preset: str | None,
    density: float | None,
    bits: str | None,
    recipe: str | None,
    tolerance: float | None,
    held_out_min: int | None,
    wait_for: int | None,
    patience: float | None,
    timeout: float | None,
    members: tuple[str, ...],
    organisation: str | None,
    cosignatures: int | None,
    faults: int | None,
) -> None:
    """Write the charter of a new collective as the first events of this node's feed. Its digest is the collective's id."""
    from node.cli import render

    invocation = here()
    result = invocation.ask(
        "collective.create",
        name=name,
        model=model,
        rank=rank,
        alpha=alpha,
        targets=list(targets) or None,
        preset=preset,
        density_ppm=_scaled(density, _PPM),
        value_bits=None if bits is None else int(bits),
        recipe=recipe,
        tolerance_centinats=_scaled(tolerance, 100),
        held_out_min=held_out_min,
        wait_for=wait_for,
        patience_ms=_scaled(patience, 1000),
        timeout_ms=_scaled(timeout, 1000),
        members=list(members) or None,
        organisation=organisation,
        cosignatures=cosignatures,
        faults=faults,
    )
    invocation.answer(result, render.charter)


@collective.command()
@accepts_common
def show() -> None:
    """Show the charter in force and its members."""
    from node.cli import render

    invocation = here()
    invocation.answer(invocation.ask("collective.show"), render.charter)


@collective.command()
@click.argument("member", metavar="MEMBER")
@click.option("--name", help="A name for people.")
@_ROLE
@click.option("--weight", type=click.IntRange(min=1), help="Weight in the merge.  [default: 1]")
@click.option(
    "--organisation", help="Who runs that node; cosignatures of one organisation count once.  [default: the name]"
)
@accepts_common
def invite(member: str, name: str | None, role: str, weight: int | None, organisation: str | None) -> None:
    """Propose to admit MEMBER, the 64-digit id that `fishernet init` printed there (see also: collective requests)."""
    from node.cli import render

    invocation = here()
    result = invocation.ask(
        "collective.invite", member=member, name=name, role=role, weight=weight, organisation=organisation
    )
    invocation.answer(result, render.done)


@collective.command()
@click.argument("proposal", metavar="AMENDMENT")
@accepts_common
def approve(proposal: str) -> None:
    """Approve an open amendment, named by its id or the first digits of it (see: collective requests)."""
    from node.cli import render

    invocation = here()
    invocation.answer(invocation.ask("collective.approve", proposal=proposal), render.done)


@collective.command()
@click.argument("collective_id", metavar="COLLECTIVE")
@click.argument("addresses", nargs=-1, metavar="MULTIADDR...")
@_ROLE
@accepts_common
def join(collective_id: str, addresses: tuple[str, ...], role: str) -> None:
    """Ask to be admitted to COLLECTIVE, whose nodes are dialled at MULTIADDR (as `fishernet status` prints it there)."""
    from node.cli import render

    invocation = here()
    result = invocation.ask("collective.join", collective=collective_id, peers=list(addresses) or None, role=role)
    invocation.answer(result, render.done)


@collective.command()
@click.argument("changes", nargs=-1, metavar="KEY=VALUE...")
@click.option("--remove", multiple=True, metavar="MEMBER", help="Take the seat of this member.")
@click.option(
    "--file", "file", type=click.Path(dir_okay=False, path_type=Path), help="Take a whole charter from FILE (JSON)."
)
@accepts_common
def amend(changes: tuple[str, ...], remove: tuple[str, ...], file: Path | None) -> None:
    """Propose another rule, for example: collective amend gate.tolerance_centinats=5 release.wait_for=2.

    KEY is a path in the charter as `collective show --json` prints it, VALUE is JSON or a plain word.
    """
    from node.cli import render

    if not (changes or remove or file):
        raise click.UsageError("nothing to change: give KEY=VALUE, --remove or --file")
    whole = _charter(file) if file else None
    invocation = here()
    result = invocation.ask(
        "collective.amend",
        changes=dict(_change(text) for text in changes) or None,
        remove=list(remove) or None,
        charter=whole,
    )
    invocation.answer(result, render.done)


@collective.command()
@accepts_common
def requests() -> None:
    """Show who asks to join and which amendments wait for votes."""
    from node.cli import render

    invocation = here()
    invocation.answer(invocation.ask("collective.requests"), render.requests)


def _scaled(value: float | None, unit: int) -> int | None:
    return None if value is None else round(value * unit)


def _change(text: str) -> tuple[str, Json]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _charter(file: Path) -> Json:
    try:
        value: Json = json.loads(file.read_bytes())
    except OSError as e:
        raise click.BadParameter(f"couldn't read {file}: {e.strerror}", param_hint="--file") from None
    except ValueError as e:
        raise click.BadParameter(f"couldn't read {file}: {e}", param_hint="--file") from None
    return value
