"""How much memory the sync of one simulated node holds: its own objects, walked from the sync down.

What all nodes of the process share (entries, heads, keys, identifiers, the loop, links and streams) is left out: a node of its
own keeps entries and heads in its database. Knows no measure but `sys.getsizeof`. Invariant: an object is counted once.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterable
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
)
from typing import Any, Final

from ledger.checkpoint import Head
from ledger.entry import Record
from node.simulation.ether import Ether, Port, Wire

_SHARED: Final = (
    *(type, ModuleType, FunctionType, BuiltinFunctionType, CodeType, FrameType, CoroutineType),
    *(AsyncGeneratorType, GeneratorType, asyncio.Future, asyncio.AbstractEventLoop, asyncio.Handle),
    *(Record, Head, str, Ether, Port, Wire),
)


def footprint(root: object, leave_out: Iterable[object]) -> int:
    """Bytes of `root` and of all that it refers to, without `leave_out` and what is reached only through these."""
    seen = {id(one) for one in leave_out}
    total, left = 0, [root]
    while left:
        one: Any = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, FunctionType):
            left += one.__closure__ or ()
        if isinstance(one, _SHARED):
            continue
        total += sys.getsizeof(one)
        left += gc.get_referents(one)
    return total
