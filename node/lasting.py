"""Work that goes on after trouble: what fails is logged and done again after a rest; only what is Fatal ends it.

The daemon's loops run under it, so that a full disk, a lost child or an entry that is too large costs one job a moment and
never the node. Knows no job. Invariant: a `Fatal` error, and what nobody raised on purpose, is never swallowed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from protocol.errors import Fatal, FishernetError

T = TypeVar("T")


async def lasting(work: Callable[[], Awaitable[T]], *, log: logging.Logger, event: str, rest_s: float = 1.0) -> T:
    """Do `work` from its beginning until it goes through; its first answer. Between two tries it rests `rest_s` seconds.

    Raises:
        Fatal: what must end the node.
    """
    while True:
        try:
            return await work()
        except (FishernetError, OSError) as e:
            if isinstance(e, Fatal):
                raise
            log.warning("event=%s code=%s cause=%s", event, getattr(e, "code", "os-error"), e)
        await asyncio.sleep(rest_s)
