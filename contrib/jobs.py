"""What stands in a line of a job, read with its limits checked: `contrib.worker` runs what these give.

Knows the shapes of jobs and no model. Invariant: what is missing, unknown or of the wrong type is a `BadJob` (a vector that
cannot be read a `BadAdapter`) in plain words, before anything is computed; only moments may be unreadable: they count as absent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contrib.adapters import Vector
from contrib.errors import BadAdapter, BadJob
from contrib.tuning import Wish

if TYPE_CHECKING:
    from contrib.permit import Permit
    from contrib.rows import RowStore
    from contrib.training import Moments

Job = Mapping[str, Any]


def parse(line: str) -> Job:
    """The job in a line."""
    try:
        job = json.loads(line)
    except (ValueError, RecursionError):
        raise BadJob("couldn't read job: a line must be a JSON object") from None
    if not isinstance(job, dict):
        raise BadJob("couldn't read job: a line must be a JSON object")
    return job


def settings(value: object) -> Any:
    """How a run trains, as `contrib.training.Settings`."""
    from contrib.training import Settings

    if not isinstance(value, dict):
        raise BadJob("couldn't take settings: an object is expected")
    kinds: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    for name, given in value.items():
        if name not in kinds:
            raise BadJob(f"couldn't take settings: {name} is none of {', '.join(kinds)}")
        if isinstance(given, bool) or not isinstance(given, int if kinds[name] is int else (int, float)):
            raise BadJob(f"couldn't take settings: {name} must be a number")
    return Settings(**value)


def wish(value: object) -> Wish | None:
    """What is to be tuned; None: nothing, and the run ends when its steps are done."""
    if value is None:
        return None
    if not isinstance(value, dict) or not set(value) <= {"rate", "steps", "sequences", "members"}:
        raise BadJob("couldn't take tuning: an object of rate, steps, sequences and members is expected")
    rate, steps, sequences = value.get("rate", False), value.get("steps", False), value.get("sequences", 16)
    members = value.get("members", 1)
    if not (type(rate) is type(steps) is bool and type(sequences) is type(members) is int):
        raise BadJob("couldn't take tuning: rate and steps are true or false, sequences and members are numbers")
    return Wish(rate=rate, steps=steps, sequences=sequences, members=members)


def moments(file: object, coordinates: int) -> Moments | None:
    """What an earlier run left, if it is there and of this adapter: a run without it begins anew, which costs a few steps."""
    from contrib import training

    if file is None:
        return None
    if not isinstance(file, str):
        raise BadJob("couldn't run job: moments must be a path or null")
    try:
        return training.unpacked(np.load(file, allow_pickle=False), coordinates)
    except (OSError, ValueError, EOFError):
        return None


def names(job: Job) -> list[str]:
    """The data sets that are read."""
    names = job.get("datasets")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise BadJob("couldn't run job: datasets must be a list of names")
    return names


def opened(job: Job, clock: Callable[[], int] | None = None) -> RowStore:
    """The rows, read only, with the key that came with the job; `clock` (ms) ends permits, by default the system's."""
    from contrib import sealing
    from contrib.rows import RowStore

    file, key = path(job, "rows"), sealing.key_from_hex(job.get("key"))
    if clock is None:
        return RowStore.open(file, key=key, read_only=True)
    return RowStore.open(file, key=key, read_only=True, clock=clock)


def permits(job: Job) -> dict[str, Permit]:
    """What may be read of each data set."""
    from contrib import permit

    given = job.get("permits", {})
    if not isinstance(given, dict):
        raise BadJob("couldn't run job: permits must map data sets to permits")
    return {name: permit.parse(value) for name, value in given.items()}


def path(job: Job, key: str) -> Path:
    """A path that must be there."""
    value = job.get(key)
    if not isinstance(value, str) or not value:
        raise BadJob(f"couldn't run job: {key} must be a path")
    return Path(value)


def number(job: Job, key: str, default: int, *, least: int = 1) -> int:
    """A whole number, or `default`."""
    value = job.get(key, default)
    if type(value) is not int or not least <= value <= 1 << 20:
        raise BadJob(f"couldn't run job: {key} must be a whole number from {least}")
    return value


def view(file: object) -> Vector | None:
    """The vector in a file; None is the base itself."""
    if file is None:
        return None
    if not isinstance(file, str):
        raise BadJob("couldn't run job: a view must be a path or null")
    try:
        vector = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise BadAdapter(f"couldn't read view {file}: {e}") from e
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        raise BadAdapter(f"couldn't read view {file}: a vector of float32 is expected")
    return vector
