"""Real daemons that restart, die, hang and leave, one by one and all at once: every round ends, and nothing acknowledged is lost.

OpenFL's resiliency tests (the aggregator restarts, then each collaborator, then all) and Psyche's list of clients that leave
and come back. The founder stands for what those systems have a server for: here it is a member like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from line import Line, published, running
from real_node import make_node, sentences, until

from protocol.errors import FishernetError

pytestmark = pytest.mark.slow
NAMES = ("founder", "second", "third")


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("trio")
    nodes = [make_node(folder, name, sentences(name), train__auto=False) for name in NAMES]
    with running(Line.found(nodes)) as line:
        line.release()
        yield line


@pytest.fixture
def line(trio: Line) -> Line:
    """Everybody up, and nothing waiting."""
    trio.start()
    trio.settle()
    return trio


def training(line: Line, *names: str) -> list[threading.Thread]:
    """Let nodes train beside the test; whether it ends well is asked of the ledger."""

    def run(name: str) -> None:
        with suppress(FishernetError):
            line[name].call("train.now", 90, steps=60)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for name in names:
        until(lambda name=name: line[name].status()["training"].get("step", 0) > 0, 60, step_s=0.02, what="it trains")
    return threads


def sound(line: Line) -> None:
    """Equal records, no vote twice, and all that anybody published is in the newest release."""
    line.settle()
    folds = [n.fold() for n in line.nodes]
    assert len({tuple(n.releases()) for n in line.nodes}) == 1
    assert not any(f.double_votes for f in folds)
    assert not any(n.forks() for n in line.nodes)
    fold = folds[0]
    assert {fold.fate(c) for by in fold.contributions.values() for c in by} == {"released"}
    for node in line.nodes:
        assert len(fold.in_cut(fold.cut)[node.member]) == len(published(node))


def test_the_founder_restarts_in_the_middle_of_a_round_and_the_round_ends(line: Line) -> None:
    count = len(line["second"].releases())
    threads = training(line, "second", "third")
    line["founder"].stop()
    line["founder"].start()
    for thread in threads:
        thread.join(120)
    line.agree(count + 1)
    sound(line)


def test_each_member_is_killed_in_turn_and_contributes_to_the_next_release_under_the_same_id(line: Line) -> None:
    for name in NAMES:
        node = line[name]
        before, member = len(published(node)), node.member
        node.kill()
        node.start()
        until(node.ready, 90, what="it is back\n" + node.tail())
        line.release()
        line.settle()
        assert node.status()["member"] == member
        assert len(published(node)) == before + 1
    sound(line)


def test_all_restart_in_the_middle_of_a_round(line: Line) -> None:
    """Everybody leaves while training (Psyche: in warm-up) and comes back: what was under way is lost, the rest goes on."""
    before = {n.name: len(published(n)) for n in line.nodes}
    threads = training(line, *NAMES)
    for node in line.nodes:
        node.kill()
    for thread in threads:
        thread.join(60)
    assert {n.name: len(published(n)) for n in line.nodes} == before
    line.start()
    line.release()
    sound(line)


def test_the_first_to_come_back_serves_the_newest_release_alone(line: Line) -> None:
    """Psyche falls back to a hub when all have left; here each disk has everything that was released."""
    newest = f"release-{len(line['third'].releases())}"
    line.stop()
    node = line["third"].start()
    until(lambda: newest in (node.status().get("serving") or {}).get("models", []), 90, what="it serves alone")
    line.start()
    sound(line)


def test_a_member_that_dies_in_a_round_holds_nobody_up_and_takes_part_again(line: Line) -> None:
    count = len(line["founder"].releases())
    rest = [line["founder"], line["third"]]
    threads = training(line, "second")
    line["second"].kill()
    threads[0].join(60)
    line.train(rest)
    line.agree(count + 1, rest)
    line["second"].start()
    until(line["second"].ready, 90, what="it is back")
    line.agree(count + 1)
    line.release()
    sound(line)


def test_a_member_that_hangs_for_a_whole_release_wakes_up_and_goes_on(line: Line) -> None:
    count, rest = len(line["founder"].releases()), [line["founder"], line["second"]]
    line["third"].pause()
    line.train(rest)
    line.agree(count + 1, rest)
    line["third"].resume()
    line.agree(count + 1)
    line.release()
    sound(line)


def test_the_founder_is_not_needed_for_the_others_to_find_each_other_and_decide(line: Line) -> None:
    """Psyche's fallback of its RPC server: nobody's absence takes more than its own work."""
    count = len(line["founder"].releases())
    rest = [line["second"], line["third"]]
    line["founder"].stop()
    for node in rest:
        node.stop()
    line.start(rest)
    line.train(rest)
    line.agree(count + 1, rest)
    line.start()
    line.agree(count + 1)
    sound(line)


def test_unsent_work_of_one_that_was_away_for_many_releases_joins_the_next_one(line: Line) -> None:
    third, rest = line["third"], [line["founder"], line["second"]]
    for node in rest:
        node.pause()
    third.call("train.now", 90)
    unsent = published(third)[-1]
    third.kill()
    for node in rest:
        node.resume()
    assert unsent["blob"] not in {c.blob for c in line["founder"].fold().contributions.get(third.member, [])}
    count = len(line["founder"].releases())
    for number in range(1, 4):
        line.train(rest)
        line.agree(count + number, rest)
    third.start()
    until(third.ready, 90, what="it is back\n" + third.tail())
    line.agree(count + 4)
    sound(line)
