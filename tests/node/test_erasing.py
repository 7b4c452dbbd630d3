"""Promises of erasure: rows, bodies and salts leave every file of every member, the chains still verify, nobody is named."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from permits import to_train
from seats import Sitter, Table

from contrib.row import Row, text_row
from contrib.rows import RowStore
from ledger import audit, events, export, schema
from ledger.erasures import Erasures
from ledger.store import Store
from node import config
from node.data import curating, erasing, residual
from node.data.permits import Permits
from node.errors import NotAllowed
from node.session import Session
from protocol.canon import Json
from protocol.ids import Digest

PERSON = "Ada Canary-5b1e"
TEXT = "canary-text-91c7"
TAG = "canary-tag"


def rows_about(person: str, count: int) -> list[Row]:
    return [replace(text_row(f"{TEXT} {person} {n} {'y' * 2000}"), subject=person, tags=(TAG,)) for n in range(count)]


def others(count: int) -> list[Row]:
    return [replace(text_row(f"ordinary {n} {'z' * 2000}"), subject=f"patient {n}") for n in range(count)]


def session_of(sitter: Sitter) -> Session:
    settings = config.parse(config.template(name=sitter.name), source=sitter.home.config_file)
    return Session(home=sitter.home, config=settings, store=sitter.store, member=sitter.id, seat=sitter.seat)


def trained(sitter: Sitter, run: str, dataset: str = "d") -> Any:
    """One run as `node.training.rounds` writes it down: decided, used, published."""
    permits = Permits(sitter.seat, policy=lambda: Digest("0" * 64))
    permits.train([dataset], run)
    return sitter.publish(run=run)


def command(session: Session, **args: Json) -> dict[str, Any]:
    found = asyncio.run(curating.forget(session, args))
    assert isinstance(found, dict)
    return found


def tend(session: Session) -> None:
    asyncio.run(erasing.tend(session))


def bodies(store: Store, sitter: Sitter, kinds: Iterable[str]) -> dict[str, tuple[bytes, bytes]]:
    """Event id -> salt and body of the entries of these types in a feed, as far as they are held."""
    return {
        record.entry.event: (record.body.salt, record.body.data)
        for record in store.records(sitter.collective, sitter.id)
        if record.entry.header.type in kinds and record.body is not None
    }


def standing(folder: Path, secrets: Iterable[bytes]) -> list[bytes]:
    """Which of these bytes stand somewhere in the files below a folder: databases, logs, free pages, anything."""
    data = b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())
    return [secret for secret in secrets if secret in data]


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    for sitter in found:
        sitter.home.runs.mkdir()
        sitter.home.keys.mkdir()
    yield found
    found.close()


@pytest.fixture
def ada(table: Table) -> Session:
    """A member with rows about a person and others, two runs on both, one on others alone; everybody has her feed."""
    session = session_of(table["ada"])
    with session.rows() as rows:
        rows.add("d", others(20), 100_000)
        rows.add("e", [text_row(f"else {n}") for n in range(9)], 100_000)
    session.commit_data()
    trained(table["ada"], "run-0")
    with session.rows() as rows:
        rows.add("d", rows_about(PERSON, 20), if_exists="append")
    session.commit_data()
    trained(table["ada"], "run-1")
    trained(table["ada"], "run-2")
    trained(table["ada"], "run-e", "e")
    table.deliver()
    return session


def secrets_of(table: Table) -> tuple[list[bytes], list[bytes]]:
    """What must go with the person: row texts and salts in Ada's files, bodies and salts of the uses in everybody's."""
    home = table["ada"].home
    db = sqlite3.connect(home.rows_db)
    salts = [row[0] for row in db.execute("SELECT salt FROM rows WHERE CAST(content AS TEXT) LIKE '%canary%'")]
    db.close()
    assert len(salts) == 20
    held = bodies(table["ada"].store, table["ada"], ["data.used", "access.decided"])
    with_them = [pair for pair in held.values() if b'"run-1"' in pair[1] or b'"run-2"' in pair[1]]
    assert len(with_them) == 4
    return [TEXT.encode(), *salts], [part for pair in with_them for part in pair]


def test_forgetting_a_person_leaves_no_byte_anywhere_and_every_chain_verifies(table: Table, ada: Session) -> None:
    rows, uses = secrets_of(table)
    homes = {sitter.name: sitter.home.path for sitter in table}
    assert standing(homes["ada"], [*rows, *uses]) == [*rows, *uses], "the search finds what is there"
    assert standing(homes["bob"], uses) == uses
    assert standing(table.folder, [PERSON.encode()]) == [PERSON.encode()], "it stands in the row texts"
    marked = [c.event for c in table["ada"].fold.contributions[table["ada"].id][1:3]]

    result = command(ada, dataset="d", subject=PERSON)

    assert (result["rows"], result["contributions"]) == (20, sorted(marked))
    assert (result["bodies"], len(result["requests"])) == (4, 1)
    assert standing(homes["ada"], [*rows, *uses, PERSON.encode()]) == []
    assert standing(homes["bob"], uses) == uses, "nobody can erase for others"
    table.deliver()
    for name in ("bob", "cyd"):
        tend(session_of(table[name]))
    table.deliver()
    assert standing(table.folder, [*rows, *uses, PERSON.encode()]) == []
    for sitter in table:
        findings = audit.integrity(sitter.store, table.collective)
        assert {finding.code for finding in findings} == {"body-erased"} <= audit.NOTICES
        assert {(finding.member, finding.seq) for finding in findings} == {(s.member, s.seq) for s in gone(table)}
    with ada.rows() as store:
        assert len(store.rows("d", permit=to_train("d"))) == store.summary("d").train_rows <= 20


def gone(table: Table) -> list[Any]:
    (request,) = session_of(table["ada"]).eraser().catch_up().requests()
    return session_of(table["ada"]).eraser().catch_up().bodies(request)


def test_a_sloppy_delete_is_found_by_the_same_search(table: Table, ada: Session) -> None:
    rows, _ = secrets_of(table)
    db = sqlite3.connect(ada.home.rows_db, isolation_level=None)
    db.execute("PRAGMA secure_delete = OFF")
    db.execute("DELETE FROM rows WHERE CAST(content AS TEXT) LIKE '%canary%'")
    db.close()
    assert standing(ada.home.path, rows) != []


def test_uses_that_have_nothing_to_do_with_the_person_stay(table: Table, ada: Session) -> None:
    before = bodies(ada.store, table["ada"], ["data.used", "access.decided"])
    command(ada, dataset="d", subject=PERSON)
    after = bodies(ada.store, table["ada"], ["data.used", "access.decided"])
    assert len(before) - len(after) == 4
    kept = [json.loads(data) for _, data in after.values()]
    assert {body.get("run") or body["request"]["run"] for body in kept} == {"run-0", "run-e"}


def test_status_tells_who_has_not_confirmed(table: Table, ada: Session) -> None:
    assert erasing.status(ada, 0) == {"erasures": [], "marked": [], "forgetting": 0}
    command(ada, dataset="d", subject=PERSON)
    (waiting,) = erasing.status(ada, 0)["erasures"]  # type: ignore[misc]
    assert isinstance(waiting, Mapping)
    assert (waiting["by"], waiting["rows"], waiting["missing"], waiting["overdue"]) == (
        "ada",
        20,
        ["bob", "cyd"],
        False,
    )
    table.deliver()
    tend(session_of(table["bob"]))
    table.deliver()
    (waiting,) = erasing.status(ada, 10**15)["erasures"]  # type: ignore[misc]
    assert isinstance(waiting, Mapping)
    assert (waiting["missing"], waiting["overdue"]) == (["cyd"], True)
    assert erasing.status(session_of(table["cyd"]), 0)["marked"] == sorted(
        c.event for c in table["ada"].fold.contributions[ada.member][1:3]
    )
    tend(session_of(table["cyd"]))
    table.deliver()
    assert erasing.status(ada, 0)["erasures"] == []


def test_confirming_once_is_enough(table: Table, ada: Session) -> None:
    command(ada, dataset="d", subject=PERSON)
    for _ in range(3):
        table.deliver()
        for name in ("ada", "bob", "cyd"):
            tend(session_of(table[name]))
    for sitter in table:
        done = [r for r in sitter.store.records(table.collective, sitter.id) if r.entry.header.type == "erasure.done"]
        assert len(done) == 1


def test_nobody_erases_the_evidence_of_another_member(table: Table, ada: Session) -> None:
    """A request names bodies of its author's own feed alone; what else it lists is passed over."""
    foreign = sorted(bodies(ada.store, table["ada"], ["data.used"]))
    table["bob"].seat.append(
        events.ErasureRequested(
            dataset="d",
            scope="row",
            rows=1,
            request=Digest("ab" * 32),
            contributions=tuple(c.event for c in table["ada"].fold.contributions[table["ada"].id][:1]),
            entries=tuple(foreign),  # type: ignore[arg-type]
            deadline=0,
        )
    )
    table.deliver()
    for sitter in table:
        tend(session_of(sitter))
        assert sorted(bodies(sitter.store, table["ada"], ["data.used"])) == foreign
        assert session_of(sitter).eraser().catch_up().marked() == {}


