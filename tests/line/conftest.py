"""One collective of three real nodes and an auditor for all tests of the line: starting it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from line import Line, Node, make_node, running, sentences

NAMES = ("clinic", "security", "cinema")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model cache of its own, so that nothing of the tester's is read or written."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FISHERNET_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[tuple[Line, Node]]:
    """Three running nodes, and the home of a member that only reads."""
    folder = tmp_path_factory.mktemp("line")
    voters = [make_node(folder, name, sentences(name), train__rounds=2) for name in NAMES]
    auditor = make_node(folder, "auditor")
    whole = Line.found([*voters, auditor], {"auditor": "auditor"})
    with running(Line(voters, whole.id)) as line:
        yield line, auditor


@pytest.fixture
def line(trio: tuple[Line, Node]) -> Line:
    """The three, all up, with the two releases that they make of their own accord."""
    line, _ = trio
    line.start()
    line.agree(2)
    return line


@pytest.fixture
def auditor(trio: tuple[Line, Node]) -> Node:
    """The auditor's home; no daemon runs on it."""
    return trio[1]


@pytest.fixture(autouse=True)
def _timing(request):  # H-TIMING
    import resource, psutil, time
    def cpu():
        a,b=resource.getrusage(resource.RUSAGE_SELF),resource.getrusage(resource.RUSAGE_CHILDREN)
        live=0
        for c in psutil.Process().children(recursive=True):
            try: t=c.cpu_times(); live+=t.user+t.system
            except psutil.Error: pass
        return a.ru_utime+a.ru_stime, b.ru_utime+b.ru_stime, live
    x,t=cpu(),time.time()
    yield
    y=cpu()
    f=open('/tmp/h_timing','a'); f.write(f"{time.time()-t:6.1f}s self {y[0]-x[0]:5.1f} children {y[1]-x[1]:5.1f} live {y[2]-x[2]:5.1f} {request.node.name}\n"); f.close()
