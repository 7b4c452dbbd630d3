"""The conflict report: figures by module, and the command that shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from seats import Table

from contrib import conflicts
from contrib.merging import Register
from node.audits import conflicts as audit
from node.cli.conflicts import conflicts as command
from node.errors_serving import UnknownRelease
from protocol.ids import MemberId
from protocol.sparse import UNIT_BITS


def register(values: dict[int, float], size: int = 8) -> Register:
    units, counts = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int32)
    for at, value in values.items():
        units[at], counts[at] = round(value * 2**UNIT_BITS), 1
    return Register(units=units, counts=counts)


ONE, TWO = MemberId("a"), MemberId("b")
PAIR = {ONE: register({0: 1.0, 1: 1.0, 4: 2.0}), TWO: register({0: -1.0, 1: 1.0, 5: 1.0})}


def test_signs_that_differ_count_where_several_sent_and_what_they_cancel_is_said() -> None:
    whole, first, second = conflicts.report(PAIR, [("first", 0, 4), ("second", 4, 8)])
    assert (whole.senders, first.senders, second.senders) == ((4, 2, 2), (2, 0, 2), (2, 2, 0))
    assert (whole.contested_permille, first.contested_permille, second.contested_permille) == (500, 500, None)
    assert first.lost_permille == 500, "two of four units of magnitude cancel"
    assert first.cosine == ((1000, 0), (0, 1000))
    assert first.overlap == ((1000, 1000), (1000, 1000))
    assert second.overlap == ((1000, 0), (0, 1000))
    assert second.norm_micro == (2_000_000, 1_000_000)


def test_figures_of_a_module_depend_on_its_coordinates_alone() -> None:
    changed = PAIR | {TWO: register({0: -1.0, 1: 1.0, 5: -9.0, 7: 3.0})}
    part = [("first", 0, 4)]
    assert conflicts.report(PAIR, part)[1] == conflicts.report(changed, part)[1]
    assert conflicts.report(PAIR, part)[0] != conflicts.report(changed, part)[0]
    assert conflicts.report({}, [])[0].senders == (0,)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    found = Table(tmp_path_factory.mktemp("conflicts"), ("ada", "bob", "cyd"))
    for name, values in (("ada", {3: 1.0, 4: 1.0}), ("bob", {3: 1.0, 4: 1.0, 9: 0.5}), ("cyd", {3: -1.0, 4: -1.0})):
        found[name].publish(values)
    found.deliver()
    found.decide(found["ada"].cut())
    yield found
    found.close()


def test_a_release_is_reported_with_who_points_against_the_others_and_who_decides_alone(table: Table) -> None:
    home = table["bob"].home
    report = audit.run(home.ledger_db, home.blobs, table.collective, "latest")
    opposed = {name: bearing.opposed for (_, name), bearing in zip(report.members, report.bearings, strict=True)}
    assert opposed == {"ada": False, "bob": False, "cyd": True}
    assert report.senders.coordinates == (61, 1, 0, 2)
    assert report.parts[0].contested_permille == 1000
    out = CliRunner().invoke(command, ["--from", str(home.path)])
    assert out.exit_code == 0, out.output
    assert "cyd" in out.output
    assert out.output.count("points against the others") == 1
    told = json.loads(CliRunner().invoke(command, ["--from", str(home.path), "--json"]).output)
    assert told == json.loads(json.dumps(report.to_json()))


def test_a_release_whose_blobs_are_not_here_is_not_reported_on(table: Table, tmp_path: Path) -> None:
    with pytest.raises(UnknownRelease, match="can't be recomputed"):
        audit.run(table["bob"].home.ledger_db, tmp_path, table.collective, "1")
