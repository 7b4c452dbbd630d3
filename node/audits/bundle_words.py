"""What a verified forget bundle has shown, as the JSON that commands answer. Imports no store and no numpy."""

from __future__ import annotations

from typing import Any

from ledger.bundle import STATEMENT
from ledger.bundle_check import Checked
from protocol.canon import Json


def described(checked: Checked) -> dict[str, Json]:
    """What a bundle has shown, as JSON."""
    bundle, new, old = checked.bundle, checked.new.value, checked.old
    names = checked.new.charter.name_of
    by_event = {str(row[0]): row for log in bundle.logs.values() if log for key in ("inputs", "left_out")
                for row in _rows(log[key])}  # fmt: skip
    asked: list[Json] = [
        {
            "event": event,
            "member": by_event[event][2] if event in by_event else None,
            "name": names(str(by_event[event][1])) if event in by_event else event[:12],
            "number": by_event[event][3] if event in by_event else None,
            "reason": checked.by[event][0],
            "evidence": checked.by[event][1],
            "was_in": list(checked.was_in[event]),
        }
        for event in bundle.asked
    ]
    return {
        "holds": True,
        "collective": bundle.collective,
        "name": checked.name,
        "maker": bundle.maker,
        "made": bundle.ts,
        "asked": asked,
        "old": None if old is None else {"release": old.value.digest, "number": getattr(old.value, "number", None)},
        "new": {
            "release": new.digest,
            "number": getattr(new, "number", None),
            "model": getattr(new, "model", None),
            "height": new.place.height,
            "quorum": checked.new.charter.quorum,
        },
        "releases": [
            {"number": r.number, "release": r.release, "model": r.model, "without": r.without, "twice": r.twice}
            for r in bundle.releases
        ],
        "descendants": [
            {"event": d.event, "name": names(d.member), "member": d.member, "number": d.number,
             "certainty": d.certainty, "why": d.why, "through": list(d.through)}
            for d in bundle.descendants
        ],
        "feeds": len(bundle.feeds),
        "entries": len(bundle.entries),
        "statement": STATEMENT,
    }  # fmt: skip


def _rows(value: Json) -> list[list[Any]]:
    return [list(row) for row in value if isinstance(row, list)] if isinstance(value, list) else []
