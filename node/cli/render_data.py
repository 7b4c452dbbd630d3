"""Results of the data commands for people: what is there, what is declared, what is kept too long, what was forgotten.

Knows the shapes below and nothing else; a missing key shows as a dash. Texts are foreign: each is made safe for a terminal.

    data     {name, kind, train_rows, held_out_rows, duplicates, characters, train_root, held_out_root, columns, sealed, tags,
              purposes, retention_days, licence, basis, grant, oldest_ms, overdue}; data.list has {datasets: [..]} of them
    forget   {dry_run, datasets, rows, train_rows, held_out_rows, contributions: [..], releases: [..], bodies, requests: [..]}
"""

from __future__ import annotations

from rich.console import Console

from node.cli.render import DASH, Column, Result, brief, cell, facts, table, text


def datasets(out: Console, result: Result) -> None:
    """Data sets with their counts and commitments."""
    columns: list[Column] = [
        ("data set", cell("name")),
        ("kind", cell("kind")),
        ("rows", cell("train_rows")),
        ("held out", cell("held_out_rows")),
        ("characters", cell("characters")),
        ("tags", lambda row: text(", ".join(row.get("tags") or []))),
        ("at rest", lambda row: "sealed" if row.get("sealed") else "plain"),
        ("kept", _kept),
        ("commitment", cell("train_root", brief)),
    ]
    table(out, "", result.get("datasets") or [], columns, "no data yet: fishernet data add FILE --dataset NAME")


def forgotten(out: Console, result: Result) -> None:
    """Rows that are, or would be, forgotten, and what they went into."""
    marked, would = result.get("contributions") or [], result.get("dry_run")
    where = ", ".join(result.get("datasets") or [])
    out.print(f"{'would forget' if would else 'forgot'} {text(result.get('rows'))} rows of {text(where)}")
    facts(
        out,
        [
            ("of them held out", text(result.get("held_out_rows"))),
            ("records of their use", f"{text(result.get('bodies'))} {'to erase' if would else 'erased here'}"),
            ("trained on them", f"{len(marked)} contributions, which are marked" if marked else "nothing published"),
            *(("request", brief(request)) for request in result.get("requests") or []),
        ],
    )
    if releases := result.get("releases") or []:
        numbers = ", ".join(text(number) for number in releases)
        out.print(
            f"release {numbers} contains them: the next release {'would leave' if would else 'leaves'} them out, which costs "
            "what they were worth; the members decide it, and with it every node stops serving the ones before. A node that "
            "serves them more than a day after the deadline of the request is an error in every audit (C10)"
        )
    if marked:
        out.print("[yellow]what others learnt from them stays until a model is trained again from before them[/]")


def _kept(row: Result) -> str:
    if row.get("overdue"):
        return f"[red]over {text(row['retention_days'])} days[/]: fishernet data forget --expired"
    return f"{text(row['retention_days'])} days" if row.get("retention_days") else DASH
