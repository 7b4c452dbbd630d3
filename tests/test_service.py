"""Promises of the files in configs/ that other programs read: systemd's unit and Grafana's dashboard."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.cli import root
from node.serving.api import metrics
from node.serving.api.node_metrics import NodeMeters

CONFIGS = Path(__file__).parents[1] / "configs"
UNIT = CONFIGS / "fishernet.service"


def unit(text: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(text)
    return found


def test_every_command_of_the_unit_is_one_of_ours_with_options_that_exist() -> None:
    lines = re.findall(r"^#?ExecStart=(.*)$", UNIT.read_text(), flags=re.MULTILINE)
    assert len(lines) == 2, "with a passphrase and without"
    for line in lines:
        program, command, *given = shlex.split(line)
        assert Path(program).name == "fishernet"
        shown = CliRunner().invoke(root, [command, "--help"])
        assert shown.exit_code == 0
        for option in (word for word in given if word.startswith("-")):
            assert re.search(rf"^\s+(-\w, )?{option}\b", shown.output, flags=re.MULTILINE), option


def test_the_unit_ends_every_process_of_a_node_and_reloads_by_sighup() -> None:
    service = unit(UNIT.read_text())["Service"]
    assert (service["KillMode"], service["KillSignal"], service["SendSIGKILL"]) == ("control-group", "SIGTERM", "yes")
    assert int(service["TimeoutStopSec"]) > 5, "a node ends within five seconds"
    assert "-HUP $MAINPID" in service["ExecReload"]
    assert service["Restart"] == "on-failure"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_knows_every_setting_of_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/usr/local/bin/fishernet", sys.executable)
    text = re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE)
    sound, wrong = tmp_path / "fishernet.service", tmp_path / "wrong.service"
    sound.write_text(text)
    wrong.write_text(text.replace("KillMode=", "KilMode="))

    def said(file: Path) -> str:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(file)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return "\n".join(line for line in done.stderr.splitlines() if file.name in line)

    assert "KilMode" in said(wrong), "it does say what it does not know"
    assert said(sound) == ""


def test_the_dashboard_is_grafanas_form_and_asks_only_for_numbers_of_ours() -> None:
    board = json.loads((CONFIGS / "grafana-dashboard.json").read_text())
    assert {"title", "uid", "schemaVersion", "templating", "panels"} <= board.keys()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [tuple(panel["gridPos"][k] for k in "xywh") for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(x + w <= 24 for x, _, w, _ in places)
    assert all(t["expr"].count("(") == t["expr"].count(")") for p in board["panels"] for t in p["targets"])


def test_numbers_of_a_part_become_metrics_and_texts_do_not() -> None:
    found = {
        "sync": {"behind": 3, "last_error": 'from "x"', "pages": 7, "deep": {"a": 1}, "Bad name": 1},
        "swarm": {"up": True},
        "members": {'cli"nic\n': {"behind": 2, "connected": 1}},
    }
    text = metrics.Metrics(lambda: found).text({}).decode()
    lines = [line for line in text.splitlines() if re.match(r"fishernet_(sync|swarm|member)", line)]
    assert lines == [
        'fishernet_member_behind{member="cli\\"nic\\n"} 2.0',
        'fishernet_member_connected{member="cli\\"nic\\n"} 1.0',
        "fishernet_swarm_up 1.0",
        "fishernet_sync_behind 3.0",
        "fishernet_sync_pages_total 7.0",
    ]
    assert "from" not in "".join(lines)
    assert list(NodeMeters(dict).collect()) == []
