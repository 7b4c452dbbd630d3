"""A finished training run on disk: what publishing it needs, so that a restart in between loses nothing.

Knows no ledger. `runs/<run>/run.json` is written by this node when the run has ended, names the files beside it, and is
trusted; one that is incomplete, or of another version, counts as not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from node.files import room, write_new
from protocol.ids import Digest

_READY: Final = "run.json"
_PATHS: Final = ("view_vector", "theta", "fisher", "moments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A finished run that waits to be published."""

    run: str
    epoch: Digest
    view: Digest
    view_vector: Path
    theta: Path
    fisher: Path
    datasets: tuple[str, ...]
    purpose: str
    train_root: Digest
    held_out_root: Digest
    train_rows: int
    steps: int
    tokens: int
    seconds: float
    before: float
    after: float
    libraries: Mapping[str, str]
    moments: Path | None = None  # what Adam knew at the end; a run that begins without it only begins anew
    chosen: Mapping[str, Any] = field(default_factory=dict)  # see `node.training.settings.told`


def keep(folder: Path, ran: Ran) -> None:
    """Write down that a run has ended (raises DiskFull)."""
    with room(f"keep run {ran.run}"):
        write_new(folder / _READY, json.dumps(_json(ran)).encode())


def finished(folder: Path) -> Iterator[Ran]:
    """The whole runs in `folder`, oldest first."""
    for file in sorted(folder.glob(f"*/{_READY}")):
        ran = _read(file)
        if ran is not None:
            yield ran


def _json(ran: Ran) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else dict(value) if isinstance(value, Mapping) else value
        for name, value in ((n, getattr(ran, n)) for n in Ran.__slots__)
    }


def _read(file: Path) -> Ran | None:
    try:
        value = json.loads(file.read_bytes())
        value["datasets"] = tuple(value["datasets"])
        fields: dict[str, Any] = {n: Path(v) if n in _PATHS and v is not None else v for n, v in value.items()}
        ran = Ran(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return ran if all(path.is_file() for path in (ran.view_vector, ran.theta, ran.fisher)) else None
