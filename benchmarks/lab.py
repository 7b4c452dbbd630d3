"""The laboratory: members with real texts, real local runs, and rounds with everything else pluggable.

One `Lab` holds a loaded model, the private rows of its members and their held-out samples. `Lab.local` trains one member from
a view (kept in the cache, so that plans that begin alike share their first round); `rounds` lets all members learn, send and
merge by a `Plan`, and counts whole blobs: indices, values, scales, card, envelope, signature. `dense` is the same with all
coordinates in fp16; `pooled` trains in one place with as many steps,
and in each as many rows of every member, as the members have together.

Knows contrib and protocol, no ledger and no network. Invariant: a curve is a function of model, members, plan and seed.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import cache

from contrib import demo_data, evaluation, fisher, learner, merging, models, readers, recipes, training, updates
from contrib.adapters import AdapterSpec, Vector
from contrib.evaluation import Sample
from contrib.feedback import Feedback
from contrib.learner import Learner
from contrib.merging import Register
from contrib.permit import Action, Permit
from contrib.rows import RowStore
from contrib.training import Moments, Settings
from protocol import contribution as blobs
from protocol import keys
from protocol.card import Card
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId, digest, digest_of
from protocol.sparse import UNIT_BITS, SparseUpdate

SETTINGS = {
    "tiny": Settings(steps=12, batch=8, length=64, lr=1e-2, fisher_sequences=16),
    "smollm2-135m": Settings(steps=8, batch=4, length=64, lr=4e-3, warmup=4, fisher_sequences=12),
}
TARGETS = {"tiny": ("all-linear",), "smollm2-135m": ("q_proj", "v_proj")}  # as in the demo
HELD_OUT_ROWS = {"tiny": 48, "smollm2-135m": 24}  # of each member
BLOCK = 256
LIBRARIES = {"torch": "2.13.0"}  # what a card of the Llama family names


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What one member learnt from a view: B [P] at the end of its run, the Fisher diagonal [P] there, and Adam's moments."""

    theta: Vector
    fisher: Vector
    moments: Moments | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One member's turn: the update that everybody gets, the whole blob's bytes, and the new residual [P]."""

    update: SparseUpdate
    size: int
    residual: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a sender has to decide with: all vectors [P]; `moved` is how the view moved since its last turn."""

    round: int
    residual: Vector
    learnt: Vector  # theta - view, of this run
    moved: Vector
    fisher: Vector
    member: MemberId


