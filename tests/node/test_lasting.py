"""Work that lasts: trouble is logged and the work done again; only what must end the node ends it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from ledger.errors import StoreBroken, StoreFull
from node.errors import NotAllowed
from node.lasting import lasting
from protocol.errors import TooLarge

log = logging.getLogger("test.lasting")


class Work:
    """Ends in each of some ways in turn, then goes through."""

    def __init__(self, *errors: Exception) -> None:
        self._errors, self.begun = list(errors), 0

    async def __call__(self) -> str:
        self.begun += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def done(work: Work) -> str:
    return asyncio.run(lasting(work, log=log, event="postponed", rest_s=0))


def test_whatever_but_fatal_goes_wrong_is_logged_and_done_again(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(StoreFull("couldn't write: full"), TooLarge("couldn't write: long"), NotAllowed("no"), OSError("gone"))
    assert (done(work), work.begun) == ("done", 5)
    assert [m.split()[1] for m in caplog.messages] == [
        "code=store-full",
        "code=too-large",
        "code=not-allowed",
        "code=os-error",
    ]


@pytest.mark.parametrize("error", [StoreBroken("couldn't read ledger"), ZeroDivisionError("a mistake of ours")])
def test_what_is_fatal_and_what_nobody_foresaw_ends_the_work(error: Exception) -> None:
    work = Work(error)
    with pytest.raises(type(error)):
        done(work)
    assert work.begun == 1
