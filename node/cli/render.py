"""Results of commands as tables for people. Knows the shapes below and nothing else; a missing key shows as a dash.

Times are milliseconds since 1970, differences of losses centinats (0.01 nats), ids and digests 64 hex digits.

    status   {node, member, peer, running, addresses, collective, name, role, epoch, height, view, paused, double_votes,
              full, forks, flaws: [{member, seq, code}], peers: [{member, name, peer, connected}],
              heads: [{member, name, size, root, cosigned}], recovery_file, sqlite,
              pending: [{member, name, digest, cosignatures, cosignatures_needed}],
              releases: [{height, number, digest, model, members, time}], training: {state, step, steps},
              serving: {url, ready, models}, errors: [{time, code, text}]}
    log      {decisions: [{height, attempt, kind, number, digest, model, time, proposer, change, excluded: [{event, reason}],
              contributions: [{member, name, count, blob, bytes, cosignatures}],
              votes: [{member, name, vote, committed, versus_base, versus_parent, rows}]}]}
    audit    see render_audit.py
    charter  {id, name, base: {name, digest}, epoch, height, quorum, recipe, faults, adapter: {..}, update: {..},
              gate: {..}, release: {..}, witness: {..}, members: [{id, name, organisation, role, weight, was}]}
    requests {requests: [{member, name, peer, time}], proposals: [{digest, kind, by, text, accepts, needed}]}
    train    {run, steps, tokens, seconds, loss_before, loss_after, digest, bytes, sent, learning_rate, planned, stopped,
              trials: [{lr, curve: [[step, nats]]}] | null, curve, untuned, resumed}
    measure  {member, losses: {name: {micronats, rows}}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from node.cli.options import printable

Result: TypeAlias = Mapping[str, Any]
Column: TypeAlias = "tuple[str, Callable[[Result], str]]"
DASH: Final = "[dim]-[/]"
_NUMERIC: Final = frozenset(
    {"size", "rows", "held out", "weight", "height", "events", "characters", "against base", "against parent", "nats"}
)


# -- values ----------------------------------------------------------------------------------------------------------
def text(value: object) -> str:
    """Any value on one line, safe to print; a dash for nothing."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(printable(str(value)))


def brief(digest: object) -> str:
    """Enough of an id for a person to tell it from others."""
    return text(str(digest)[:12] if digest else None)


def size(count: object) -> str:
    """Bytes with a unit."""
    if not isinstance(count, int):
        return DASH
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def moment(ms: object) -> str:
    """Local time of a millisecond stamp."""
    if not isinstance(ms, int):
        return DASH
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def nats(centinats: object) -> str:
    """A loss rounded to 0.01 nats."""
    return f"{centinats / 100:.2f}" if isinstance(centinats, int) else DASH


def change(centinats: object) -> str:
    """A difference of losses: less is better."""
    if not isinstance(centinats, int):
        return DASH
    colour = "green" if centinats < 0 else "red" if centinats > 0 else "default"
    return f"[{colour}]{centinats / 100:+.2f}[/]"


def who(row: Result) -> str:
    """A member by name and id."""
    name, member = row.get("name"), row.get("member", row.get("id"))
    return f"{text(name)} [dim]{brief(member)}[/]" if name else brief(member)


