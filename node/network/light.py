"""Make hivemind's P2P and DHTNode importable without its package `__init__` files, which pull in torch and scipy.

Import this before anything of hivemind: 0.2 s and 40 MB instead of 2.5 s and 280 MB. The empty stand-in packages were
checked against one version; with any other one, or with FISHERNET_FULL_IMPORT set, hivemind imports itself in full.
Knows nothing else of hivemind. Invariant: `LIGHT` says which of the two happened.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from pathlib import Path

KNOWN = "1.1.12"
_HOMES = {"MSGPackSerializer": "serializer", "SerializerBase": "serializer", "get_logger": "logging"}


def _reexported(name: str) -> object:
    """What `hivemind.utils` re-exports (PEP 562), as far as its p2p and dht packages use it."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("hivemind.utils." + _HOMES.get(name, "timed_storage")), name)


def _install() -> bool:
    if "hivemind" in sys.modules or "FISHERNET_FULL_IMPORT" in os.environ:
        return False
    if importlib.metadata.version("hivemind") != KNOWN:
        return False
    spec = importlib.util.find_spec("hivemind")  # does not run the package
    if spec is None or spec.origin is None:
        return False
    root = Path(spec.origin).parent
    for name in ("hivemind", "hivemind.dht", "hivemind.utils"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    sys.modules["hivemind.utils"].__getattr__ = _reexported  # type: ignore[method-assign]
    return True


LIGHT = _install()
