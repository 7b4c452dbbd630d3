"""One collective of three real nodes and an auditor for all tests of the line: starting it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from line import Line, published, running
from real_node import Node, make_node, sentences, until

RUNNING = pytest.StashKey[list[Line]]()
NAMES = ("clinic", "security", "cinema")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine that does other things too may take long to start a node."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(420))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """After the last test of the line its nodes end, although their fixture lives longer: they would go on working."""
    try:
        return (yield)
    finally:
        last = nextitem is None or nextitem.path.parent != item.path.parent
        for line in item.session.stash.get(RUNNING, []) if last else []:
            line.stop()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model cache of its own, so that nothing of the tester's is read or written."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FISHERNET_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def trio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Iterator[tuple[Line, Node]]:
    """Three running nodes, and the home of a member that only reads."""
    folder = tmp_path_factory.mktemp("line")
    voters = [make_node(folder, name, sentences(name), train__rounds=2) for name in NAMES]
    auditor = make_node(folder, "auditor")
    whole = Line.found([*voters, auditor], {"auditor": "auditor"})
    with running(Line(voters, whole.id)) as line:
        request.session.stash.setdefault(RUNNING, []).append(line)
        yield line, auditor


@pytest.fixture
def line(trio: tuple[Line, Node]) -> Line:
    """The three, all up, with the two releases that they make of their own accord."""
    line, _ = trio
    line.start()
    line.agree(2)
    for node in line.nodes:
        until(lambda node=node: len(published(node)) >= 2, what=f"{node.name} has made its runs")
    return line


@pytest.fixture
def auditor(trio: tuple[Line, Node]) -> Node:
    """The auditor's home; no daemon runs on it."""
    return trio[1]
