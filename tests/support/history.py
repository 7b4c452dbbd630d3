"""A collective with a long past that real nodes can go on with: its base is the tiny model, its blobs are real updates of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from paper import charter_of, key
from posted import Post
from real_node import QUIET, Node, add_rows, free_port, sentences
from world import World

from contrib import adapters, models, updates
from contrib.adapters import AdapterSpec
from contrib.merging import model_digest
from ledger.charter import Adapter, Base, Charter, Gate, Release, Update
from node import config
from node.home import Home, model_cache
from protocol import contribution as blobs
from protocol import sparse
from protocol.card import Card
from protocol.ids import Digest, digest

SPEC = AdapterSpec(rank=4, alpha=8, targets=("all-linear",), seed=digest(b"seed"))


def tiny_charter(names: Sequence[str], *, wait_for: int | None = None, density_ppm: int = 50_000) -> Charter:
    """A charter of these contributors over the tiny model (added to the model cache)."""
    model = models.add("tiny", model_cache())
    return replace(
        charter_of(list(names)),
        base=Base(name="tiny", digest=model.digest),
        adapter=Adapter(
            rank=SPEC.rank,
            alpha=SPEC.alpha,
            targets=SPEC.targets,
            seed=Digest(SPEC.seed),
            coordinates=adapters.layout(model.path, SPEC).coordinates,
        ),
        update=Update(density_ppm=density_ppm, value_bits=8, block=64),
        gate=Gate(max_blob_bytes=1 << 20, norm_cap_micro=10**9, tolerance_centinats=500, held_out_min=8),
        release=Release(wait_for=wait_for or len(names), patience_ms=3000, timeout_ms=4000),
    )


class History(World):
    """Members that wrote, contributed and released for a while; those who are `absent` have a seat and never said a word."""

    def __init__(self, names: Sequence[str], *, absent: Sequence[str] = (), **options: Any) -> None:
        super().__init__(names, charter=tiny_charter(names, **options))
        self.absent = set(absent)
        self.present = [n for n in names if n not in self.absent]
        for name in self.present:
            self.say(name, self.bound(name))
            self.open_data(name)

    def releases(self, count: int, *names: str) -> None:
        """So many rounds in which these (else all that are present) contribute and all present decide."""
        for _ in range(count):
            for name in names or self.present:
                self.published(name)
            self.decide(self.draft(), self.present)

    def _blob(self, name: str, number: int) -> bytes:
        charter = self.fold.charter
        rng = np.random.default_rng(int(digest(f"{name}/{number}".encode())[:8], 16))
        coordinates = charter.adapter.coordinates
        count = coordinates * charter.update.density_ppm // 1_000_000
        indices = np.sort(rng.choice(coordinates, count, replace=False)).astype(np.uint32)
        data = sparse.encode(
            coordinates=coordinates,
            indices=indices,
            values=(rng.standard_normal(count) / 1000).astype(np.float32),
            bits=charter.update.value_bits,
            block=charter.update.block,
        )
        update = sparse.decode(data, coordinates=coordinates, max_sent=count)
        card = Card(
            collective=self.collective, member=self.ids[name], epoch=charter.epoch_id, base=charter.base.digest, number=number,
            view=model_digest(np.zeros(coordinates, dtype=np.float32)), train_root=digest(b"train"),
            held_out_root=digest(b"held out"), train_rows=90, steps=4, tokens=99, epsilon_micro=None,
            selection=updates.rule_for(charter.update.value_bits), density_ppm=charter.update.density_ppm,
            value_bits=charter.update.value_bits, coordinates=coordinates, sent=update.sent,
            norm_micro=updates.norm_micro(update), loss_before=420, loss_after=400, libraries={"numpy": "2"},
        )  # fmt: skip
        return blobs.pack(card, data, key(name))


def node_of(post: Post, name: str, *, holds: bool = True, peers: Sequence[Node] = (), rows: bool = False) -> Node:
    """The node of a member of a history: a real home with the tiny model, that knows the addresses of `peers`."""
    home: Home = post.home(name, holds=holds)
    port = free_port()
    values = {
        "node.model": "tiny",
        "network.listen": [f"/ip4/127.0.0.1/tcp/{port}"],
        "network.peers": [p.address for p in peers],
        "serve.port": 0,
        "train.auto": False,
        **QUIET,
        "train.datasets": [name],  # what its feed says of other rows was written by hand
    }
    for setting, value in values.items():
        section, _, field = setting.partition(".")
        config.update(home.config_file, section, field, value)
    node = Node(home, port)
    if rows:
        add_rows(node, sentences(name))
    return node
