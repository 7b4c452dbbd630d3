"""`fishernet model`: add | list. Base models lie in one cache for all nodes of a user, see `node.home.model_cache`."""

from __future__ import annotations

import click

from node.cli import completing
from node.cli.options import accepts_common, here, progress_console
from protocol.canon import Json


@click.group()
@accepts_common
def model() -> None:
    """Get base models and list them."""


@model.command()
@click.argument("source", shell_complete=completing.models)
@accepts_common
def add(source: str) -> None:
    """Put a base model into the cache. SOURCE is smollm2-135m, tiny (the test model), hf:ORG/NAME, or a folder.

    Only safetensors are taken: nothing of a model is ever run. Its digest covers tensors, configuration, tokenizer and
    chat template.
    """
    from contrib import models
    from node.cli import render
    from node.cli.progress import staged
    from node.home import model_cache

    invocation = here()
    with staged(progress_console()) as on_progress:
        found = models.add(source, model_cache(), on_progress=on_progress)
    invocation.answer(_shown(found.name, found.digest, str(found.path)), render.dataset)


@model.command("list")
@accepts_common
def list_() -> None:
    """List the base models in the cache."""
    from contrib import models
    from node.cli import render
    from node.home import model_cache

    found: Json = [_shown(each.name, each.digest, str(each.path)) for each in models.installed(model_cache())]
    here().answer({"models": found}, render.models)


def _shown(name: str, digest: str, path: str) -> dict[str, Json]:
    return {"name": name, "digest": digest, "path": path}
