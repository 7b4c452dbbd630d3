"""A node that joins after fifty releases: one pass, the newest release first, and its work is in the next one.

The past is written by hand with real entries, votes and updates of the tiny model; the nodes that hold it, and the one that
comes late, are real daemons.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from history import History, node_of
from line import Line, published
from posted import Post
from real_node import Node, until

pytestmark = pytest.mark.slow


def served(node: Node) -> list[str]:
    return [m for m in (node.status().get("serving") or {}).get("models", []) if m.startswith("release-")]


@contextmanager
def up(line: Line, donors: Sequence[Node]) -> Iterator[None]:
    """Donors that serve all of the past."""
    try:
        for donor in donors:  # one alone may not write before another member has answered, but it serves
            donor.start()
        for donor in donors:
            until(lambda donor=donor: served(donor), 120, what=f"{donor.name} serves\n" + donor.tail())
        yield
    finally:
        line.stop()


def test_a_node_that_joins_after_fifty_releases_serves_the_newest_first_and_contributes_to_the_next(
    tmp_path: Path,
) -> None:
    names = ("ada", "bob", "cyd", "dan")
    past = History(names, absent=("dan",), wait_for=4)
    past.releases(50)
    post = Post(tmp_path, past)
    donors = list[Node]()
    for name in names[:3]:
        donors.append(node_of(post, name, peers=donors[:1], rows=True))
    late = node_of(post, "dan", holds=False, peers=donors[:1], rows=True)
    line = Line([*donors, late], past.collective)
    with up(line, donors):
        line.start(donors)
        late.start()
        first = until(lambda: served(late), 120, step_s=0.02, what="it serves a release\n" + late.tail())
        assert "release-50" in first, "the newest first"
        until(late.ready, 60, what="it may write")
        held = late.fold().sizes
        assert all(held[member] >= size for member, size in past.fold.sizes.items())
        assert late.releases() == [d.digest for d in past.fold.releases], (
            "its head equals the others' before it is scored"
        )
        until(lambda: len(served(late)) == 50, 120, what="history follows")
        line.release()
        fold = donors[0].fold()
        assert len(fold.releases) == 51
        assert len(fold.in_cut(fold.cut)[late.member]) == len(published(late)) == 1


def test_a_newcomer_whose_only_donor_dies_in_the_middle_goes_on_with_another(tmp_path: Path) -> None:
    names = ("ada", "bob", "cyd")
    past = History(names, absent=("cyd",))
    past.releases(30)
    post = Post(tmp_path, past)
    first = node_of(post, "ada")
    second = node_of(post, "bob", peers=[first])
    late = node_of(post, "cyd", holds=False, peers=[first, second])
    line = Line([first, second, late], past.collective)
    with up(line, [first]):
        late.start()
        until(lambda: sum(late.fold().sizes.values()) > 20, 60, step_s=0.02, what="something has come")
        first.kill()
        second.start()
        until(
            lambda: served(late)[:1] == ["release-30"] or "release-30" in served(late),
            120,
            what="the rest came\n" + late.tail(),
        )
        assert late.releases() == [d.digest for d in past.fold.releases]


def test_catching_up_with_fifty_releases_of_sixteen_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures, printed: seconds from its start to the first release served, to ready, and to everything."""
    names = [f"m{n:02d}" for n in range(16)]
    past = History(names, absent=names[-1:])
    past.releases(50)
    post = Post(tmp_path, past)
    donors = [node_of(post, names[0])]
    donors.append(node_of(post, names[1], peers=donors))
    late = node_of(post, names[-1], holds=False, peers=donors[:1])
    line = Line([*donors, late], past.collective)
    with up(line, donors):
        began = time.monotonic()
        late.start()
        assert "release-50" in until(lambda: served(late), 240, step_s=0.05, what="a release\n" + late.tail())
        first = time.monotonic() - began
        until(late.ready, 60, what="it may write")
        until(lambda: len(served(late)) == 50, 120, what="history follows")
        whole = time.monotonic() - began
    entries = sum(map(len, past.feeds.values()))
    with capsys.disabled():
        print(
            f"\n{entries} entries, {len(past.blobs)} blobs: newest served after {first:.1f} s, all after {whole:.1f} s"
        )
