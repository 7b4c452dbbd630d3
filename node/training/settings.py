"""How the next local run is trained: what the configuration says, and what earlier runs of this epoch have found.

Pure: values in, values out; knows no worker and no ledger. What a search chose, and Adam's moments, lie in the folder of the
run that made them (`node.training.runs`), belong to one epoch, and may be lost: the next run then searches again, and begins
its moments anew. Invariant: what was searched under other settings, in another epoch or on other data sets is not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.sections import AUTO, Train
from node.training.runs import Ran
from protocol.ids import Digest

FIRST_RATE: Final = 0.004  # where a search begins, and what is used when there are too few rows to search on
FIRST_STEPS: Final = 10
_ASKED: Final = ("steps", "learning_rate", "batch", "length", "warmup")  # what a choice depends on


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The fields of a training job that say how (see `node.ports.TrainJob`), and the answer of an earlier search."""

    settings: Mapping[str, int | float]
    tuning: Mapping[str, bool | int] | None
    moments: Path | None
    answer: Mapping[str, Any]


def plan(
    config: Train,
    runs: Iterable[Ran],
    *,
    epoch: Digest,
    datasets: tuple[str, ...],
    seed: int,
    members: int = 1,
    steps: int | None = None,
) -> Plan:
    """How to train now, after `runs` (oldest first), for a mean over so many contributing `members`.

    With `steps`: so many this once, and nothing is searched for.
    """
    before = [ran for ran in runs if ran.epoch == epoch]
    answer = _answer(config, before, datasets)
    tunes_rate, tunes_steps = config.learning_rate == AUTO, config.steps == AUTO
    searches = not answer and steps is None
    return Plan(
        settings={
            "steps": steps or (answer.get("steps", FIRST_STEPS) if config.steps == AUTO else config.steps),
            "batch": config.batch,
            "length": config.length,
            "lr": answer.get("lr", FIRST_RATE) if config.learning_rate == AUTO else config.learning_rate,
            "warmup": config.warmup,
            "seed": seed,
            "fisher_sequences": config.fisher_sequences,
        },
        tuning={"rate": tunes_rate and searches, "steps": tunes_steps and searches, "members": members}
        if tunes_rate or tunes_steps or config.early_stop
        else None,
        moments=before[-1].moments if before and config.keep_moments else None,
        answer=answer,
    )


def told(config: Train, planned: Plan, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept and shown of how a run was trained: the worker's words, and what stands from now on."""
    found = {
        "steps": planned.settings["steps"],
        "lr": planned.settings["lr"],
        "planned": planned.settings["steps"],
        **chosen,
    }
    answer = planned.answer
    if found.get("trials") is not None:
        answer = {"lr": found["lr"], "steps": found["planned"]}
    return {**found, "answer": dict(answer), "asked": _asked(config)}


def _answer(config: Train, before: list[Ran], datasets: tuple[str, ...]) -> Mapping[str, Any]:
    """What the newest search found that answers the same question, or nothing."""
    for ran in reversed(before):
        answer: Mapping[str, Any] = ran.chosen.get("answer") or {}
        if answer and ran.chosen.get("asked") == _asked(config) and ran.datasets == datasets:
            return answer
    return {}


def _asked(config: Train) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _ASKED}
