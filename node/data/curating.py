"""What an operator does with private rows: add, list, forget, seal. The commands `data.*`, offline and in the daemon.

Shapes of the results: cli/render.py. Invariant: no result names a row, a subject or a private tag; what a person typed to find
rows is used here and kept nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ledger import events, rules
from ledger.events.erasure import Scope
from node.collective.seat import now_ms
from node.data import erasing
from node.errors import NotAllowed
from node.session import Session
from protocol.canon import Json
from protocol.ids import Digest, as_hex

if TYPE_CHECKING:
    from contrib.datasets import DatasetSummary, Description, Found

Args = Mapping[str, Json]
_FIELDS = ("text_field", "prompt_field", "completion_field", "tag_field", "subject_field")
_DAY_MS = 86_400_000


async def add(session: Session, args: Args) -> Json:
    """Read a file into the store, and commit to it now or when the ledger may be written."""
    summary = await asyncio.to_thread(_read_rows, session, args)
    _publish(session)
    return summary


async def list_(session: Session, _args: Args) -> Json:
    """What may be said about every data set."""
    if not session.home.rows_db.exists():
        return {"datasets": []}
    with session.rows(read_only=True) as rows:
        return {"datasets": [_json(summary) for summary in rows.datasets()]}


async def forget(session: Session, args: Args) -> Json:
    """Forget the rows that `row`, `row_file`, `subject` or `expired` names, in one data set or all; `dry_run` only counts.

    Raises:
        NotAllowed: nothing was named, or no row is meant.
        RowsBusy: the rows are deleted, a reader still holds their bytes; the plan is carried out at the next call.
    """
    left = bool(erasing.pending(session.store)) and not args.get("dry_run")
    if left:  # what an earlier call could not end comes first
        await asyncio.to_thread(erasing.delete, session)
        _publish(session)
    wanted = args.get("dataset")
    chosen = await asyncio.to_thread(_find, session, args, str(wanted) if wanted else None)
    if not chosen and not left:
        raise NotAllowed("couldn't forget rows: no row here is meant", hint="fishernet data list")
    scope: Scope = "subject" if args.get("subject") is not None else "row"
    traces = {name: erasing.trace(session, name, found.roots) for name, found in chosen.items()}
    result: dict[str, Json] = {
        "dry_run": bool(args.get("dry_run")),
        "datasets": list(chosen),
        "rows": sum(len(found.ids) for found in chosen.values()),
        "train_rows": sum(found.train_rows for found in chosen.values()),
        "held_out_rows": sum(found.held_out_rows for found in chosen.values()),
        "contributions": sorted({event for found in traces.values() for event in found.contributions}),
        "releases": [],
        "bodies": len({event for found in traces.values() for event in found.entries}),
        "requests": [],
    }
    gone = {event for found in traces.values() for event in found.contributions}
    if session.seat is not None and session.seat.fold.known:
        result["releases"] = list(rules.containing(session.seat.fold, gone))
    if args.get("dry_run"):
        return result
    before = len(session.eraser().fold.requests()) if session.seat else 0
    for name, found in chosen.items():
        erasing.begin(session, name, found, scope)
    await asyncio.to_thread(erasing.delete, session)
    _publish(session)
    after = session.eraser().fold.requests() if session.seat else []
    result["requests"] = [request.source.event for request in after[before:]]
    return result


async def seal(session: Session, _args: Args) -> Json:
    """Encrypt the rows at rest; rows that are added later are sealed as well."""
    if session.row_key is None or not session.home.rows_db.exists():
        raise NotAllowed("couldn't seal rows: this node has none yet", hint="fishernet data add FILE --dataset NAME")
    key = session.row_key.create()

    def convert() -> int:
        with session.rows() as rows:
            return rows.seal(key)

    count = await asyncio.to_thread(convert)
    return {"text": f"{count} rows are sealed with the passphrase of this node", "rows": count, "sealed": True}


def _publish(session: Session) -> None:
    if session.seat is not None and session.seat.fold.known and session.seat.paused is None:
        session.commit_data()
    if session.daemon is not None:
        session.daemon.use_data()


def _read_rows(session: Session, args: Args) -> Json:
    from contrib import readers

    path = Path(str(args.get("path")))
    fields = {k: str(args[k]) for k in _FIELDS if args.get(k)}
    tags = tuple(str(tag) for tag in _list(args, "tags"))
    rows = readers.read(path, format=args.get("format") or None, tags=tags, **fields)  # type: ignore[arg-type]
    share, name = args.get("held_out_ppm"), str(args.get("dataset"))
    exists = str(args.get("if_exists") or "refuse")
    with session.rows() as store:
        before = next((each for each in store.datasets() if each.name == name), None)
        summary = store.add(
            name,
            rows,
            share if isinstance(share, int) else None,
            if_exists=exists,  # type: ignore[arg-type]
            description=_description(args, before.description if before else None),
        )
    return _json(summary)


def _description(args: Args, before: Description | None) -> Description:
    """What the owner declares now; what is not said stays as it was. Refused before a row is stored if no event can say it."""
    from contrib.datasets import Description

    said = before or Description()
    purposes, days = _list(args, "purposes"), args.get("retention_days")
    found = Description(
        tags=tuple(sorted({*said.tags, *(str(tag) for tag in _list(args, "tags"))})),
        purposes=tuple(sorted({str(each) for each in purposes})) if purposes else said.purposes,
        retention_days=days if isinstance(days, int) else said.retention_days,
        licence=said.licence if args.get("licence") is None else str(args["licence"]),
        basis=said.basis if args.get("basis") is None else str(args["basis"]),
        grant=said.grant if args.get("grant") is None else bool(args["grant"]),
    )
    event = events.DataDescribed(
        dataset=str(args.get("dataset")),
        tags=found.tags,
        purposes=found.purposes,
        retention_days=found.retention_days,
        licence=found.licence,
        basis=found.basis,
    )
    events.parse(event.TYPE, event.to_json())
    return found


def _find(session: Session, args: Args, dataset: str | None) -> dict[str, Found]:
    if not session.home.rows_db.exists():
        return {}
    digests: Sequence[Digest | None] = [Digest(as_hex(d, "row digest")) for d in _list(args, "rows")] or [None]
    if args.get("row_file"):
        digests = _digests(Path(str(args["row_file"])))
    subject = args.get("subject")
    if list(digests) == [None] and subject is None and not args.get("expired"):
        raise NotAllowed("couldn't forget rows: nothing says which", hint="--row, --row-file, --subject or --expired")
    found: dict[str, list[Found]] = {}
    with session.rows() as rows:
        for summary in [rows.summary(dataset)] if dataset else rows.datasets():
            limit = _limit(summary) if args.get("expired") else None
            if args.get("expired") and limit is None:
                continue
            about = None if subject is None else str(subject)
            hits = [rows.find(summary.name, digest=d, subject=about, before_ms=limit) for d in digests]
            if any(hit.ids for hit in hits):
                found[summary.name] = hits
    return {name: _joined(hits) for name, hits in found.items()}


def _joined(hits: list[Found]) -> Found:
    from contrib.datasets import Found

    hits = [hit for hit in hits if hit.ids]
    roots = None if any(hit.roots is None for hit in hits) else frozenset(r for hit in hits for r in hit.roots or ())
    return Found(
        ids=tuple(sorted({number for hit in hits for number in hit.ids})),
        train_rows=sum(hit.train_rows for hit in hits),
        held_out_rows=sum(hit.held_out_rows for hit in hits),
        roots=roots,
    )


def _digests(path: Path) -> Sequence[Digest | None]:
    from contrib import readers

    return sorted({row.digest() for row in readers.read(path)})


def _limit(summary: DatasetSummary) -> int | None:
    days = summary.description.retention_days
    return None if days is None else now_ms() - days * _DAY_MS


def _list(args: Args, name: str) -> list[Json]:
    value = args.get(name)
    return value if isinstance(value, list) else []


def _json(summary: DatasetSummary) -> dict[str, Json]:
    described = asdict(summary.description)
    plain = {k: v for k, v in asdict(summary).items() if k != "description"} | described
    found: dict[str, Json] = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
    return {**found, "overdue": summary.overdue(now_ms())}
