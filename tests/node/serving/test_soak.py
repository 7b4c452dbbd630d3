"""Minutes at full load: nothing is lost, nothing is answered by another version, memory stays flat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_engine_at_full_load_loses_nothing_and_keeps_its_memory(tmp_path: Path) -> None:
    """FISHERNET_SOAK_MINUTES says how long (default 2; ten before a release)."""
    root = Path(__file__).resolve().parents[3]
    minutes = os.environ.get("FISHERNET_SOAK_MINUTES", "2")
    command = [sys.executable, "benchmarks/bench_soak.py", "--minutes", minutes, "--json", str(tmp_path / "soak.json")]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {each["id"]: each["value"] for each in json.loads((tmp_path / "soak.json").read_text())}
    assert figures["asked"] > 100
    assert figures["lost"] == figures["wrong"] == figures["left behind"] == 0
