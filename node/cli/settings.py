"""`fishernet config`: show | check | set | reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli import completing
from node.cli.options import accepts_common, here, table_of
from protocol.canon import Json


@click.group()
@accepts_common
def config() -> None:
    """Show, check and change the configuration."""


@config.command()
@accepts_common
def show() -> None:
    """Print every setting in force; API keys are not shown."""
    home = here().home()
    values: dict[str, Any] = home.read_config().model_dump(mode="json")
    values["serve"]["api_keys"] = ["***" for _ in values["serve"]["api_keys"]]
    from node.config import literal

    def people(out: object, result: dict[str, Any]) -> None:
        for section, keys in result.items():
            click.echo(f"[{section}]")
            for key, value in keys.items():
                click.echo(f"{key} = {literal(value)}")

    here().answer(values, people)


@config.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@accepts_common
def check(file: Path | None) -> None:
    """Check node.toml of the home, or FILE; a fault is named with its line and the nearest key."""
    from node import config as configuration

    path = file if file is not None else here().home().config_file
    configuration.load(path)
    result: Json = {"file": str(path), "ok": True}
    here().answer(result, lambda out, value: click.echo(f"{value['file']} is fine"))


@config.command("set")
@click.argument("key", metavar="SECTION.KEY", shell_complete=completing.settings)
@click.argument("value", metavar="VALUE")
@accepts_common
def set_(key: str, value: str) -> None:
    """Change one setting in place, comments are kept: fishernet config set train.steps 20.

    VALUE is TOML; a plain word is a text. A running node takes it up with `fishernet config reload`, else at its next start.
    """
    from node import config as configuration

    section, dot, name = key.partition(".")
    if not dot:
        raise click.BadParameter("SECTION.KEY is expected, for example train.steps", param_hint="SECTION.KEY")
    home = here().home()
    new = configuration.update(home.config_file, section, name, configuration.value_of(value))
    shown: Json = new.model_dump(mode="json")[section][name]
    result: Json = {"key": key, "value": shown}
    here().answer(result, lambda out, v: click.echo(f"{v['key']} = {configuration.literal(v['value'])}"))


@config.command()
@accepts_common
def reload() -> int:
    """Have the running node read node.toml again; what can change at once does, what needs a restart is named.

    A file that is not acceptable changes nothing. SIGHUP does the same. Ends with 1 when a part could not take its settings.
    """

    def people(out: object, result: dict[str, Any]) -> None:
        click.echo("changed: " + (", ".join(result["changed"]) or "nothing"))
        for key, why in result["restart"].items():
            click.echo(f"needs a restart: {key} ({why})")
        for key, cause in result["failed"].items():
            click.echo(f"not taken: {key}: {cause}")

    invocation = here()
    result = table_of(invocation.ask("config.reload"))
    invocation.answer(dict(result), people)
    return 1 if result["failed"] else 0
