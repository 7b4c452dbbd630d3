"""The private rows of simulated members: one pool of labelled rows, split unlike each other, into real row stores.

Knows no ledger. Invariant: same data settings, members and seed give the same rows for everybody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from contrib.datasets import DatasetSummary
from contrib.errors import BadJob
from contrib.partition import dirichlet
from contrib.row import Row, text_row
from contrib.rows import RowStore
from node.errors import ConfigError
from node.simulation.clock import START_MS
from node.simulation.config import Data

DATASET: Final = "rows"
_CONSONANTS, _VOWELS = "bcdfghklmnprstvw", "aeiou"
_WORDS, _LENGTH = 40, (5, 10)  # words of one source; words of one row
Labelled = tuple[str, Row]  # where a row comes from, and the row


def pool(data: Data, seed: int, *, cache: Path) -> list[Labelled]:
    """The pool, in a fixed order.

    Raises:
        ConfigError: a file cannot be read, or holds no rows.
        DownloadFailed: the demo's texts could not be fetched.
    """
    if data.kind == "words":
        return _made_up(data, np.random.default_rng([seed, 11]))
    if data.kind == "demo":
        from contrib import demo_data

        return _shared(_read(demo_data.fetch(cache)), data, seed)
    return _shared(_read({name: Path(path) for name, path in data.files.items()}), data, seed)


def split(rows: Sequence[Labelled], members: int, data: Data, seed: int) -> list[list[Row]]:
    """The rows of each member, by its sources (or labels); raises ConfigError when there are too few."""
    try:
        parts = dirichlet(
            [label for label, _ in rows], members, data.alpha, np.random.default_rng([seed, 12]), least=data.least
        )
    except BadJob as e:
        raise ConfigError(
            f"couldn't make data: {str(e).removeprefix('couldn' + chr(39) + 't split items: ')}",
            hint="more [data] rows, or a smaller least",
        ) from None
    return [[rows[i][1] for i in part] for part in parts]


def store(path: Path, rows: Sequence[Row], data: Data, entropy: Callable[[int], bytes]) -> DatasetSummary:
    """Write one member's rows into a row store; returns what may be said of them."""
    with RowStore.open(path, entropy=entropy, clock=lambda: START_MS) as opened:
        return opened.add(DATASET, rows, round(data.held_out * 1_000_000))


def _made_up(data: Data, rng: np.random.Generator) -> list[Labelled]:
    """Sentences over a vocabulary of their own for each source: easy to learn, and different between sources."""
    found: list[Labelled] = []
    for source in range(data.sources):
        words = sorted({_word(rng) for _ in range(_WORDS)})
        likely = 1.0 / np.arange(1, len(words) + 1)  # Zipf's law, as in any text
        rng.shuffle(words)
        for _ in range(data.rows // data.sources):
            drawn = rng.choice(len(words), size=int(rng.integers(*_LENGTH)), p=likely / likely.sum())
            text = " ".join(words[int(i)] for i in drawn).capitalize() + "."
            found.append((f"source-{source}", text_row(text)))
    return _without_twins(found)


def _word(rng: np.random.Generator) -> str:
    syllables = int(rng.integers(2, 4))
    letters = (
        _CONSONANTS[rng.integers(len(_CONSONANTS))] + _VOWELS[rng.integers(len(_VOWELS))] for _ in range(syllables)
    )
    return "".join(letters)


def _read(files: dict[str, Path]) -> list[Labelled]:
    """Rows of JSONL files as `data add` reads them; of rows with an answer the answer is the label."""
    from contrib import readers

    found: list[Labelled] = []
    for name in sorted(files):
        try:
            rows = list(readers.read(files[name]))
        except (OSError, json.JSONDecodeError) as e:
            raise ConfigError(f"couldn't read {files[name]}: {e}") from None
        found += [(row.answer() or name, row) for row in rows]
    if not found:
        raise ConfigError("couldn't make data: the files hold no rows")
    return _without_twins(found)


def _without_twins(rows: list[Labelled]) -> list[Labelled]:
    seen: dict[str, Labelled] = {}
    for label, row in rows:
        seen.setdefault(row.digest(), (label, row))
    return list(seen.values())


def _shared(rows: list[Labelled], data: Data, seed: int) -> list[Labelled]:
    """At most so many rows, the same number of each label as far as there are."""
    rng = np.random.default_rng([seed, 13])
    by_label: dict[str, list[Labelled]] = {}
    for each in rows:
        by_label.setdefault(each[0], []).append(each)
    share = -(-data.rows // len(by_label))
    found = []
    for label in sorted(by_label):
        several = by_label[label]
        found += [several[int(i)] for i in rng.permutation(len(several))[:share]]
    return found