def test_a_member_with_a_new_key_forgets_what_it_did_with_the_old_one(table: Table, ada: Session) -> None:
    """A seat's earlier keys are its own: their uses are traced, their bodies erased, and what they confirmed counts."""
    old, new = table["ada"], table["bob"]  # as if bob's key held ada's seat now
    with ada.rows() as rows:
        roots = rows.find("d", subject=PERSON).roots
    fold = session_of(new).eraser().catch_up()
    assert fold.trace(new.id, "d", roots).entries == ()
    fold.earlier = {new.id: frozenset({old.id})}
    found = fold.trace(new.id, "d", roots)
    assert (len(found.contributions), len(found.entries)) == (2, 4)
    request = events.ErasureRequested(
        dataset="d",
        scope="row",
        rows=1,
        request=Digest("ab" * 32),
        contributions=found.contributions,
        entries=found.entries,
        deadline=0,
    )
    fold.apply(new.seat.append(request))
    (asked,) = fold.requests()
    assert {source.event for source in fold.bodies(asked)} == set(found.entries)
    assert set(fold.marked()) == set(found.contributions)
    fold.apply(old.seat.append(events.ErasureDone(request=asked.source.event, bodies=4)))
    (asked,) = fold.requests()
    assert fold.confirmed(asked, new.id)
    fold.earlier = {}
    assert (fold.bodies(asked), fold.marked(), fold.confirmed(asked, new.id)) == ([], {}, False)


