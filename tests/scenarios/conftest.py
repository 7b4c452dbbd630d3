"""Scenarios of other systems' users, as tests: some on paper with real parts, the long ones with real daemons."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine that does other things too may take long to start a node."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model cache of its own, so that nothing of the tester's is read or written."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FISHERNET_CACHE", str(folder))
        yield folder


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder that costs no disk where the system has one: what is tried is not the disk."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fn-", dir=shm if shm.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
