"""Promises of the demo's texts: pinned, cleaned, fetched without running anybody's code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from contrib import demo_data
from contrib.errors import DownloadFailed
from contrib.readers import read
from protocol.ids import digest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    demo_data.fetch(folder)
    return folder


def test_texts_are_the_pinned_ones_and_readable_as_rows(cache: Path) -> None:
    paths = demo_data.fetch(cache)
    assert list(paths) == ["clinic", "security", "cinema"]
    counts = {name: sum(1 for _ in read(path)) for name, path in paths.items()}
    assert counts == {"clinic": 16454, "security": 938, "cinema": 10480}


def test_cached_texts_are_not_fetched_again(cache: Path) -> None:
    said: list[str] = []
    demo_data.fetch(cache, on_progress=said.append)
    assert said == []


def test_changed_text_in_the_cache_is_fetched_anew(cache: Path) -> None:
    path = demo_data.fetch(cache)["cinema"]
    path.write_bytes(path.read_bytes()[:-20])
    said: list[str] = []
    demo_data.fetch(cache, on_progress=said.append)
    assert len(said) == 1
    assert "cinema" in said[0]
    assert digest(path.read_bytes()) == demo_data.SOURCES["cinema"].rows_sha256
    assert {p.name for p in path.parent.iterdir()} == {"clinic.jsonl", "security.jsonl", "cinema.jsonl", "NOTICE.txt"}


def test_archive_with_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(demo_data.SOURCES["cinema"], archive_sha256="0" * 64)
    monkeypatch.setitem(demo_data.SOURCES, "clinic", other)
    with pytest.raises(DownloadFailed, match="vaderSentiment"):
        demo_data.fetch(tmp_path)
    assert list((tmp_path / "demo-data").iterdir()) == []


def test_text_with_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(demo_data.SOURCES["cinema"], rows_sha256="0" * 64)
    monkeypatch.setitem(demo_data.SOURCES, "clinic", other)
    with pytest.raises(DownloadFailed, match="not the pinned one"):
        demo_data.fetch(tmp_path)
    assert list((tmp_path / "demo-data").iterdir()) == []


def test_cleaning_drops_short_texts_and_collapses_blanks_in_a_fixed_order() -> None:
    raw = [f"text  number\n{n} with enough letters" for n in range(9)] + ["short"]
    cleaned = demo_data.clean(raw)
    assert sorted(cleaned) == [f"text number {n} with enough letters" for n in range(9)]
    assert cleaned == demo_data.clean(raw) != sorted(cleaned)
    assert [json.loads(line) for line in demo_data.jsonl(cleaned).splitlines()] == [{"text": t} for t in cleaned]


def test_every_source_is_credited() -> None:
    notice = demo_data.notice()
    for source in demo_data.SOURCES.values():
        assert source.attribution in notice
        assert source.licence in notice
