"""Promises to the auditor: offline from a copy, or from outside over another libp2p, any change is named."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from line import environment, make_node

from node.errors import PeerRefused
from node.exchange import Asker
from node.swarm import Swarm, SwarmConfig
from protocol import binding, checkpoint_of
from protocol.ids import ZERO

AUDIT = """
import sys
from node.cli import run
code = run(["audit", "--json", "--home", sys.argv[1]])
print(*[m for m in ("torch", "transformers", "hivemind", "libp2p") if m in sys.modules], file=sys.stderr)
sys.exit(code)
"""
