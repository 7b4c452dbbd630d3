"""API keys: what a key does not name it does not allow, and every decision on one gets into the ledger."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from granted import NOW, Village
from seats import Table
from world import World

from ledger import events
from ledger.access.book import Book
from ledger.collective import Collective
from ledger.compliance.facts import Facts
from ledger.compliance.findings import find
from ledger.events import MAX_SERVED, AccessServed
from node.cli import run
from node.errors import AppendPaused, IdentityError
from node.errors_serving import BadKey, KeyDenied, TooFast
from node.ports import ServedModel, Usage
from node.serving.access.grants import against
from node.serving.access.keyfile import ApiKey, KeyFile, decide, hash_of, made, no_grants, of_config
from node.serving.access.log import EVERY_S, MOST_DECISIONS, AccessLog, Counted
from node.serving.access.rates import Rates
from node.serving.api.keys import Admitted, Door
from protocol.ids import Digest, EventId

BASE = ServedModel(name="base", digest=Digest("ba" * 32), vector=None)
R7 = ServedModel(name="release-7", digest=Digest("77" * 32), vector=Path("x"), height=7)
DAY = 86_400_000


def key(**fields: Any) -> ApiKey:
    return made(now=NOW, **fields)[0]


# -- one decision ----------------------------------------------------------------------------------------------------
def reason(one: ApiKey, *names: str, purpose: str | None = None, judge: Any = no_grants) -> str:
    return decide(one, purpose=purpose, names=names or ("base",), now=NOW, judge=judge).reason


def test_key_covers_the_models_that_its_patterns_name() -> None:
    releases = key(models=("release-*", "latest"))
    assert reason(releases, "release-7") == reason(releases, "latest", "view") == ""
    assert reason(releases, "base") == reason(releases, "my-release-7") == "model"
    assert reason(key(), "anything") == ""


def test_key_is_used_for_its_purposes_and_for_its_first_one_unless_told() -> None:
    both = key(purposes=("triage", "billing"))
    assert decide(both, purpose=None, names=("base",), now=NOW, judge=no_grants).purpose == "triage"
    assert reason(both, purpose="billing") == ""
    assert reason(both, purpose="research") == "purpose"
    assert reason(key(), purpose="research") == "purpose", "a key without purposes has none that it could be asked for"
    written = decide(both, purpose="A word that is no code", names=("base",), now=NOW, judge=no_grants)
    assert (written.reason, written.purpose) == ("purpose", "unstated"), (
        "what a client wrote does not get into the ledger"
    )


def test_key_that_rests_on_grants_asks_the_judge_every_time() -> None:
    asked: list[Any] = []

    def judge(*args: Any) -> tuple[str, ...]:
        asked.append(args)
        return () if len(asked) == 1 else ("revoked",)

    one = key(purposes=("triage",), grants=("aa" * 32,))
    assert [reason(one, judge=judge), reason(one, judge=judge)] == ["", "revoked"]
    assert asked[0] == (("aa" * 32,), "triage", NOW)
    assert reason(one) == "no-grant", "without a ledger nothing rests on a grant"


@pytest.mark.parametrize(
    "fields",
    [
        {"purposes": ("No Code",)},
        {"models": ("two words",)},
        {"models": ("",)},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"expires": NOW},
        {"grants": ("aa" * 32,)},
    ],
)
def test_key_that_could_not_be_decided_on_is_not_made(fields: dict[str, Any]) -> None:
    with pytest.raises(IdentityError, match="couldn't make API key"):
        key(**fields)


# -- grants ----------------------------------------------------------------------------------------------------------
def test_grants_of_a_key_are_decided_by_the_ledger_at_every_use() -> None:
    village = Village()
    village.commit("ada")
    to_serve: dict[str, Any] = {"actions": ("serve",), "purposes": ("triage",)}
    grant = village.grant("ada", "bob", **to_serve, expires=NOW + DAY)
    other = village.grant("ada", "bob", **to_serve)
    training = village.grant("ada", "bob", actions=("train",), purposes=("triage",))

    def asked(*grants: EventId, purpose: str = "triage", at: int = NOW, me: str = "bob") -> tuple[str, ...]:
        return against(village.books[me], village.past(me), village.id(me), grants, purpose, at)

    assert asked(grant) == asked(grant, other) == ()
    assert asked(grant, purpose="billing") == ("purpose",)
    assert asked(grant, at=NOW + DAY) == ("expired",)
    assert asked(grant, me="cyd") == ("not-audience",)
    assert asked(training) == ("action",)
    assert asked(EventId("ee" * 32)) == ("no-grant",)
    village.revoke("ada", grant)
    assert asked(grant) == ("revoked",), "another grant that allows it does not stand in"
    assert asked(grant, other) == ("revoked",)
    assert asked(other) == ()


def test_grant_that_was_handed_on_ends_with_the_one_above_it() -> None:
    village = Village()
    village.commit("ada")
    above = village.grant("ada", "bob", actions=("serve",), purposes=("triage",), depth=1)
    below = village.grant("bob", "cyd", actions=("serve",), purposes=("triage",), parent=above)
    assert against(village.books["cyd"], village.past("cyd"), village.id("cyd"), (below,), "triage", NOW) == ()
    village.revoke("ada", above)
    assert against(village.books["cyd"], village.past("cyd"), village.id("cyd"), (below,), "triage", NOW) == (
        "revoked",
    )


# -- rates -----------------------------------------------------------------------------------------------------------
def test_requests_beyond_the_rate_wait_for_their_turn() -> None:
    rates, one = Rates(), key(requests_per_minute=2)
    assert [rates.wait(one, 0), rates.wait(one, 0)] == [0, 0]
    assert rates.wait(one, 0) == 30
    assert rates.wait(one, 29) == 1
    assert rates.wait(one, 30) == 0
    assert rates.wait(one, 30) == 30
    assert [rates.wait(one, 1e6) for _ in range(3)] == [0, 0, 30], "a pause saves up one minute, no more"
    assert rates.wait(key(), 0) == 0


def test_tokens_are_charged_when_they_are_known() -> None:
    rates, one = Rates(), key(tokens_per_minute=60)
    assert rates.wait(one, 0) == 0
    rates.spend(one, 100, 0)
    assert rates.wait(one, 0) == 41
    assert rates.wait(one, 41) == 0


# -- the file --------------------------------------------------------------------------------------------------------
def test_file_holds_no_key_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys" / "api.json")
    one, secret = made(now=NOW, label="app", purposes=("triage",), grants=("aa" * 32,), tokens_per_minute=5)
    file.add(one)
    assert secret.encode() not in file.path.read_bytes()
    assert one.hash == hash_of(secret)
    assert secret not in repr(one)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert KeyFile(file.path).all() == (one,)
    assert made(now=NOW)[1] != made(now=NOW)[1]
    assert len(secret) > 40


def test_running_node_sees_a_key_that_was_revoked_by_another_process(tmp_path: Path) -> None:
    node, operator = KeyFile(tmp_path / "api.json"), KeyFile(tmp_path / "api.json")
    assert node.all() == ()
    first, second = key(label="one"), key(label="two")
    operator.add(first)
    assert node.all() == (first,)
    operator.add(second)
    operator.revoke("one", NOW)
    assert node.all() == (replace(first, revoked=NOW), second)
    assert operator.revoke(second.id, NOW).revoked == NOW
    with pytest.raises(IdentityError, match="0 keys go by that name"):
        operator.revoke("one", NOW)


def test_damaged_file_allows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "api.json"
    for damage in (b"{", b"[]", b'{"keys":[{}]}', b'{"keys":[{"id":1}]}', b'{"keys":7}'):
        path.write_bytes(damage)
        with pytest.raises(IdentityError, match="couldn't read API keys"):
            Door(file=KeyFile(path)).caller("")


# -- the door --------------------------------------------------------------------------------------------------------
class Clock:
    now = NOW / 1000

    def __call__(self) -> float:
        return self.now

    def ms(self) -> int:
        return round(self.now * 1000)


def door(tmp_path: Path, *keys: ApiKey, **options: Any) -> Door:
    file = KeyFile(tmp_path / "api.json")
    for each in keys:
        file.add(each)
    return Door(file=file, now=options.pop("now", Clock()), **options)


def test_without_any_key_the_door_is_open_and_with_one_that_ended_it_is_not(tmp_path: Path) -> None:
    one, secret = made(now=NOW, expires=NOW + DAY)
    clock, counts = Clock(), AccessLog(lambda: NOW)
    open_door = Door(now=clock, log=counts)
    assert open_door.caller("") is None
    open_door.done(
        open_door.admit(None, purpose=None, asked="base", model=BASE), BASE, Usage(prompt_tokens=1, completion_tokens=1)
    )
    assert not counts.waiting
    closed = door(tmp_path, one, now=clock)
    assert closed.caller(f"Bearer {secret}") == one
    for wrong in ("", f"Basic {secret}", "Bearer ", f"Bearer {secret}x", "Bearer \ud800"):
        with pytest.raises(BadKey):
            closed.caller(wrong)
    clock.now += 86_400
    with pytest.raises(BadKey, match="expired"):
        closed.caller(f"bearer {secret}")
    KeyFile(tmp_path / "api.json").revoke(one.id, NOW)
    with pytest.raises(BadKey, match="revoked"):
        closed.caller(f"Bearer {secret}")
    with pytest.raises(BadKey):
        closed.caller("")


def test_keys_of_the_configuration_go_on_working() -> None:
    old = Door(config_keys=("sesame-open", "other-key"))
    found = old.caller("Bearer other-key")
    assert found == of_config(("sesame-open", "other-key"))[1]
    assert found is not None
    assert (found.id, found.covers(["base"])) == ("config-2", True)
    with pytest.raises(BadKey):
        old.caller("Bearer config-2")


def test_each_decision_of_a_key_is_counted_once_and_by_its_reason(tmp_path: Path) -> None:
    clock, denied = Clock(), []
    counts = AccessLog(clock.ms)
    one, secret = made(now=NOW, purposes=("triage",), models=("base",), requests_per_minute=2)
    gate = door(tmp_path, one, log=counts, now=clock, denied=denied.append)
    found = gate.caller(f"Bearer {secret}")
    for _ in range(2):
        admitted = gate.admit(found, purpose=None, asked="base", model=BASE)
        gate.done(admitted, BASE, Usage(prompt_tokens=5, completion_tokens=7))
    assert admitted == Admitted(key=one, purpose="triage")
    assert admitted.tenant == one.id
    with pytest.raises(KeyDenied) as wrong:
        gate.admit(found, purpose=None, asked="latest", model=R7)
    with pytest.raises(KeyDenied) as other:
        gate.admit(found, purpose="research", asked="base", model=BASE)
    with pytest.raises(TooFast) as fast:
        gate.admit(found, purpose=None, asked="base", model=BASE)
    assert [wrong.value.reason, other.value.reason, fast.value.retry_after] == ["model", "purpose", 30]
    written: list[events.Event] = []
    counts.write(written.append)
    (event,) = written
    assert isinstance(event, AccessServed)
    assert events.parse(event.TYPE, event.to_json()) == event
    assert [(s.purpose, s.model, s.reason, s.requests, s.prompt_tokens, s.answer_tokens) for s in event.served] == [
        ("research", BASE.digest, "purpose", 1, 0, 0),
        ("triage", R7.digest, "model", 1, 0, 0),
        ("triage", BASE.digest, "", 2, 10, 14),
        ("triage", BASE.digest, "rate", 1, 0, 0),
    ]
    assert {s.key for s in event.served} == {one.id}
    assert denied == ["model", "purpose", "rate"]
    assert secret not in json.dumps(event.to_json())
    assert one.hash not in json.dumps(event.to_json())


# -- the log ---------------------------------------------------------------------------------------------------------
def counted(n: int = 0, **fields: Any) -> Counted:
    return Counted(**{"key": f"k{n:03}", "purpose": "triage", "model": BASE.digest, **fields})


def test_decisions_are_written_each_minute_or_when_there_are_many() -> None:
    clock = Clock()
    counts = AccessLog(clock.ms)
    assert not counts.due
    counts.add(counted())
    assert not counts.due
    clock.now += EVERY_S
    assert counts.due
    assert counts.write(lambda _event: None) == 1
    assert not counts.due
    assert not counts.waiting
    for _ in range(MOST_DECISIONS):
        counts.add(counted())
    assert counts.due
    counts.write(lambda _event: None)
    for n in range(MAX_SERVED):
        counts.add(counted(n))
    assert counts.due


def test_nothing_is_lost_when_the_ledger_takes_nothing_now(tmp_path: Path) -> None:
    clock, written = Clock(), []
    counts = AccessLog(clock.ms)

    def paused(_event: events.Event) -> None:
        raise AppendPaused("couldn't write")

    for n in range(MAX_SERVED * 2 + 3):
        counts.add(counted(n, grants=("bb" * 32, "aa" * 32, "aa" * 32), answer_tokens=n))
    with pytest.raises(AppendPaused):
        counts.write(paused)
    counts.keep(tmp_path / "served.json")
    assert stat.S_IMODE((tmp_path / "served.json").stat().st_mode) == 0o600
    after = AccessLog(clock.ms)
    after.take_up(tmp_path / "served.json")
    assert not (tmp_path / "served.json").exists()
    after.add(counted(500))
    assert after.due
    assert after.write(written.append) == 4
    assert sum(s.requests for e in written for s in e.served) == MAX_SERVED * 2 + 4
    assert sum(s.answer_tokens for e in written for s in e.served) == sum(range(MAX_SERVED * 2 + 3))
    assert all(events.parse(e.TYPE, e.to_json()) == e for e in written)
    after.keep(tmp_path / "served.json")
    assert not (tmp_path / "served.json").exists()


def test_damaged_counts_are_no_reason_not_to_start(tmp_path: Path) -> None:
    path = tmp_path / "served.json"
    for damage in (b"{", b"[1]", b'[{"since":1}]', b"7"):
        path.write_bytes(damage)
        counts = AccessLog(lambda: NOW)
        counts.take_up(path)
        assert not counts.waiting


def test_events_get_into_a_feed_and_no_compliance_rule_objects(tmp_path: Path) -> None:
    table = Table(tmp_path)
    try:
        seat, counts = table["ada"].seat, AccessLog(lambda: NOW)
        counts.add(counted(grants=("aa" * 32,), prompt_tokens=3))
        counts.add(counted(reason="revoked"))
        counts.write(seat.append)
        record = seat.store.records(seat.collective, seat.me, 0, 100)[-1]
        assert record.entry.header.type == AccessServed.TYPE
        assert not seat.fold.flaws
        assert not seat.fold.unknown_types
    finally:
        table.close()


def test_a_history_with_answers_in_it_stays_clean() -> None:
    def findings(*, answered: bool) -> list[Any]:
        world = World.opened()
        if answered:
            counts = AccessLog(lambda: world.now)
            for n in range(3):
                counts.add(counted(n, reason="" if n else "model", prompt_tokens=9))
            counts.write(lambda event: world.say("ada", event))
        facts, fold, book = Facts(), Collective(world.collective), Book()
        for feed in world.feeds.values():
            fold.apply_all(feed)
            book.apply_all(feed)
            facts.add(feed)
        facts.settle(fold)
        return [(f.rule, f.what) for f in find(facts)]

    assert findings(answered=True) == findings(answered=False)


# -- the command line ------------------------------------------------------------------------------------------------
def test_operator_makes_lists_and_revokes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(tmp_path / "home")

    def told(*arguments: str, code: int = 0) -> Any:
        assert run(["--home", home, "--json", *arguments]) == code
        said = capsys.readouterr()
        return json.loads(said.out if code == 0 else said.err)

    told("init")
    made_ = told("key", "api", "add", "--label", "app", "--purpose", "triage", "--model", "release-*", "--until", "30d")
    assert made_["key"].startswith("fn-")
    listed = told("key", "api", "list")["keys"]
    assert [(k["id"], k["state"], k["models"]) for k in listed] == [(made_["id"], "holds", ["release-*"])]
    assert "key" not in listed[0]
    assert Door(file=KeyFile(tmp_path / "home" / "keys" / "api.json")).caller(f"Bearer {made_['key']}") is not None
    assert told("key", "api", "revoke", "app")["state"] == "revoked"
    assert told("key", "api", "list")["keys"] == []
    assert len(told("key", "api", "list", "--all")["keys"]) == 1
    assert "0 keys" in told("key", "api", "revoke", "app", code=1)["error"]["message"]
