"""Makes a simulated collective before its first event: charter, keys, rows, members, attackers among them.

Knows no time. Invariant: a function of the configuration; nothing is drawn that a seed does not decide.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrib import models
from contrib.adapters import AdapterSpec, layout
from contrib.datasets import DatasetSummary
from ledger import charter as charters
from ledger import charter_reading, events
from ledger.charter import Adapter, Base, Charter, Gate, Release, Update
from ledger.events.grants import ACTIONS
from node.data import permits
from node.data.permits import PURPOSE
from node.sections import Train
from node.simulation import pool
from node.simulation.attackers import ATTACKS
from node.simulation.clock import Clock
from node.simulation.config import SimulationConfig
from node.simulation.feeds import Archive
from node.simulation.hostile import HostileMember, Plot
from node.simulation.learning import ModelTrainer, VectorTrainer
from node.simulation.member import Kit, Member, Shared, SharedHome
from protocol.ids import Digest, MemberId, digest
from protocol.keys import SigningKey, member_id

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """A collective that is about to begin."""

    charter: Charter
    members: tuple[Member, ...]
    trainer: ModelTrainer | VectorTrainer
    clock: Clock


def found(config: SimulationConfig, folder: Path, *, cache: Path, progress: Progress) -> Founded:
    """Make everything in `folder`.

    Raises:
        ConfigError, BadCharter, BadAdapter: the configuration makes no collective.
        DownloadFailed: the demo's texts could not be fetched.
    """
    seed, count = config.simulation.seed, config.simulation.members
    signing = [SigningKey(hashlib.sha256(f"simulation/{seed}/{i}".encode()).digest()) for i in range(count)]
    names = [f"m{i:03d}" for i in range(count)]
    clock = Clock()
    spec = AdapterSpec(
        rank=config.collective.rank,
        alpha=config.collective.rank,
        targets=config.collective.targets,
        seed=digest(f"simulation/{seed}".encode()),
    )
    trainer: ModelTrainer | VectorTrainer
    if config.training.kind == "model":
        progress("loading the test model", 0.0)
        folder_of_model = models.tiny_folder()
        trainer = ModelTrainer(folder_of_model, spec, clock.ms, length=config.training.length)
        base, coordinates = models.base_digest(folder_of_model), layout(folder_of_model, spec).coordinates
    else:
        coordinates = config.training.coordinates
        trainer = VectorTrainer(coordinates, seed, heterogeneity=config.training.heterogeneity)
        base = digest(b"simulation/vectors")
    charter = _charter(config, spec, base, coordinates, {n: member_id(k) for n, k in zip(names, signing, strict=True)})
    kit = Kit(
        clock=clock,
        archive=Archive(),
        shared=Shared(),
        trainer=trainer,
        collective=charters.collective_id(charter),
        train=_train(config),
        held_out_rows=config.evaluation.rows,
        cards=config.evaluation.cards,
    )
    (folder / "views").mkdir()
    members = _members(config, folder, signing, kit)
    if config.training.kind == "model":
        _rows(config, members, cache, progress)
    return Founded(charter=charter, members=members, trainer=trainer, clock=clock)


def commit(member: Member) -> None:
    """Say in the member's feed which rows it has and that it may use them itself, as `data add` does."""
    summary: DatasetSummary | None = member.rows
    member.seat.append(
        events.DataCommitted(
            dataset=pool.DATASET,
            train_rows=summary.train_rows if summary else 900,
            held_out_rows=summary.held_out_rows if summary else 100,
            train_root=summary.train_root if summary else digest(member.name.encode()),
            held_out_root=summary.held_out_root if summary else digest(member.name.encode()),
        )
    )
    member.seat.append(
        events.DataDescribed(
            dataset=pool.DATASET,
            tags=(),
            columns=(),
            purposes=(PURPOSE,),
            retention_days=None,
            licence="",
            basis="simulation",
        )
    )
    nonce = Digest(hashlib.sha256(member.random.randbytes(16)).hexdigest())
    member.seat.append(
        permits.to_itself(
            member.id, pool.DATASET, purposes=(PURPOSE,), actions=ACTIONS, basis="simulation", nonce=nonce
        )
    )


