"""A release of the test model on paper: a cut, a card and a vector that belong together."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contrib import exporting
from contrib.adapters import AdapterSpec, Vector, layout
from contrib.exporting import Card, Wanted
from contrib.merging import model_digest
from contrib.models import Model, tiny_folder
from contrib.weights import base_digest
from protocol.canon import Json
from protocol.ids import Digest, digest, digest_of

SPEC = AdapterSpec(rank=4, alpha=8, targets=("q_proj", "v_proj"), seed="5e" * 32)
HEAD = digest(b"head")


@functools.cache
def tiny() -> Model:
    return Model(name="tiny", digest=base_digest(tiny_folder()), path=tiny_folder())


def vector_of(spec: AdapterSpec, seed: int, strength: float = 0.3) -> Vector:
    """A random vector of the shape that `spec` has on the test model."""
    count = layout(tiny_folder(), spec).coordinates
    return np.random.default_rng(seed).normal(0, strength, count).astype(np.float32)


def cut_of(model: str, number: int) -> dict[str, Json]:
    """A release cut as the ledger would write it, with no members."""
    return {
        "v": 1,
        "kind": "release",
        "collective": digest(b"collective"),
        "charter": digest(b"charter"),
        "height": number,
        "parent": digest(b"parent"),
        "heads": [],
        "number": number,
        "parent_release": None,
        "epoch": digest(b"epoch"),
        "last": [],
        "excluded": [],
        "recipe": "contributor-mean/1",
        "registers": [],
        "model": model,
    }


def card_of(vector: Vector, *, number: int = 1, spec: AdapterSpec = SPEC) -> Card:
    """The card of a release with this vector."""
    cut = cut_of(model_digest(vector), number)
    member: dict[str, Json] = {
        "id": digest(b"ada"),
        "name": "ada",
        "organisation": "Ada & Co",
        "role": "contributor",
        "contributions": 2,
    }
    return Card(
        cut=cut,
        release=Digest(digest_of(cut)),
        spec=spec,
        base_name="tiny",
        base=tiny().digest,
        members=(member,),
        certificate={"attempt": 0, "quorum": 1, "commits": []},
        ledger={"member": digest(b"ada"), "size": 3, "head": HEAD},
        licence="apache-2.0",
    )


def export(out: Path, vector: Vector, *, format_: str = "peft", number: int = 1, **wanted: Any) -> Card:
    """Export a release with this vector and return its card."""
    card = card_of(vector, number=number, spec=wanted.pop("spec", SPEC))
    exporting.write(Wanted(format=format_, out=out, **wanted), card, tiny(), vector)
    return card


def exports(folder: Path, seeds: Sequence[int]) -> list[Card]:
    """Release 1, 2, ... with random vectors, each in a folder of its name."""
    return [export(folder / f"release-{n}", vector_of(SPEC, seed), number=n) for n, seed in enumerate(seeds, 1)]
