"""A release with something forgotten in it is served to who asks for it until the deadline, says so, and is refused after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from seats import Sitter, Table, salted

from contrib.errors import UnknownModel as NoBase
from contrib.exporting import Wanted
from ledger import events
from node import config
from node.collective.holdings import Holdings
from node.errors_serving import ModelGone, ReleaseGone, UnknownModel
from node.ports import Retiring, ServedModel
from node.serving import exports
from node.serving.access.keyfile import KeyFile, made
from node.serving.api.app import Facts, Keys, create_app
from node.serving.api.binding import headers_of
from node.serving.models import Serving
from node.serving.names import Names
from node.serving.shelf import Shelf
from node.session import Session
from protocol.ids import ZERO, Digest, digest

DEADLINE = 1_900_000_000_000


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """Release 1 has ada's first; a quorum decided to forget it by the deadline; release 2 is without it."""
    found = Table(tmp_path_factory.mktemp("table"))
    for sitter in found:
        sitter.publish(salted(sitter.name))
    found.deliver()
    found.decide(found["ada"].cut())
    first = found["ada"].fold.contributions[found["ada"].id][0]
    found.amend({"op": "forget", "contributions": [first.event], "deadline": DEADLINE})
    found.decide(found["bob"].cut())
    yield found
    found.close()


class Clock:
    """Only moves when told."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def shelf_of(sitter: Sitter, clock: Clock) -> tuple[Shelf, Serving]:
    charter = sitter.fold.charter
    adapter: dict[str, Any] = {"rank": 2, "alpha": 2, "targets": ["q_proj"], "seed": digest(b"seed"), "coordinates": 64}
    serving = Serving(model=sitter.home.path, base=charter.base.digest, adapter=adapter, threads=1)
    holdings = Holdings(sitter.seat, sitter.blobs, None, lambda: None)  # type: ignore[arg-type]  # all is here
    return Shelf(sitter.seat, sitter.replay, serving, holdings, now=clock), serving


def told(sitter: Sitter) -> list[str]:
    kinds = {events.ModelServed.TYPE, events.ModelWithdrawn.TYPE}
    records = sitter.store.records(sitter.collective, sitter.id)
    return [r.entry.header.type for r in records if r.entry.header.type in kinds]


def asked(serving: Serving, name: str, *, keys: Keys | None = None, key: str = "") -> httpx.Response:
    async def ask() -> httpx.Response:
        app = create_app(serving, lambda: Facts(node="n", head=ZERO), keys=keys)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://n") as client:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return await client.post("/v1/completions", json={"model": name, "prompt": "x"}, headers=headers)

    return asyncio.run(ask())


def test_until_the_deadline_it_is_served_and_says_so_and_from_then_on_it_is_gone(table: Table) -> None:
    bob = table["bob"]
    clock = Clock(DEADLINE - 1)
    shelf, serving = shelf_of(bob, clock)
    asyncio.run(shelf.update())
    first, second = (d.digest for d in bob.fold.releases)
    pinned = serving.find(f"release-1@{first[:12]}")
    assert (pinned.digest, pinned.retires, pinned.successor) == (first, DEADLINE, f"release-2@{second}")
    assert serving.find("latest") == serving.find(second)
    assert serving.find("latest").retires is None
    headers = headers_of(pinned, Facts(node="n", head=ZERO))
    assert parsedate_to_datetime(headers["sunset"]).timestamp() == DEADLINE // 1000
    assert headers["x-fishernet-successor"] == f"release-2@{second}"
    assert "sunset" not in headers_of(serving.find("latest"), Facts(node="n", head=ZERO))
    assert told(bob) == ["model.served", "model.served"]
    clock.now = DEADLINE
    asyncio.run(shelf.update())
    assert told(bob) == ["model.served", "model.served", "model.withdrawn"]
    for name in ("release-1", first, first[:8], f"release-1@{first[:8]}", f"latest@{first}"):
        answer = asked(serving, name)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (410, "model_gone", "model")
        assert f"release-2@{second}" in error["message"]
        assert answer.headers["x-fishernet-successor"] == f"release-2@{second}"
    with pytest.raises(UnknownModel) as other:
        serving.find("release-7")
    assert not isinstance(other.value, ModelGone)
    bob.sit()
    later, again = shelf_of(bob, clock)
    asyncio.run(later.update())
    with pytest.raises(ModelGone, match="forgotten"):
        again.find(first)
    assert told(bob) == ["model.served", "model.served", "model.withdrawn"], "after a restart nothing is said again"


def test_a_key_that_covers_neither_name_learns_nothing_of_it(table: Table, tmp_path: Path) -> None:
    cyd = table["cyd"]
    shelf, serving = shelf_of(cyd, Clock(DEADLINE))
    asyncio.run(shelf.update())
    file, covered = KeyFile(tmp_path / "keys.json"), {"blind": "base", "half": "release-1", "seeing": "release-*"}
    secrets = {}
    for name, pattern in covered.items():
        key, secrets[name] = made(now=1, models=(pattern,))
        file.add(key)
    answers = {n: asked(serving, "release-1", keys=Keys(file=file), key=key) for n, key in secrets.items()}
    assert {n: a.status_code for n, a in answers.items()} == {"blind": 404, "half": 410, "seeing": 410}
    second = cyd.fold.releases[1].digest
    assert [n for n, a in answers.items() if second[:12] in a.text + str(a.headers)] == ["seeing"]


def test_an_export_says_that_it_ends_and_is_refused_once_it_has(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = table["ada"]
    settings = config.parse(config.template(name="ada"), source=ada.home.config_file)
    session = Session(home=ada.home, config=settings, store=ada.store, member=ada.id, seat=ada.seat)

    def export(now: int) -> Any:
        wanted = Wanted(format="peft", out=tmp_path / "out")
        return exports.export(
            session, "release-1", wanted, sign=None, on_progress=lambda _stage, _part: None, now=lambda: now
        )

    with pytest.raises(ReleaseGone) as gone:
        export(DEADLINE)
    assert gone.value.hint.startswith("release-2 ")
    monkeypatch.setenv("FISHERNET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NoBase):  # beyond the deadline's check: these homes have no base model
        export(DEADLINE - 1)


# -- names ---------------------------------------------------------------------------------------------------------------
def release(number: int) -> ServedModel:
    name = f"release-{number}"
    return ServedModel(name=name, digest=digest(name.encode()), vector=Path(name), height=number)


def test_what_was_said_before_is_replaced_and_a_table_that_somebody_holds_stays() -> None:
    base = ServedModel(name="base", digest=Digest("ba" * 32), vector=None)
    names = Names(base=base).with_release(release(1)).with_release(release(2))
    end = Retiring(height=1, release=release(1).digest, until=5, gone=False, successor="release-2@x")
    after = names.retiring([end])
    assert after.find("release-1").retires == 5
    assert names.find("release-1").retires is None
    assert after.retiring([end]) is after
    assert after.retiring([]).find("release-1").retires is None
