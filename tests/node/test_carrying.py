"""Bundles: feeds and blobs by file meet the same checks as from a peer, and nothing more leaves than a peer would get."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper import key
from posted import Post, blobs_in, fishernet, fold_of
from world import World

from ledger import checkpoint, events
from ledger.entry import Record, make
from ledger.errors import FeedBehind
from ledger.store import Store
from node import config
from node import session as sessions
from node.cli import run
from node.data import taking
from node.errors_network import BundleCut, BundleError
from node.guarding import growth
from node.guarding.limits import Rate
from node.home import Home
from node.syncing.exchange import to_wire
from node.syncing.parcels import Reader, Writer
from protocol import envelope, parcel, wire
from protocol.errors import Refused
from protocol.ids import ZERO, Digest, digest
from protocol.keys import SigningKey, member_id
from protocol.merkle import root_of
from protocol.parcel import Blob, Header, Page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Post, Home, Path]]:
    """A collective of four with three releases and something pending, the home of a member, and its bundle in the open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FISHERNET_PASSPHRASE", raising=False)
        world = World.opened(("ada", "bob", "cyd", "dan"))
        for _ in range(3):
            world.release()
        world.published("cyd")
        post = Post(tmp_path_factory.mktemp("post"), world)
        home, file = post.home("ada"), post.folder / "all.bundle"
        assert run(["bundle", "export", str(file), "--home", str(home.path)]) == 0
        yield post, home, file


@pytest.fixture
def newcomer(made: tuple[Post, Home, Path], tmp_path: Path) -> Home:
    """The home of bob, who holds nothing yet."""
    return Post(tmp_path, made[0].world).home("bob", holds=False)


def state(home: Home) -> tuple[dict[str, int], list[str], set[str]]:
    fold = fold_of(home)
    return fold.sizes, [d.digest for d in fold.decisions], blobs_in(home)


def header_of(world: World, maker: str = "ada", **fields: object) -> Header:
    whole = {"collective": world.collective, "made": world.now, "since": {}, "heads": {}, "readers": {}}
    return parcel.signed(key(maker), **{**whole, **fields})


def page_of(world: World, name: str, records: list[Record]) -> Page:
    """These records under the newest head of a member's feed."""
    leaves = [bytes.fromhex(r.entry.leaf) for r in world.feeds[name]]
    head = checkpoint.make(key(name), world.collective, world.ids[name], len(leaves), Digest(root_of(leaves).hex()))
    return Page(member=world.ids[name], page=wire.page_of(head.note, to_wire(records)))


def test_a_whole_collective_comes_over_by_file_and_a_second_import_changes_nothing(made, newcomer, capsys) -> None:
    _, home, file = made
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(file))
    assert (code, told["whole"], told["refused"], told["gaps"]) == (0, True, [], {})
    assert state(newcomer) == state(home)
    assert len(fold_of(newcomer).releases) == 3
    assert (told["entries"], told["blobs"], told["lacking_blobs"]) == (sum(state(home)[0].values()), 13, 0)
    code, again = fishernet(capsys, newcomer, "bundle", "import", str(file))
    assert (code, again["entries"], again["blobs"]) == (0, 0, 0)
    assert (again["repeated"], again["known_blobs"]) == (told["entries"], 13)
    assert file.stat().st_mode & 0o777 == 0o600


def test_blobs_come_in_the_order_in_which_they_are_needed(made) -> None:
    post, _, file = made
    with file.open("rb") as opened:
        found = [item.digest for item in Reader(opened).items() if isinstance(item, Blob)]
    fold = post.world.fold
    released = {c.blob for taken in fold.in_cut(fold.cut).values() for c in taken}
    pending = {c.blob for c in fold.pending()}
    assert set(found[: len(released)]) == released
    assert set(found[len(released) : len(released) + len(pending)]) == pending


def test_feeds_come_in_an_order_in_which_each_author_is_known_by_those_before(made) -> None:
    """Ids sort in any way; the founder's feed, with the charter in it, comes first all the same."""
    post, _, file = made
    with file.open("rb") as opened:
        first = next(item for item in Reader(opened).items() if isinstance(item, Page))
    assert first.member == post.world.fold.founder


