"""Options and fixtures for the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew; review them as a diff")


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