Send = Callable[[Turn], Sent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to work together: how often, how it is trained, what is sent, how it is merged.

    `own` is the share of the own unsent residual that a local run starts from beside the view. `merge` stands in for `recipe`
    where a recipe needs more than registers. With `keep_moments` each member's Adam goes on from its last run; `rates` are the
    learning rates of members that do not use that of the settings.
    """

    name: str
    send: Send
    rounds: int = 4
    recipe: str = "contributor-mean/1"
    settings: Settings | None = None
    own: float = 0.0
    merge: Callable[[Mapping[MemberId, Register]], Vector] | None = None
    keep_moments: bool = False
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Held-out loss after each round (mean over members, then of each), and bytes of each round's mean blob."""

    name: str
    base: float
    losses: tuple[float, ...]
    each: tuple[tuple[float, ...], ...]
    sizes: tuple[float, ...]
    view: Vector

    @property
    def gain(self) -> float:
        """Nats won against the base at the end."""
        return self.base - self.losses[-1]


@dataclass(slots=True, kw_only=True)
class Lab:
    """A model with members around it."""

    model: str
    learner: Learner
    store: RowStore
    names: tuple[str, ...]
    samples: tuple[list[Sample], ...]
    base_digest: Digest
    spec: AdapterSpec
    settings: Settings
    seed: int = 0

    @property
    def members(self) -> tuple[MemberId, ...]:
        """An id for each member: a real key made from its name."""
        return tuple(keys.member_id(_key(name)) for name in self.names)

    def losses(self, view: Vector | None) -> tuple[float, ...]:
        """Held-out loss of a view on each member's rows, in nats a token."""
        length = self.settings.length
        return tuple(
            evaluation.held_out_loss(self.learner, sample, view, length=length).nats for sample in self.samples
        )

    def loss(self, view: Vector | None) -> float:
        """The mean of `losses`."""
        return float(np.mean(self.losses(view)))

    def local(self, name: str, view: Vector | None, settings: Settings, moments: Moments | None = None) -> Local:
        """One member's run from a view, and from Adam's `moments`; or the same run kept from before.

        As in the product, without Fisher sequences Adam's own mean of squared gradients stands for the Fisher diagonal.
        """
        file = cache() / "benchmarks" / f"run-{self._key(name, view, settings, moments)}.npz"
        if not file.is_file():
            sequences = training.draw(self.store, [name], self.learner.codec, settings, permits([name], "train"))
            trained = training.train(self.learner, sequences, view, settings, moments=moments)
            several = sequences[: settings.fisher_sequences]
            felt = fisher.diagonal(self.learner, several, trained.theta) if several else trained.moments.fisher()
            _keep(file, theta=trained.theta, fisher=felt, moments=training.packed(trained.moments))
        with np.load(file) as kept:
            left = training.unpacked(kept["moments"], self.learner.coordinates) if "moments" in kept else None
            return Local(theta=kept["theta"], fisher=kept["fisher"], moments=left)

    def pooled(self, settings: Settings, rounds: int) -> Vector:
        """B after training in one place: `rounds * steps` steps, each with as many rows of each member as its own would have.

        Rows drawn by size of the data sets instead make a weaker bound (contrib/LOG.md, "how near to one place").
        """
        whole = dataclasses.replace(settings, steps=settings.steps * rounds, seed=self.seed)
        file = cache() / "benchmarks" / f"balanced-{self._key('+'.join(self.names), None, whole)}.npz"
        if not file.is_file():
            several = [
                training.draw(self.store, [name], self.learner.codec, whole, permits([name], "train"))
                for name in self.names
            ]
            in_turn = [sequence for each in zip(*several, strict=False) for sequence in each]
            wide = dataclasses.replace(whole, batch=whole.batch * len(self.names))
            _keep(file, theta=training.train(self.learner, in_turn, None, wide, in_order=True).theta)
        with np.load(file) as kept:
            return np.asarray(kept["theta"], dtype=np.float32)

    def _key(self, name: str, view: Vector | None, settings: Settings, moments: Moments | None = None) -> str:
        more = {} if moments is None else {"moments": digest(training.packed(moments).tobytes())}
        return digest_of(
            {
                **more,
                "base": self.base_digest,
                "spec": self.spec.to_json(),
                "name": name,
                "view": None if view is None else merging.model_digest(view),
                "bf16": self.learner.bf16,
                "settings": {key: str(value) for key, value in dataclasses.asdict(settings).items()},
            }
        )[:24]


def open_lab(model: str, folder: Path | None = None, *, seed: int = 0, names: Sequence[str] = ()) -> Lab:
    """Load a model and the demo's texts; `folder` holds the rows (a temporary one by default, gone at exit)."""
    import torch

    torch.set_num_threads(1)
    found = models.add(model, cache())
    spec = AdapterSpec(rank=16, alpha=16, targets=TARGETS[model], seed=digest(b"benchmark"))
    texts = demo_data.fetch(cache())
    names = tuple(names) or tuple(texts)
    store = RowStore.open((folder or Path(_scratch().name)) / "rows.db")
    for name in names:
        store.add(name, readers.read(texts[name]))
    samples = tuple(
        evaluation.sample(store, [name], HELD_OUT_ROWS[model], permits([name], "evaluate")) for name in names
    )
    return Lab(
        model=model,
        learner=learner.load(found.path, spec),
        store=store,
        names=names,
        samples=samples,
        base_digest=found.digest,
        spec=spec,
        settings=SETTINGS[model],
        seed=seed,
    )


def rounds(lab: Lab, plan: Plan, *, on_round: Callable[[int, float], None] = lambda _n, _loss: None) -> Curve:
    """Run a plan: in each round every member learns from the view, sends, and all that was sent so far is merged."""
    p, members = lab.learner.coordinates, lab.members
    zero = np.zeros(p, dtype=np.float32)
    view, moved = zero, zero
    residuals = dict.fromkeys(members, zero)
    moments: dict[MemberId, Moments | None] = dict.fromkeys(members)
    registers: dict[MemberId, Register] = {m: merging.empty(p) for m in members}
    losses, each, sizes = [], [], []
    for number in range(plan.rounds):
        settings = dataclasses.replace(plan.settings or lab.settings, seed=lab.seed * 1000 + number)
        sent = {}
        for member, name in zip(members, lab.names, strict=True):
            start = view + np.float32(plan.own) * residuals[member] if plan.own else view
            mine = dataclasses.replace(settings, lr=plan.rates.get(name, settings.lr))
            run = lab.local(name, start if number or plan.own else None, mine, moments[member])
            moments[member] = run.moments if plan.keep_moments else None
            turn = Turn(
                round=number,
                residual=residuals[member],
                learnt=run.theta - view,
                moved=moved,
                fisher=run.fisher,
                member=member,
            )
            if plan.own:
                turn = dataclasses.replace(turn, learnt=run.theta - start)
            sent[member] = plan.send(turn)
        for member, one in sent.items():
            residuals[member] = one.residual
            registers[member] = merging.add(registers[member], one.update)
        if plan.merge:
            merged = plan.merge(registers)
        else:
            merged = recipes.merge(plan.recipe, registers, dict.fromkeys(members, 1), len(members), p)
        moved, view = merged - view, merged
        each.append(lab.losses(view))
        losses.append(float(np.mean(each[-1])))
        sizes.append(float(np.mean([one.size for one in sent.values()])))
        on_round(number + 1, losses[-1])
    return Curve(
        name=plan.name, base=lab.loss(None), losses=tuple(losses), each=tuple(each), sizes=tuple(sizes), view=view
    )


def sparse(
    lab: Lab,
    *,
    density_ppm: int | Sequence[int],
    bits: int = 8,
    rule: str = updates.DEFAULT_RULE,
    block: int = BLOCK,
    keep: float = 1.0,
) -> Send:
    """The product's own sender: error feedback whose old residual counts `keep`, the rule's top coordinates, one blob.

    `density_ppm` may be a schedule: one density for each round, the last one for all that follow.
    """

    fed_back = Feedback(keep_permille=round(keep * 1000))

    def send(turn: Turn) -> Sent:
        schedule = [density_ppm] if isinstance(density_ppm, int) else list(density_ppm)
        wanted = fed_back.wanted(turn.residual, turn.learnt)
        made = updates.make(
            turn.fisher,
            wanted,
            density_ppm=schedule[min(turn.round, len(schedule) - 1)],
            value_bits=bits,
            block=block,
            rule=rule,
            seed=lab.seed * 100 + turn.round,
        )
        left = fed_back.left(wanted, made.update)
        return Sent(update=made.update, size=whole(lab, made.data, made.update, turn, rule), residual=left)

    return send


def dense(lab: Lab) -> Send:
    """Every coordinate as an fp16, nothing left behind: what sparse updates are compared with."""

    def send(turn: Turn) -> Sent:
        wanted = turn.residual + turn.learnt
        values = wanted.astype(np.float16)
        update = dense_update(values)
        raw = values.astype("<f2").tobytes()
        left = (wanted - values.astype(np.float32)).astype(np.float32)
        return Sent(update=update, size=whole(lab, raw, update, turn), residual=left)

    return send


def dense_update(values: npt.NDArray[np.float16]) -> SparseUpdate:
    """All coordinates of an fp16 vector [P] as an update; an fp16 is a multiple of 2^-24, so this is exact."""
    units = np.ldexp(values.astype(np.float64), UNIT_BITS).astype(np.int64)
    indices = np.flatnonzero(units).astype(np.uint32)
    return SparseUpdate(coordinates=len(values), indices=indices, units=units[indices], bits=8, block=BLOCK)


def whole(lab: Lab, data: bytes, update: SparseUpdate, turn: Turn, rule: str = updates.DEFAULT_RULE) -> int:
    """Bytes of the signed blob around an update: the product's own card, envelope and signature."""
    name = lab.names[lab.members.index(turn.member)]
    summary = lab.store.summary(name)
    card = Card(
        collective=CollectiveId(digest(b"lab")),
        member=turn.member,
        epoch=digest(b"epoch"),
        base=lab.base_digest,
        number=turn.round + 1,
        view=digest(turn.learnt.tobytes()),
        train_root=summary.train_root,
        held_out_root=summary.held_out_root,
        train_rows=summary.train_rows,
        steps=lab.settings.steps,
        tokens=lab.settings.steps * lab.settings.batch * lab.settings.length,
        epsilon_micro=None,
        selection=rule,
        density_ppm=200_000,
        value_bits=update.bits,
        coordinates=update.coordinates,
        sent=update.sent,
        norm_micro=updates.norm_micro(update),
        loss_before=400,
        loss_after=350,
        libraries=LIBRARIES,
    )
    return len(blobs.pack(card, data, _key(name)))


def kept(curve: Curve, reference: Curve) -> float:
    """The share of the reference's gain."""
    return curve.gain / reference.gain


def permits(names: Sequence[str], action: Action) -> Mapping[str, Permit]:
    """The right to read public demo texts here: nobody has to decide on it."""
    return {name: Permit(dataset=name, action=action, decision=EventId(ZERO)) for name in names}


def _key(name: str) -> keys.SigningKey:
    return keys.SigningKey(bytes.fromhex(digest(name.encode())))


def _keep(file: Path, **arrays: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.rename(file)


_SCRATCH: list[tempfile.TemporaryDirectory[str]] = []


def _scratch() -> tempfile.TemporaryDirectory[str]:
    _SCRATCH.append(tempfile.TemporaryDirectory())
    return _SCRATCH[-1]
