"""From a release of this home's ledger to an exported folder: which release, recomputed here, with the facts for its card.

Reads the ledger and the blobs; needs no daemon, no key and no torch. Invariant: only a model that was recomputed from the
blobs in this home, and came to the digest that the quorum decided, is ever written.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contrib import exporting
from contrib.adapters import AdapterSpec
from contrib.exporting import SIGNATURE, Card, Wanted
from contrib.models import Model as BaseModel
from contrib.models import Progress
from ledger import forgetting
from ledger.collective import Decision
from ledger.cuts import Cut
from node.collective.releases import find
from node.collective.replay import Missing, Replay, Vector
from node.collective.seat import now_ms
from node.errors_serving import CannotSign, NotRecomputable, ReleaseGone
from node.session import Session
from protocol.canon import Json
from protocol.ids import ZERO, Digest, digest, short

_MINUTES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Signs folders with OpenSSF model-signing, a program of its own: its many dependencies stay out of this one."""

    command: tuple[str, ...]
    key: Path

    def __call__(self, folder: Path) -> None:
        """Write `model.sig`: a Sigstore bundle over every file (raises CannotSign)."""
        asked = [*self.command, "sign", "key", "--private_key", str(self.key.absolute())]
        asked += ["--signature", str(folder / SIGNATURE), str(folder)]
        try:
            done = subprocess.run(
                asked, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60 * _MINUTES
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise CannotSign(f"couldn't sign export: {type(e).__name__} of {self.command[0]}") from e
        if done.returncode or not (folder / SIGNATURE).is_file():
            lines = (done.stderr + done.stdout).decode("utf-8", "replace").strip().splitlines()
            cause = lines[-1][:200] if lines else f"it ended with {done.returncode}"
            hint = "the key must be an unlocked EC private key in PEM on P-256, P-384 or P-521"
            raise CannotSign(f"couldn't sign export with {self.key}: {cause}", hint=hint)


def signer(key: Path) -> Signer:
    """A signer with the private key in a file.

    Raises:
        CannotSign: model-signing is not installed, or there is no such file; nothing was written yet.
    """
    if not key.is_file():
        raise CannotSign(f"couldn't sign export: there is no key file {key}")
    if importlib.util.find_spec("model_signing") is not None:
        return Signer(command=(sys.executable, "-m", "model_signing"), key=key)
    if (found := shutil.which("model_signing")) is not None:
        return Signer(command=(found,), key=key)
    hint = "pipx install model-signing puts the command on the path; or export without --sign"
    raise CannotSign("couldn't sign export: OpenSSF model-signing is not installed", hint=hint)


def export(
    session: Session,
    release: str,
    wanted: Wanted,
    *,
    sign: Path | None,
    on_progress: Progress,
    now: Callable[[], int] = now_ms,
) -> Json:
    """Write `release` as `wanted` says and return what was written.

    Raises:
        UnknownRelease: no such release.
        ReleaseGone: something in it was forgotten, and nobody should use it any more.
        NotRecomputable: blobs are missing, or what comes out is not what was decided.
        CannotSign: see `signer`.
        What `contrib.exporting.write` raises.
    """
    fold = session.need_seat().fold
    exporting.check_free(wanted.out, force=wanted.force)
    finish = signer(sign) if sign is not None else None
    decision, cut = find(fold, release)
    retired = forgetting.retired(fold).get(decision.digest)
    if retired is not None and retired.deadline <= now():
        raise ReleaseGone(
            f"couldn't export release-{cut.number}: something in it had to be forgotten",
            hint=f"release-{retired.successor_number} ({short(retired.successor)}) is without it",
        )
    base = _base(session, decision)
    on_progress("recomputing", 0.0)
    vector = recomputed(session, decision, cut)
    card = card_of(session, decision, cut, base)
    told = exporting.write(wanted, card, base, vector, on_progress=on_progress, finish=finish or (lambda _folder: None))
    size = sum(file.stat().st_size for file in wanted.out.iterdir())
    shown = {k: told[k] for k in ("format", "name", "release", "number", "height", "model", "collective", "licence")}
    if "merged" in told:
        shown["merged"] = told["merged"]
    signature: Json = SIGNATURE if finish else None
    if retired is not None:
        shown["retires"], shown["successor"] = retired.deadline, retired.successor
    return {**shown, "path": str(wanted.out), "bytes": size, "base": base.digest, "signature": signature}


def recomputed(session: Session, decision: Decision, cut: Cut) -> Vector:
    """The model of a release from the blobs in this home (raises NotRecomputable)."""
    seat = session.need_seat()
    folder, damaged = session.home.blobs, set[Digest]()

    def read(name: Digest) -> bytes | None:
        try:
            data = (folder / name).read_bytes()
        except OSError:
            return None
        if digest(data) == name:
            return data
        damaged.add(name)
        return None

    model = Replay(seat.fold, read).of_cut(decision.charter, cut)
    what = f"couldn't export release-{cut.number}"
    if isinstance(model, Missing):
        if not model.blobs:
            raise NotRecomputable(f"{what}: entries that it builds on are not here", hint="fishernet up fetches them")
        lost = f"{len(model.blobs)} of its contributions are not here ({len(damaged)} damaged)"
        cause = f"{lost}, first {short(model.blobs[0])}"
        hint = "fishernet up fetches them; what was erased on request is gone, and a later release was made without it"
        raise NotRecomputable(f"{what}: {cause}", hint=hint)
    if model.digest != cut.model:
        cause = f"recomputed it is {short(model.digest)}, decided was {short(cut.model)}"
        raise NotRecomputable(f"{what}: {cause}", hint="fishernet audit")
    return model.vector


def card_of(session: Session, decision: Decision, cut: Cut, base: BaseModel) -> Card:
    """What the record says about a release."""
    seat, charter = session.need_seat(), decision.charter
    sent = seat.fold.in_cut(cut)
    members: list[dict[str, Json]] = []
    for id_ in sorted({m.id for m in charter.members} | set(sent)):
        member = charter.member(id_)
        members.append(
            {
                "id": id_,
                "name": member.name if member else "",
                "organisation": member.organisation if member else "",
                "role": member.role if member else "former",
                "contributions": len(sent.get(id_, ())),
            }
        )
    licences = {e.licence for (m, _), (_, e) in seat.book.described.items() if e.licence and seat.fold.owner(m) in sent}
    commits: list[Json] = [{"member": c.member, "seq": c.seq, "event": c.event} for c in decision.commits]
    head = session.store.head(seat.collective, seat.me)
    return Card(
        cut=cut.to_json(),
        release=decision.digest,
        spec=AdapterSpec.parse(charter.to_json()["adapter"]),
        base_name=base.name,
        base=base.digest,
        members=tuple(members),
        certificate={"attempt": decision.attempt, "quorum": charter.quorum, "commits": commits},
        ledger={"member": seat.me, "size": head.size if head else 0, "head": head.root if head else ZERO},
        licence=next(iter(licences)) if len(licences) == 1 else "other",
    )


def _base(session: Session, decision: Decision) -> BaseModel:
    return session.find_model(decision.charter.base.digest)
