"""The table of scenarios: every scenario has a row, and every test that a row names exists."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS = [row.split("|")[1:4] for row in (HERE / "README.md").read_text().splitlines() if re.match(r"\| [A-Z]\d+ ", row)]
WANTED = (
    [f"F{n}" for n in range(1, 13)]
    + [f"P{n}" for n in range(1, 12)]
    + [f"C{n}" for n in range(1, 4)]
    + [f"O{n}" for n in range(1, 4)]
    + [f"L{n}" for n in range(1, 5)]
)


def test_every_scenario_has_a_row() -> None:
    assert [row[0].split()[0] for row in ROWS] == WANTED
    assert all("`tests/" in row[2] for row in ROWS)


def test_every_test_that_is_named_exists_and_is_slow_where_it_says_so() -> None:
    missing, wrong = [], []
    for name, said in re.findall(r"`(tests/[^`]+)`( \(slow\))?", "".join(row[2] for row in ROWS)):
        file, _, test = name.partition("::")
        text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        found = re.search(
            rf"^((?:@.*\n)*)(?:async )?def {test or 'test_'}\b" if test else "def test_", text, re.MULTILINE
        )
        if found is None:
            missing.append(name)
        elif test:
            whole = re.search(r"^pytestmark = (\[[^\]]*\]|.*)$", text, re.MULTILINE)
            always = whole is not None and "mark.slow" in whole.group(1)
            marked = always or "@pytest.mark.slow\n" in found.group(1)
            if marked != bool(said):
                wrong.append(name)
    assert missing == []
    assert wrong == []