def test_a_sealed_bundle_opens_for_its_reader_alone_and_shows_nothing_else(made, newcomer, tmp_path, capsys) -> None:
    post, home, plain = made
    file = tmp_path / "sealed.bundle"
    code, told = fishernet(capsys, home, "bundle", "export", str(file), "--to", "bob")
    assert (code, told["sealed"], told["readers"]) == (0, True, ["bob"])
    line = post.world.feeds["cyd"][3].entry.line
    assert line in plain.read_bytes()
    assert line not in file.read_bytes()
    assert b"contribution.published" not in file.read_bytes()
    cyd = Post(tmp_path, post.world).home("cyd", holds=False)
    code, told = fishernet(capsys, cyd, "bundle", "import", str(file))
    assert (code, told["error"]["code"]) == (1, "not-for-us")
    assert state(cyd) == ({}, [], set())
    code, told = fishernet(capsys, cyd, "bundle", "show", str(file))
    assert (code, told["maker"]) == (0, post.world.ids["ada"])
    assert fishernet(capsys, newcomer, "bundle", "import", str(file))[0] == 0
    assert state(newcomer) == state(home)


def test_a_reader_without_a_seat_or_with_an_unclear_name_is_refused(made, tmp_path, capsys) -> None:
    _, home, _ = made
    for name in ("zoe", "a" * 64, "1234567"):
        code, told = fishernet(capsys, home, "bundle", "export", str(tmp_path / "x"), "--to", name)
        assert (code, told["error"]["code"]) == (1, "not-allowed")
    assert not (tmp_path / "x").exists()


def test_the_egress_policy_holds_for_files_as_for_peers(made, tmp_path, capsys) -> None:
    post, _, _ = made
    home = Post(tmp_path, post.world).home("cyd")
    config.update(home.config_file, "egress", "members", (post.world.ids["bob"],))
    for to in ((), ("--to", "dan")):
        code, told = fishernet(capsys, home, "bundle", "export", str(tmp_path / "x"), *to)
        assert (code, told["error"]["code"]) == (1, "egress-stopped")
        assert not (tmp_path / "x").exists()
    assert fishernet(capsys, home, "bundle", "export", str(tmp_path / "x"), "--to", "bob")[0] == 0
    assert fishernet(capsys, home, "bundle", "export", str(tmp_path / "y"), "--feeds-only")[0] == 0
    with (tmp_path / "y").open("rb") as file:
        assert not any(isinstance(item, Blob) for item in Reader(file).items())


def test_a_later_bundle_carries_only_what_came_after(made, newcomer, tmp_path, capsys) -> None:
    post, home, file = made
    fishernet(capsys, newcomer, "bundle", "import", str(file))
    world, names = post.world, ("2", str(file))
    for since in names:
        code, told = fishernet(capsys, home, "bundle", "export", str(tmp_path / "delta"), "--since", since)
        assert code == 0
        assert told["entries"] < sum(world.fold.sizes.values())
    assert (told["entries"], told["blobs"]) == (0, 0), "nothing was written since that bundle"
    code, told = fishernet(capsys, home, "bundle", "export", str(tmp_path / "known"), "--since", "known", "--to", "bob")
    assert code == 0
    known = world.fold.known_to(world.ids["bob"])
    assert told["entries"] == sum(n - known.get(m, 0) for m, n in world.fold.sizes.items())
    for wrong in ("17", "known"):
        assert fishernet(capsys, home, "bundle", "export", str(tmp_path / "no"), "--since", wrong)[0] == 1


def test_a_gap_to_what_is_held_is_said_and_our_own_feed_is_not_forked_over_it(made, newcomer, tmp_path, capsys) -> None:
    _, home, file = made
    fishernet(capsys, home, "bundle", "export", str(tmp_path / "late"), "--since", "2")
    with file.open("rb") as opened:  # a home that holds a part of everything
        short = _without_pages(opened.read(), after=1)
    (tmp_path / "short").write_bytes(short)
    fishernet(capsys, newcomer, "bundle", "import", str(tmp_path / "short"))
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(tmp_path / "late"))
    assert code == 2
    assert told["gaps"]
    with sessions.writing(newcomer, None) as session, pytest.raises(FeedBehind):
        session.need_seat().append(events.NodeAlive())