def test_bodies_of_other_types_are_never_erased_on_request(table: Table, ada: Session) -> None:
    mine = [r.entry.event for r in ada.store.records(table.collective, ada.member)]
    table["ada"].seat.append(
        events.ErasureRequested(
            dataset="d",
            scope="row",
            rows=1,
            request=Digest("ab" * 32),
            contributions=(),
            entries=tuple(sorted(mine)),
            deadline=0,
        )
    )
    table.deliver()
    tend(session_of(table["bob"]))
    left = table["bob"].store.records(table.collective, ada.member)
    assert {r.entry.header.type for r in left if r.body is None} == events.ERASABLE
    assert frozenset(schema.ERASABLE) == events.ERASABLE


def test_no_event_and_no_log_line_names_the_person_the_row_or_its_tag(
    table: Table, ada: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Attacks 69 and 73: a scanner over every line and body of every feed, and over what the node logged."""
    caplog.set_level("DEBUG")
    (row,) = rows_about(PERSON, 1)
    command(ada, dataset="d", rows=[row.digest()])
    command(ada, dataset="d", subject=PERSON)
    with pytest.raises(NotAllowed) as caught:
        command(ada, dataset="d", subject=PERSON)
    table.deliver()
    for name in ("bob", "cyd"):
        tend(session_of(table[name]))
    table.deliver()
    said = [caplog.text, str(caught.value), *(saved_state(sitter) for sitter in table)]
    for sitter in table:
        for member in sitter.store.members(table.collective):
            for record in sitter.store.records(table.collective, member):
                said.append(record.entry.line.decode() + (record.body.data.decode() if record.body else ""))
    everything = "\n".join(said)
    assert "erasure.requested" in everything
    for personal in (PERSON, PERSON.partition(" ")[0] + " ", TEXT, TAG, row.digest()):
        assert personal not in everything


def saved_state(sitter: Sitter) -> str:
    return "".join(repr(sitter.store.get_state(key)) for key in (erasing.STATE, erasing.FORGOTTEN))


def test_two_requests_of_one_kind_cannot_be_linked_to_a_guess(table: Table, ada: Session) -> None:
    """Attack 68: the request number is random, so it confirms no guess of a row, a subject or a digest."""
    (row,) = rows_about(PERSON, 1)
    command(ada, dataset="d", rows=[row.digest()])
    (request,) = ada.eraser().catch_up().requests()
    guesses = (PERSON.encode(), row.canonical(), bytes.fromhex(row.digest()), row.digest().encode(), b"d")
    assert request.asked.request not in {hashlib.sha256(guess).hexdigest() for guess in guesses}
    assert request.asked.request != row.digest()


def test_dry_run_changes_nothing(table: Table, ada: Session) -> None:
    before = ada.store.heads(table.collective, ada.member)
    with ada.rows(read_only=True) as rows:
        summary = rows.summary("d")
    result = command(ada, dataset="d", subject=PERSON, dry_run=True)
    assert (result["rows"], len(result["contributions"]), result["bodies"], result["requests"]) == (20, 2, 4, [])
    assert ada.store.heads(table.collective, ada.member) == before
    with ada.rows(read_only=True) as rows:
        assert rows.summary("d") == summary


def test_what_is_not_here_cannot_be_forgotten(ada: Session, tmp_path: Path) -> None:
    with pytest.raises(NotAllowed, match="no row here"):
        command(ada, subject="Nobody")
    with pytest.raises(NotAllowed, match="nothing says which"):
        command(ada, dataset="d")


def test_rows_of_a_file_are_forgotten_in_all_data_sets(ada: Session, tmp_path: Path) -> None:
    file = tmp_path / "gone.jsonl"
    wanted = [*others(3), text_row("else 4"), text_row("never seen")]
    file.write_text("".join(json.dumps({"text": row.text}) + "\n" for row in wanted))
    result = command(ada, row_file=str(file))
    assert (result["rows"], result["datasets"], len(result["requests"])) == (4, ["d", "e"], 2)
    assert len(result["contributions"]) == 4


def test_expired_rows_are_found_and_forgotten(table: Table) -> None:
    session, now = session_of(table["ada"]), erasing.now_ms()
    with RowStore.open(session.home.rows_db, clock=lambda: now - 3 * 86_400_000) as rows:
        described = replace(rows.add("d", others(9), 0).description, retention_days=2)
    with session.rows() as rows:
        rows.add("d", rows_about(PERSON, 2), if_exists="append", description=described)
        rows.add("for-ever", [text_row("kept")], 0)
    (told, other) = asyncio.run(curating.list_(session, {}))["datasets"]  # type: ignore[call-overload,index]
    assert (told["overdue"], other["overdue"]) == (True, False)
    assert command(session, expired=True)["rows"] == 9
    (told, _) = asyncio.run(curating.list_(session, {}))["datasets"]  # type: ignore[call-overload,index]
    assert (told["overdue"], told["train_rows"]) == (False, 2)
    with pytest.raises(NotAllowed):
        command(session, expired=True)


def test_what_cannot_be_announced_now_is_announced_when_the_ledger_opens(table: Table, ada: Session) -> None:
    rows, uses = secrets_of(table)
    ada.need_seat().pause("its feed may be longer elsewhere")
    result = command(ada, dataset="d", subject=PERSON)
    assert result["requests"] == []
    assert standing(ada.home.path, rows) == [], "rows do not wait for the ledger"
    assert standing(ada.home.path, uses) == uses
    assert erasing.status(ada, 0)["forgetting"] == 1
    again = session_of(table["ada"])  # a restart
    again.need_seat().pause(None)
    again.commit_data()
    (request,) = again.eraser().catch_up().requests()
    assert (request.asked.rows, len(request.asked.contributions)) == (20, 2)
    assert standing(ada.home.path, uses) == []
    assert erasing.status(again, 0)["forgetting"] == 0
    again.commit_data()
    assert len(again.eraser().catch_up().requests()) == 1


def test_rows_that_no_collective_ever_saw_are_forgotten_in_silence(table: Table) -> None:
    alone = replace_seat(session_of(table["ada"]))
    with alone.rows() as rows:
        rows.add("d", rows_about(PERSON, 3), 0)
    assert command(alone, subject=PERSON)["rows"] == 3
    assert erasing.pending(alone.store) == []
    assert standing(alone.home.path, [TEXT.encode()]) == []


def replace_seat(session: Session) -> Session:
    session.seat = None
    return session


def test_a_run_on_forgotten_rows_is_not_published_later(table: Table, ada: Session) -> None:
    permits = Permits(table["ada"].seat, policy=lambda: Digest("0" * 64))
    permits.train(["d"], "run-3")
    folder = ada.home.run_folder("run-3")
    folder.mkdir()
    (folder / "theta.npy").write_bytes(b"learnt")
    assert not erasing.is_forgotten(ada.store, "run-3")
    command(ada, dataset="d", subject=PERSON)
    assert erasing.is_forgotten(ada.store, "run-3")
    assert not erasing.is_forgotten(ada.store, "run-0")
    assert not folder.exists()


def test_what_was_learnt_and_not_sent_is_thrown_away(table: Table, ada: Session) -> None:
    vector = b"learnt-from-the-canary-rows-" * 40
    for name in (residual.STATE, residual.FIRST):
        ada.store.put_state(name, residual.HEAD.pack(bytes(32), 3, 280) + vector)
    assert standing(ada.home.path, [vector[:28]]) == [vector[:28]]
    command(ada, dataset="d", subject=PERSON)
    assert standing(ada.home.path, [vector[:28]]) == []
    for name in (residual.STATE, residual.FIRST):
        saved = ada.store.get_state(name)
        assert saved is not None
        assert residual.HEAD.unpack_from(saved) == (bytes(32), 0, 0), "it belongs to no epoch"


def test_what_adam_knew_is_thrown_away_with_the_rows_in_later_runs_too(table: Table, ada: Session) -> None:
    kept = ada.home.run_folder("run-9") / residual.MOMENTS  # of a run on other rows, which went on from an earlier one
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"moments")
    command(ada, dataset="d", subject=PERSON)
    assert not kept.exists()
    assert kept.parent.exists()


def test_salts_are_fresh_for_every_row_and_every_event(table: Table, ada: Session) -> None:
    """Attack 68: equal rows and equal bodies are committed to under other salts, so that no commitment repeats."""
    with ada.rows() as rows:
        rows.add("twin", others(20), 100_000)
    db = sqlite3.connect(ada.home.rows_db)
    salts = [row[0] for row in db.execute("SELECT salt FROM rows")]
    db.close()
    heads = [record for s in table for record in s.store.records(table.collective, s.id)]
    salts += [record.body.salt for record in heads if record.body]
    assert {len(salt) for salt in salts} == {16}
    assert len(set(salts)) == len(salts)
    assert len({record.entry.header.body_hash for record in heads}) == len(heads)
    for record in heads:
        assert record.body is not None
        unsalted = {
            hashlib.sha256(record.body.data).hexdigest(),
            hashlib.sha256(bytes(16) + record.body.data).hexdigest(),
        }
        assert record.entry.header.body_hash not in unsalted


def test_plans_that_begin_while_others_end_are_not_lost(table: Table, ada: Session) -> None:
    """The daemon tends a plan in a thread while the operator begins the next."""
    for number in range(12):
        with ada.rows() as rows:
            found = rows.find("d", subject=f"patient {number}")
        ender = threading.Thread(target=erasing.delete, args=(ada,))
        ender.start()
        erasing.begin(ada, "d", found, "subject")
        ender.join()
    erasing.delete(ada)
    assert len(erasing.pending(ada.store)) == 12
    ada.commit_data()
    assert len(ada.eraser().catch_up().requests()) == 12
    assert erasing.pending(ada.store) == []


def test_a_second_erasure_marks_what_the_record_no_longer_tells(table: Table, ada: Session) -> None:
    """The uses of run-1 and run-2 were erased, so whoever is forgotten next counts as part of them."""
    first = command(ada, dataset="d", subject=PERSON)
    second = command(ada, dataset="d", subject="patient 3")
    third = command(ada, dataset="e", rows=[text_row("else 1").digest()])
    assert set(second["contributions"]) > set(first["contributions"])
    assert len(second["contributions"]) == 3
    assert len(third["contributions"]) == 1, "another data set is another matter"


def test_fold_does_not_depend_on_how_feeds_interleave(table: Table, ada: Session) -> None:
    command(ada, dataset="d", subject=PERSON)
    table.deliver()
    tend(session_of(table["bob"]))
    table.deliver()
    store = table["cyd"].store
    feeds = [store.records(table.collective, member) for member in store.members(table.collective)]
    one, other = Erasures(), Erasures()
    for feed in feeds:
        for record in feed:
            one.apply(record)
    for seq in range(max(map(len, feeds))):
        for feed in reversed(feeds):
            for record in feed[seq : seq + 1]:
                other.apply(record)
                other.apply(record)
    assert one.requests() == other.requests()
    assert one.marked() == other.marked() != {}
    assert one.waiting(store.members(table.collective)) == other.waiting(store.members(table.collective))


def test_a_member_that_pulls_the_feed_afterwards_gets_no_erased_body(
    table: Table, ada: Session, tmp_path: Path
) -> None:
    command(ada, dataset="d", subject=PERSON)
    with Store.open(tmp_path / "late.db") as late:
        start = 0
        while page := ada.store.records(table.collective, ada.member, start):
            (head,) = ada.store.heads(table.collective, ada.member)
            late.append_foreign(table.collective, ada.member, page, head.note)
            start += len(page)
        missing = {r.entry.event for r in late.records(table.collective, ada.member) if r.body is None}
    (request,) = ada.eraser().catch_up().requests()
    assert missing == set(request.asked.entries)


def test_an_export_of_the_feed_holds_no_body_and_goes_on_verifying(table: Table, ada: Session, tmp_path: Path) -> None:
    """Attack 70: what was exported before an erasure has nothing that would have to be erased."""
    _, uses = secrets_of(table)

    def exported(name: str) -> Path:
        (head,) = ada.store.heads(table.collective, ada.member)
        lines = [record.entry.line for record in ada.store.records(table.collective, ada.member)]
        export.jsonl(lines, head, head.note, tmp_path / name)
        return tmp_path / name

    before = exported("before")
    command(ada, dataset="d", subject=PERSON)
    after = exported("after")
    assert standing(before, [*uses, *(base64.b64encode(use) for use in uses)]) == []
    old, new = (next(folder.glob("*.jsonl")).read_bytes() for folder in (before, after))
    assert new.startswith(old), "nothing that was said is rewritten"


def test_large_erasures_are_several_requests_of_one_act(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "MAX_LISTED", 3)
    session = session_of(table["ada"])
    with session.rows() as rows:
        rows.add("d", rows_about(PERSON, 3), 0)
    session.commit_data()
    for number in range(4):
        trained(table["ada"], f"run-{number}")
    assert len(command(session, subject=PERSON)["requests"]) == 3
    requests = session.eraser().catch_up().requests()
    assert len({request.asked.request for request in requests}) == 1
    assert len({event for request in requests for event in request.asked.contributions}) == 4
    assert len({event for request in requests for event in request.asked.entries}) == 8
