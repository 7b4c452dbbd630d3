"""Options and fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# One collective of three nodes for all of `line`; one engine, and torch once, for all that touch a model. They come first.
GROUPS = {
    "line": ("tests/line/",),
    "model": (
        "tests/node/serving/",
        *(f"tests/contrib/test_{name}.py" for name in (
            "adapters", "evaluation", "exporting", "fisher", "llama", "models", "recipes_peft", "tokenizer", "training", "worker",
        )),
    ),
}  # fmt: skip
# Then the longest files, so that both workers end at the same time.
LONG = tuple(
    f"tests/{name}.py"
    for name in (
        "node/test_sync", "test_readme", "attacks/test_attacks", "node/test_swarm", "node/test_curating", "ledger/test_crashes",
        "contrib/test_merging", "node/test_cli", "node/test_succeeding", "contrib/test_demo_data", "protocol/test_canon",
        "node/test_observer", "node/test_auditing", "ledger/test_runs", "ledger/test_access", "node/test_identity",
    )
)  # fmt: skip

settings.register_profile("default", deadline=None)  # a machine that does other things too is no failure
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile("ci" if os.environ.get("CI") else "default")  # or --hypothesis-profile NAME


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


# -- two workers -----------------------------------------------------------------------------------------------------
def group_of(nodeid: str) -> str:
    """Tests of one group run on one worker, so that they share fixtures: those of a file, and those of `GROUPS`."""
    file = nodeid.partition("::")[0]
    return next((name for name, parts in GROUPS.items() if file.startswith(parts)), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker waits for the other at the end."""
    order = {name: place for place, name in enumerate((*GROUPS, *LONG))}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole groups in the order of collection; `--dist loadgroup` is not asked, it needs what pytest keeps for itself."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)
