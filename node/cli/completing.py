"""What a shell offers for a word that is being typed: names that are known without asking a node or reading its ledger.

Invariant: whatever goes wrong meanwhile, nothing is printed and nothing is offered: a person is in the middle of a line.
"""

from __future__ import annotations

import click


def recipes(_ctx: click.Context, _param: click.Parameter, word: str) -> list[str]:
    """Recipes that a charter may name."""
    from contrib.recipes import in_charters

    return [name for name in in_charters() if name.startswith(word)]


def models(_ctx: click.Context, _param: click.Parameter, word: str) -> list[str]:
    """Base models that can be fetched without a hub, and those in the cache."""
    from contrib import models as known
    from node.home import model_cache
    from protocol.errors import FishernetError

    try:
        cached = [each.name for each in known.installed(model_cache())]
    except (FishernetError, OSError):
        cached = []
    return sorted(name for name in {known.SMOLLM2, known.TINY, *cached} if name.startswith(word))


def settings(_ctx: click.Context, _param: click.Parameter, word: str) -> list[str]:
    """Keys of node.toml, with their section."""
    from node.sections import NodeConfig

    sections = {name: field.annotation for name, field in NodeConfig.model_fields.items()}
    keys = [f"{name}.{key}" for name, kind in sections.items() for key in getattr(kind, "model_fields", ())]
    return [key for key in keys if key.startswith(word)]