def _without_pages(data: bytes, *, after: int) -> bytes:
    """A bundle of only the first pages of one that is in the open; well-formed and whole."""
    reader, out = Reader(io.BytesIO(data)), io.BytesIO()
    writer = Writer(out, reader.header)
    for number, item in enumerate(reader.items()):
        if number < after and isinstance(item, Page):
            writer.item(item)
    writer.end()
    return out.getvalue()


@pytest.mark.parametrize("part", [0.001, 0.2, 0.5, 0.9, 0.9999])
def test_a_copy_that_was_broken_off_keeps_what_came_and_is_finished_by_a_whole_one(
    made, newcomer, tmp_path, capsys, part
):
    _, home, file = made
    cut = tmp_path / "cut"
    cut.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(cut))
    if part < 0.01:
        assert (code, told["error"]["code"]) == (1, "bundle-cut")
    else:
        assert (code, told["whole"]) == (2, False)
        assert told["entries"] > 0 or part < 0.5
    assert fishernet(capsys, newcomer, "bundle", "import", str(file))[0] == 0
    assert state(newcomer) == state(home)


def test_a_member_that_signed_two_histories_is_convicted_by_a_bundle(made, newcomer, capsys, tmp_path) -> None:
    post, _, file = made
    fishernet(capsys, newcomer, "bundle", "import", str(file))
    world = post.world
    feed = world.feeds["dan"]
    lie = make(
        key("dan"), collective=world.collective, seq=3, prev=feed[2].entry.leaf, ts=world.now, type="node.alive",
        seen=(), body=events.NodeAlive().to_json(), salt=bytes(16),
    )  # fmt: skip
    out = io.BytesIO()
    writer = Writer(out, header_of(world))
    writer.item(page_of(world, "dan", [lie]))
    writer.end()
    (tmp_path / "lie").write_bytes(out.getvalue())
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(tmp_path / "lie"))
    assert (code, told["forks"]) == (1, [world.ids["dan"]])
    with Store.open(newcomer.ledger_db, writer=False) as store:
        assert [f.member for f in store.forks(world.collective)] == [world.ids["dan"]]


def test_feeds_of_strangers_and_blobs_that_nobody_named_are_passed_over(made, newcomer, capsys, tmp_path) -> None:
    post, _, file = made
    world, stranger = post.world, SigningKey.generate()
    odd = make(
        stranger,
        collective=world.collective,
        seq=0,
        prev=ZERO,
        ts=1,
        type="node.alive",
        seen=(),
        body={},
        salt=bytes(16),
    )
    out = io.BytesIO()
    writer = Writer(out, header_of(world))
    note = page_of(world, "ada", []).page.note
    writer.item(Page(member=member_id(stranger), page=wire.page_of(note, to_wire([odd]))))
    writer.blob(Blob(digest=digest(b"junk" * 999), size=4 * 999), [b"junk" * 999])
    writer.end()
    (tmp_path / "odd").write_bytes(out.getvalue())
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(tmp_path / "odd"))
    assert (code, told["entries"]) == (1, 0), "before the charter is here a feed that is not its founder's is refused"
    assert state(newcomer) == ({}, [], set())
    fishernet(capsys, newcomer, "bundle", "import", str(file))
    before = state(newcomer)
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(tmp_path / "odd"))
    assert (code, told["strangers"], told["passed_blobs"]) == (0, 1, 1)
    assert state(newcomer) == before


