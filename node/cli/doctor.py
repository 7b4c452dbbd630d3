"""`fishernet doctor`: what may be wrong, why, and what to type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from node.cli.options import accepts_common, here, printable

if TYPE_CHECKING:
    from rich.console import Console

_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@click.command()
@click.option("--index", is_flag=True, help="Ask pip's package index too; up to 4 seconds more.")
@click.option("--all", "everything", is_flag=True, help="Show what is well too.")
@accepts_common
def doctor(index: bool, everything: bool) -> int:
    """Look for what may be wrong with this node and its machine; each finding names its cause and a command that cures it.

    Looks at ports, reachability, clock, disk, memory, processor, SQLite, keys, databases, versions, base model, peers, feeds
    and votes. Works on a running node and on a stopped one, and changes nothing. Ends with 0 when all is well, 1 with
    warnings, 2 when something does not work.
    """
    from node.doctor import examining, finding

    invocation = here()
    found = examining.examine(invocation.home(), index=index)
    code = finding.code(found)

    def people(out: Console, result: dict[str, Any]) -> None:
        from rich.markup import escape

        for each in result["findings"]:
            if everything or each["level"] != "ok":
                out.print(
                    f"{_MARKS[each['level']]} [bold]{each['name']}[/]: {escape(printable(each['cause']))}",
                    soft_wrap=True,
                )
                if each["cure"]:
                    out.print(f"     [dim]cure:[/] {escape(printable(each['cure']))}", soft_wrap=True)
        well = sum(each["level"] == "ok" for each in result["findings"])
        out.print(
            f"{well} of {len(result['findings'])} checks are well" + ("" if everything else " (--all shows them)")
        )

    invocation.answer({"findings": [each.to_json() for each in found], "code": code}, people)
    return code