# -- pieces ----------------------------------------------------------------------------------------------------------
def facts(out: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Labels with their values."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        grid.add_row(label, value)
    out.print(grid)


def table(out: Console, title: str, rows: Sequence[Result], columns: Sequence[Column], empty: str = "") -> None:
    """A table of rows; without any, what `empty` says, or nothing."""
    if not rows:
        if empty:
            out.print(f"[dim]{empty}[/]")
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for label, _ in columns:
        table.add_column(label, justify="right" if label in _NUMERIC else "left", overflow="fold")
    for row in rows:
        table.add_row(*(show(row) for _, show in columns))
    out.print(table)


def cell(name: str, show: Callable[[object], str] = text) -> Callable[[Result], str]:
    """A column that shows one field of each row."""
    return lambda row: show(row.get(name))


# -- whole results ---------------------------------------------------------------------------------------------------
def status(out: Console, result: Result) -> None:
    """What the node is and does now."""
    training, serving = result.get("training") or {}, result.get("serving") or {}
    steps = f" {training.get('step', 0)}/{training['steps']}" if training.get("steps") else ""
    collective = f"{text(result.get('name'))} [dim]{brief(result.get('collective'))}[/]"
    facts(
        out,
        [
            ("node", f"[bold]{text(result.get('node'))}[/]"),
            ("member", text(result.get("member"))),
            *(("address", text(address)) for address in result.get("addresses") or [result.get("peer")]),
            ("collective", collective if result.get("collective") else "[yellow]none yet[/]: create or join one"),
            ("role", text(result.get("role"))),
            ("epoch", brief(result.get("epoch"))),
            ("height", text(result.get("height"))),
            ("view", brief(result.get("view"))),
            ("training", text(training.get("state")) + steps + _last(training)),
            *([("marked", _marked(result))] if result.get("marked") else []),
            *_warnings(result),
            ("serving", f"{text(serving.get('url'))} [dim]{text(', '.join(serving.get('models') or []))}[/]"),
        ],
    )
    out.print()
    sizes = {head.get("member"): head for head in result.get("heads") or []}
    peers = list(result.get("peers") or [])
    known = {peer.get("member") for peer in peers}
    rows = [{**sizes.get(peer.get("member"), {}), **peer} for peer in peers]
    rows += [head for member, head in sizes.items() if member not in known]
    table(
        out,
        "Members",
        rows,
        [
            ("member", who),
            ("connected", lambda row: "[dim]this node[/]" if row["member"] == result.get("member") else _linked(row)),
            ("events", cell("size")),
            ("head", cell("root", brief)),
            ("cosigned up to", cell("cosigned")),
        ],
    )
    pending: list[Column] = [
        ("member", who),
        ("contribution", cell("digest", brief)),
        (
            "cosigned by",
            lambda row: f"{text(row.get('cosignatures'))} of {text(row.get('cosignatures_needed'))} needed",
        ),
    ]
    table(out, "Pending", result.get("pending") or [], pending)
    _releases(out, result.get("releases") or [])
    waiting: list[Column] = [
        ("by", cell("by")),
        ("data set", cell("dataset")),
        ("rows", cell("rows")),
        ("not confirmed by", lambda row: text(", ".join(row.get("missing") or []))),
        (
            "until",
            lambda row: f"[red]{moment(row['deadline'])}[/]" if row.get("overdue") else moment(row.get("deadline")),
        ),
    ]
    table(out, "Erasures", result.get("erasures") or [], waiting)
    errors = result.get("errors") or []
    table(out, "Errors", errors, [("time", cell("time", moment)), ("code", cell("code")), ("what", cell("text"))])


def _marked(result: Result) -> str:
    return f"{len(result['marked'])} contributions were trained on rows that were forgotten since"


def _warnings(result: Result) -> list[tuple[str, str]]:
    found = []
    if result.get("running") is False:
        found.append(("daemon", "[yellow]not running[/]: fishernet up"))
    if result.get("recovery_file"):
        found.append(
            ("recovery key", f"[yellow]still on this machine[/]: move {text(result['recovery_file'])} offline")
        )
    if result.get("sqlite"):
        found.append(("sqlite", f"[yellow]{text(result['sqlite'])}[/]"))
    if result.get("paused"):
        found.append(("writing", f"[yellow]paused[/]: {text(result['paused'])}"))
    if result.get("full"):
        found.append(("writing", f"[red]stopped[/]: {text(result['full'])}"))
    for key in ("forks", "double_votes"):
        members = ", ".join(brief(member) for member in result.get(key) or [])
        if members:
            found.append((key.replace("_", " "), f"[red]{members}[/]"))
    flaws = [f"{brief(f.get('member'))} #{text(f.get('seq'))} {text(f.get('code'))}" for f in result.get("flaws") or []]
    return [*found, *(("flaw", f"[red]{flaw}[/]") for flaw in flaws)]


def _linked(row: Result) -> str:
    return "[green]yes[/]" if row.get("connected") else "[red]no[/]"


def _releases(out: Console, releases: Sequence[Result]) -> None:
    columns: list[Column] = [
        ("height", cell("height")),
        ("release", lambda row: f"{text(row.get('number'))} [dim]{brief(row.get('digest'))}[/]"),
        ("model", cell("model", brief)),
        ("members", lambda row: text(len(m) if isinstance(m := row.get("members"), list) else m)),
        ("time", cell("time", moment)),
    ]
    table(out, "Releases", releases, columns, "no release yet")


def log(out: Console, result: Result) -> None:
    """Every decision: who contributed what, who voted how and measured what."""
    decisions = result.get("decisions") or []
    if not decisions:
        out.print("[dim]nothing decided yet[/]")
    for decision in decisions:
        model = f", model {brief(decision['model'])}" if decision.get("model") else ""
        attempt = f" [dim](attempt {decision['attempt']})[/]" if decision.get("attempt") else ""
        kind, height = text(decision.get("kind")), text(decision.get("height"))
        number = f" {text(decision['number'])}" if decision.get("number") is not None else ""
        by = f" by {text(decision['proposer'])}" if decision.get("proposer") else ""
        out.print(f"[bold]height {height}: {kind}{number}[/] {brief(decision.get('digest'))}{model}{by}{attempt}")
        facts(out, [("time", moment(decision.get("time"))), *_details(decision)])
        table(
            out,
            "",
            decision.get("contributions") or [],
            [
                ("contributor", who),
                ("contributions", cell("count")),
                ("last blob", cell("blob", brief)),
                ("cosigned by", cell("cosignatures")),
                ("size", cell("bytes", size)),
            ],
        )
        table(
            out,
            "",
            decision.get("votes") or [],
            [
                ("voter", who),
                ("vote", cell("vote")),
                ("committed", cell("committed")),
                ("against base", cell("versus_base", change)),
                ("against parent", cell("versus_parent", change)),
                ("rows", cell("rows")),
            ],
        )


def _details(decision: Result) -> list[tuple[str, str]]:
    found = [("change", text(json.dumps(decision["change"], ensure_ascii=False)))] if decision.get("change") else []
    return found + [
        ("left out", f"{brief(each.get('event'))}: {text(each.get('reason'))}")
        for each in decision.get("excluded") or []
    ]


def charter(out: Console, result: Result) -> None:
    """The rules of a collective and its members."""
    base = result.get("base") or {}
    pairs = [
        ("collective", f"[bold]{text(result.get('name'))}[/]"),
        ("id", text(result.get("id"))),
        ("base model", f"{text(base.get('name'))} [dim]{brief(base.get('digest'))}[/]"),
    ]
    for key in ("recipe", "epoch", "height", "quorum", "faults"):
        pairs.append((key, text(result.get(key))))
    for part in ("adapter", "update", "gate", "release", "witness"):
        pairs.append((part, ", ".join(f"{key} {_short(value)}" for key, value in (result.get(part) or {}).items())))
    pairs += [("relay", text(relay)) for relay in result.get("relays") or []]
    facts(out, pairs)
    out.print()
    members = result.get("members") or []
    shown = [
        ("member", who),
        ("organisation", cell("organisation")),
        ("role", cell("role")),
        ("weight", cell("weight")),
    ]
    table(out, "Members", members, shown)


def _short(value: object) -> str:
    whole = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return brief(whole) if len(whole) == 64 else text(whole)


def requests(out: Console, result: Result) -> None:
    """Who asks to join, and which amendments wait for votes."""
    asking = result.get("requests") or []
    columns: list[Column] = [("node", who), ("member id", cell("member")), ("since", cell("time", moment))]
    table(out, "Asking to join", asking, columns, "nobody asks to join")
    table(
        out,
        "Open amendments",
        result.get("proposals") or [],
        [
            ("amendment", cell("digest", brief)),
            ("kind", cell("kind")),
            ("by", cell("by", brief)),
            ("what", cell("text")),
            ("accepts", lambda row: f"{text(row.get('accepts'))} of {text(row.get('needed'))}"),
        ],
    )


def dataset(out: Console, result: Result) -> None:
    """One data set in full."""
    facts(out, [(key.replace("_", " "), text(value)) for key, value in result.items()])


def done(out: Console, result: Result) -> None:
    """What an act led to: its text when it has one, else what it says."""
    if result.get("text"):
        out.print(text(result["text"]))
    dataset(out, {key: value for key, value in result.items() if key != "text" and not isinstance(value, dict | list)})


def models(out: Console, result: Result) -> None:
    """Base models in the cache."""
    columns: list[Column] = [("model", cell("name")), ("digest", cell("digest")), ("path", cell("path"))]
    table(out, "", result.get("models") or [], columns, "no model yet: fishernet model add smollm2-135m")


def losses(out: Console, result: Result) -> None:
    """Held-out loss by model, and what it gains over the base."""
    found = {name: loss.get("micronats") for name, loss in (result.get("losses") or {}).items()}
    rows = [
        {"name": name, "loss": loss, "rows": (result["losses"][name] or {}).get("rows"), "base": found.get("base")}
        for name, loss in found.items()
    ]
    columns: list[Column] = [
        ("model", cell("name")),
        ("nats", lambda row: f"{row['loss'] / 1e6:.4f}" if isinstance(row.get("loss"), int) else DASH),
        ("against base", lambda row: change(round((row["loss"] - row["base"]) / 1e4)) if row.get("base") else DASH),
        ("rows", cell("rows")),
    ]
    table(out, "Held-out loss", rows, columns, "nothing measured")


def _last(training: Result) -> str:
    """What the last run of this epoch was trained with."""
    last = training.get("last") or {}
    rate = last.get("learning_rate")
    return f" [dim](last run: {text(last.get('steps'))} steps at rate {rate:g})[/]" if isinstance(rate, float) else ""