def test_a_file_that_shows_entries_or_blobs_again_and_again_costs_no_second_look(
    made, newcomer, capsys, tmp_path
) -> None:
    post, home, file = made
    world, ada = post.world, post.world.ids["ada"]
    feed, path = world.feeds["ada"], tmp_path / "again.bundle"
    blob = next(iter(fold_of(home).pending()))
    wrong = bytes(blob.size)
    with path.open("wb") as out, file.open("rb") as opened:
        writer = Writer(out, header_of(world))
        for item in Reader(opened).items():
            if isinstance(item, Page) and item.member != ada:
                writer.item(item)
            elif isinstance(item, Page):
                for start in (0, 1, 0, 2, *[0] * 300):
                    writer.item(page_of(world, "ada", feed[start : start + 1]))
        for data in (wrong, wrong, wrong):
            with contextlib.suppress(BundleError):  # an honest writer stops here
                writer.blob(Blob(digest=blob.blob, size=blob.size), [data])
        writer.end()
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(path))
    assert (code, told["blobs"], told["passed_blobs"]) == (1, 0, 2)
    assert [what for what, _ in told["refused"]] == [ada, blob.blob]
    assert "repeats entries" in told["refused"][0][1]
    assert fold_of(newcomer).sizes[ada] == 2, "what came before in order is kept"
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(file))
    assert (code, state(newcomer)) == (0, state(home)), "an honest bundle makes up for it"


def test_history_comes_by_file_only_as_far_as_there_is_room_for_it(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    world = World.opened(("ada", "bob"))
    world.release()
    world.published("ada", epoch=digest(b"a former epoch"), number=1)
    post, file = Post(tmp_path / "from", world), tmp_path / "all.bundle"
    home, newcomer = post.home("ada"), Post(tmp_path / "to", world).home("bob", holds=False)
    assert fishernet(capsys, home, "bundle", "export", str(file))[0] == 0
    assert run(["config", "set", "storage.min_free_mib", str(2**31 - 1), "--home", str(newcomer.path)]) == 0
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(file))
    assert (code, told["no_room"], told["blobs"]) == (0, 1, 2)
    assert run(["config", "set", "storage.min_free_mib", "0", "--home", str(newcomer.path)]) == 0
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(file))
    assert (code, told["no_room"], told["blobs"]) == (0, 0, 1)
    assert blobs_in(newcomer) == blobs_in(home)


def test_a_bundle_of_another_collective_or_maker_is_no_bundle_for_us(made, newcomer, capsys, tmp_path) -> None:
    other = World(("ada", "bob", "cyd"), cosignatures=1)
    out = io.BytesIO()
    Writer(out, header_of(other)).end()
    (tmp_path / "other").write_bytes(out.getvalue())
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(tmp_path / "other"))
    assert (code, told["error"]["code"]) == (1, "not-for-us")
    header = header_of(made[0].world)
    forged = Header(**{**{f: getattr(header, f) for f in header.__slots__}, "made": header.made + 1})
    with pytest.raises(Refused):
        parcel.parse_header(forged.to_bytes())


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff\xff\xff",
        wire.frame(b"p" + bytes(32) + b"\xff\xff\xff\xff"),
        wire.frame(b"b" + bytes(32) + b"\x7f" + b"\xff" * 7),
        wire.frame(b"z" + bytes(32)),
        wire.frame(b"e" + bytes(32)),
        wire.frame(b""),
    ],
    ids=["frame", "item", "blob", "kind", "end", "empty"],
)
def test_a_length_that_lies_is_refused_before_anything_is_allocated(made, body) -> None:
    data = parcel.MAGIC + wire.frame(header_of(made[0].world).to_bytes()) + body
    tracemalloc.start()
    with pytest.raises((Refused, BundleCut)):
        for _ in Reader(io.BytesIO(data)).items():
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), sealed=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_never_gets_further_than_the_checks(small, at: float, flip: int, sealed: bool) -> None:
    """In the open a changed entry is refused by itself and the file by its digest; sealed, nothing after it is read."""
    data, reader = small[sealed]
    place = int(at * len(data))
    changed = data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]
    with pytest.raises((Refused, BundleCut)):
        list(Reader(io.BytesIO(changed), reader).items())