def _charter(
    config: SimulationConfig, spec: AdapterSpec, base: Digest, coordinates: int, ids: dict[str, MemberId]
) -> Charter:
    c = config.collective
    seats = sorted(
        (charters.Member(id=id_, name=name, role="contributor") for name, id_ in ids.items()), key=lambda m: m.id
    )
    charter = Charter(
        name="simulation",
        nonce=digest(f"simulation/{config.simulation.seed}".encode()),
        base=Base(name="tiny" if config.training.kind == "model" else "vectors", digest=base),
        adapter=Adapter(
            rank=spec.rank, alpha=spec.alpha, targets=spec.targets, seed=Digest(spec.seed), coordinates=coordinates
        ),
        update=Update(density_ppm=round(c.density * 1_000_000), value_bits=c.value_bits, block=c.block),
        recipe=c.recipe,
        gate=Gate(
            max_blob_bytes=4 << 20,
            norm_cap_micro=round(c.norm_cap * 1_000_000),
            tolerance_centinats=round(c.tolerance * 100),
            held_out_min=c.held_out_min,
        ),
        release=Release(
            wait_for=max(1, round(c.wait_for * len(seats))),
            patience_ms=round(c.patience_s * 1000),
            timeout_ms=round(c.timeout_s * 1000),
        ),
        members=tuple(seats),
        faults=charters.default_faults(len(seats)) if c.faults < 0 else c.faults,
    )
    return charter_reading.parse(charter.to_json())


def _members(config: SimulationConfig, folder: Path, signing: list[SigningKey], kit: Kit) -> tuple[Member, ...]:
    """The honest first, then the attackers in the order of the configuration; the founder is honest."""
    seed, found = config.simulation.seed, list[Member]()
    honest = config.simulation.members - config.hostile
    plots = [(each, place) for each in config.attackers for place in range(each.count)]
    first = {id(each): honest + sum(e.count for e in config.attackers[:i]) for i, each in enumerate(config.attackers)}
    for number, key in enumerate(signing):
        name, rng = f"m{number:03d}", random.Random(f"{seed}/member/{number}")  # noqa: S311 - repeatable on purpose
        home = SharedHome(path=folder / name)
        home.path.mkdir()
        home.runs.mkdir()
        if number < honest:
            found.append(Member(number, name, home, key, kit, rng))
            continue
        each, place = plots[number - honest]
        start = first[id(each)]
        plot = Plot(
            attack=ATTACKS[each.attack],
            colluders=tuple(member_id(k) for k in signing[start : start + each.count]),
            place=place,
            from_release=each.from_release,
        )
        found.append(HostileMember(number, name, home, key, kit, rng, plot))
    return tuple(found)


def _rows(config: SimulationConfig, members: tuple[Member, ...], cache: Path, progress: Progress) -> None:
    seed = config.simulation.seed
    progress("splitting the rows", 0.0)
    parts = pool.split(pool.pool(config.data, seed, cache=cache), len(members), config.data, seed)
    for number, (member, rows) in enumerate(zip(members, parts, strict=True)):
        taken = list(rows)
        if isinstance(member, HostileMember) and member.plot.attack.rows is not None:
            taken = member.plot.attack.rows(rows, np.random.default_rng([seed, 14, number]))
        member.rows = pool.store(member.home.rows_db, taken, config.data, member.random.randbytes)
        progress("storing rows", (number + 1) / len(members))


def _train(config: SimulationConfig) -> Train:
    t = config.training
    return Train(
        steps=t.steps,
        batch=t.batch,
        length=t.length,
        learning_rate=t.learning_rate,
        warmup=t.warmup,
        fisher_sequences=t.fisher_sequences,
        held_out_rows=config.evaluation.rows,
        seed=config.simulation.seed,
    )
