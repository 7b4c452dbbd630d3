"""What a check says. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from protocol.canon import Json

Level = Literal["ok", "warn", "fail"]
CODES: Final = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: what it is, how it stands, why, and for what is not well a command to type."""

    name: str
    level: Level
    cause: str
    cure: str = ""

    def to_json(self) -> dict[str, Json]:
        """For programs."""
        return dict(asdict(self))


def ok(name: str, cause: str) -> Finding:
    """All is well."""
    return Finding(name=name, level="ok", cause=cause)


def warn(name: str, cause: str, cure: str) -> Finding:
    """It works, and will not for ever, or not as well as it could."""
    return Finding(name=name, level="warn", cause=cause, cure=cure)


def fail(name: str, cause: str, cure: str) -> Finding:
    """It does not work."""
    return Finding(name=name, level="fail", cause=cause, cure=cure)


def code(findings: Sequence[Finding]) -> int:
    """The exit code: 0 all well, 1 something to look after, 2 something does not work."""
    return max((CODES[each.level] for each in findings), default=0)