@pytest.fixture(scope="module")
def small() -> dict[bool, tuple[bytes, SigningKey]]:
    world = World(("ada", "bob"))
    world.published("ada")
    found = {}
    for sealed in (False, True):
        secret = envelope.fresh_key()
        readers = {world.ids["bob"]: envelope.seal_key(secret, world.ids["bob"])} if sealed else {}
        out = io.BytesIO()
        writer = Writer(out, header_of(world, readers=readers), secret if sealed else None)
        writer.item(page_of(world, "ada", world.feeds["ada"]))
        for name, blob in world.blobs.items():
            writer.blob(Blob(digest=name, size=len(blob)), [blob])
        writer.end()
        found[sealed] = (out.getvalue(), key("bob"))
    return found


@given(data=st.binary(max_size=400))
def test_no_bytes_make_a_parser_of_bundles_fail_otherwise_than_by_refusing(data: bytes) -> None:
    for parse in (parcel.parse_header, parcel.parse_item):
        with pytest.raises(Refused):
            raise Refused(str(parse(data)))


@pytest.mark.parametrize("sealed", [False, True])
def test_large_blobs_go_through_in_pieces(tmp_path: Path, sealed: bool) -> None:
    size, secret, me = 8 << 20, envelope.fresh_key(), key("bob")
    readers = {member_id(me): envelope.seal_key(secret, member_id(me))} if sealed else {}
    piece = bytes(1 << 16)
    name = hashlib.sha256(bytes(size)).hexdigest()
    header = parcel.signed(key("ada"), collective="0" * 64, made=1, since={}, heads={}, readers=readers)
    tracemalloc.start()
    with (tmp_path / "big").open("wb") as file:
        writer = Writer(file, header, secret if sealed else None)
        writer.blob(Blob(digest=name, size=size), (piece for _ in range(size >> 16)))
        writer.end()
    found, count = hashlib.sha256(), 0
    with (tmp_path / "big").open("rb") as file:
        reader = Reader(file, me)
        for _ in reader.items():
            for chunk in reader.chunks():
                found.update(chunk)
                count += len(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, found.hexdigest()) == (size, name)
    assert peak < 3 << 20


def test_a_damaged_blob_is_not_written_into_a_bundle(made, tmp_path, capsys) -> None:
    post, _, _ = made
    home = Post(tmp_path, post.world).home("dan")
    victim = home.blobs / next(iter(blobs_in(home)))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    code, told = fishernet(capsys, home, "bundle", "export", str(tmp_path / "x"))
    assert (code, told["error"]["code"]) == (1, "bad-bundle")
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".x.*"))


def test_the_law_of_headers_holds_for_many_feeds_and_readers() -> None:
    names = [member_id(key(f"member {n}")) for n in range(parcel.MAX_FEEDS)]
    header = parcel.signed(
        key("ada"),
        collective=digest(b"c"),
        made=7,
        since={n: 3 for n in names[:5]},
        heads={n: i for i, n in enumerate(names)},
        readers={n: bytes(parcel.SEALED_KEY_BYTES) for n in names[: parcel.MAX_READERS]},
    )
    assert parcel.parse_header(header.to_bytes()) == header
    with pytest.raises(Refused):
        parcel.parse_header(
            parcel.signed(
                key("ada"),
                collective=digest(b"c"),
                made=7,
                since={},
                heads={},
                readers={n: bytes(80) for n in names[:65]},
            ).to_bytes()
        )


def test_a_feed_grows_no_faster_by_file_than_by_peers(made, newcomer, capsys, monkeypatch) -> None:
    post, _, file = made
    few = growth.FeedRates(entries=Rate(per_s=0.0, burst=2))
    monkeypatch.setattr(taking, "rates_of", lambda **_limits: few)
    code, told = fishernet(capsys, newcomer, "bundle", "import", str(file))
    founder, others = post.world.fold.founder, set(post.world.ids.values()) - {post.world.ids["bob"]}
    assert (code, set(told["held_back"])) == (2, others)
    sizes = fold_of(newcomer).sizes
    assert sizes[founder] == 2
    assert sizes[post.world.ids["bob"]] == post.world.fold.sizes[post.world.ids["bob"]], (
        "its own feed is its own matter"
    )
    monkeypatch.undo()
    assert fishernet(capsys, newcomer, "bundle", "import", str(file))[0] == 0
    assert fold_of(newcomer).sizes == post.world.fold.sizes
