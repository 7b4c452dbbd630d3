"""Permits as tests need them: for one data set, by a decision that nobody looks up."""

from __future__ import annotations

from typing import Any

from contrib.permit import Permit
from protocol.ids import EventId

DECISION = EventId("d0" * 32)


def to_train(dataset: str, **terms: Any) -> Permit:
    """The permit to train on a data set; `terms` narrow it."""
    return Permit(dataset=dataset, action="train", decision=DECISION, **terms)


def to_measure(dataset: str, **terms: Any) -> Permit:
    """The permit to evaluate on a data set; `terms` narrow it."""
    return Permit(dataset=dataset, action="evaluate", decision=DECISION, **terms)
