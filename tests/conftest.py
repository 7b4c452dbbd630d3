"""Options and fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two contended OpenMP threads are slower than one; children inherit it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew; review them as a diff")
    parser.addoption(
        "--histories", default=150, type=int, help="how many random honest histories are audited (nightly: 100000)"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Published test vectors that stand beside the checkout; tests that read them skip without."""
    path = Path(__file__).resolve().parents[2] / "shared" / "vectors"
    if not path.is_dir():
        pytest.skip("the published vectors do not stand beside the checkout")
    return path


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook: marks that are set after it are never seen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files stay together on one worker, and all tests of the running line share one collective; they come first."""
    items.sort(key=lambda item: item.path.parent.name != "line")  # the longest group, so that no worker waits for it
    for item in items:
        group = "line" if item.path.parent.name == "line" else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
