"""The proof that something was forgotten, as one file: its shape, its one spelling, and who signed it.

Canonical JSON, so that any program reads it; every list and text is bounded before anything is done with it. What the parts show
is checked by `ledger.bundle_check`; here they are only what the format says. Needs no store, no network, no numpy.
Law: `decode(encode(b)) == b`, and no other bytes are read as `b`. Format: FORMAT.md, "Forget bundle".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ledger.cuts import MAX_LIST, Cut, parse
from ledger.entry import MAX_BODY, MAX_LINE, SALT_BYTES, Body
from ledger.errors import BadBundle
from protocol import canon, keys
from protocol.canon import MAX_INT, Json
from protocol.errors import TooLarge
from protocol.ids import CollectiveId, Digest, EventId, MemberId, as_hex, digest
from protocol.text import from_base64, to_base64

VERSION: Final = 1
KIND: Final = "forget-bundle"
DOMAIN: Final = "forget-bundle"
SUFFIX: Final = ".forgotten.json"
MAX_FILE: Final = 8 << 20
MAX_PARTS: Final = 1 << 19  # lists and objects, those inside of texts included: what a reader may have to hold
MAX_NOTE: Final = 1024
MAX_PATH: Final = 64
MAX_ROWS: Final = 8192  # entries, descendants, inputs of a log
STATEMENT: Final = (
    "The release named as new was merged without the contributions listed as asked, and is what it would be if they had never "
    "been in it. Removal from a merge is not unlearning: the contributions listed as descendants were trained from a view that "
    "had, or may have had, them in it; they are still in it, and only training again from before takes out what they carry on."
)
CERTAINTIES: Final = frozenset({"contains", "may-contain"})
REASONS: Final = frozenset({"view", "unsent-rest", "view-unknown", "card-missing"})

_KEYS: Final = frozenset(
    {"v", "kind", "collective", "made", "genesis", "asked", "decisions", "superseded", "feeds", "entries", "logs", "releases",
     "descendants", "statement", "signature"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An entry: its line, the way from it to the root of its feed's note, and its body where that is needed."""

    line: bytes
    path: tuple[bytes, ...]
    body: Body | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Where a cut's head vector ends in a feed: `path` leads from the leaf of entry size-1 to `root`."""

    size: int
    root: Digest
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedProof:
    """One feed: its signed head, the proof that it continues the old cut's part of it, and both cuts' ends in it.

    `old.root` is the root at that size, `new.root` that of the note.
    """

    note: bytes
    consistency: tuple[bytes, ...]
    old: Edge | None
    new: Edge | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A decision: the entry that proposed it and the commits of a quorum."""

    proposal: EventId
    commits: tuple[EventId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A release that had one of them in it: its model as decided, and the maker's word for the one without them."""

    number: int
    release: Digest
    model: Digest
    without: Digest | None
    twice: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Descendant:
    """The maker's word for a later contribution that was trained from a view with one of them in it."""

    event: EventId
    member: MemberId
    number: int
    view: Digest | None
    certainty: str
    why: str
    through: tuple[EventId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Everything in the file; `signed` are the canonical bytes that `signature` covers."""

    collective: CollectiveId
    maker: MemberId
    ts: int
    genesis: EventId
    asked: tuple[EventId, ...]
    decisions: tuple[Step, ...]
    superseded: tuple[Cut, ...]
    feeds: Mapping[MemberId, FeedProof]
    entries: Mapping[EventId, Shown]
    logs: Mapping[str, dict[str, Json] | None]  # "old" (None: no release before), "new"
    releases: tuple[Again, ...]
    descendants: tuple[Descendant, ...]
    signed: bytes
    signature: bytes


def encode(value: Mapping[str, Json], key: keys.SigningKey) -> bytes:
    """Sign the parts of a bundle with its maker's key and return the file.

    Raises:
        TooLarge, Malformed, BadBundle: it would not be read back.
    """
    signed = canon.encode(dict(value), max_bytes=MAX_FILE)
    signature = keys.sign(key, DOMAIN, bytes.fromhex(digest(signed)))
    data = canon.encode({**value, "signature": to_base64(signature)}, max_bytes=MAX_FILE)
    decode(data)
    return data


def decode(data: bytes) -> Bundle:
    """Read a file: limits first, then the shape; nothing is verified yet.

    Raises:
        TooLarge: over 8 MiB, over half a million lists and objects, or a part over its limit.
        Malformed, NotCanonical, BadBundle: not a bundle in its one spelling.
    """
    if len(data) > MAX_FILE:
        raise TooLarge(f"couldn't read bundle: {len(data)} bytes, the limit is {MAX_FILE}")
    if data.count(b"[") + data.count(b"{") > MAX_PARTS:
        raise TooLarge(f"couldn't read bundle: it has more than {MAX_PARTS} lists and objects")
    whole = canon.decode_object(data, max_bytes=MAX_FILE)
    _closed(whole, _KEYS, "bundle")
    if (whole["v"], whole["kind"]) != (VERSION, KIND) or whole["v"] is True:
        raise BadBundle(f"couldn't read bundle: not a {KIND} of version {VERSION}")
    if whole["statement"] != STATEMENT:
        raise BadBundle("couldn't read bundle: it does not say what forgetting is and is not")
    made = _closed(whole["made"], {"member", "ts"}, "made")
    feeds, shown = _object(whole["feeds"], "feeds"), _object(whole["entries"], "entries")
    return Bundle(
        collective=CollectiveId(as_hex(whole["collective"], "collective")),
        maker=MemberId(as_hex(made["member"], "maker")),
        ts=_int(made["ts"], "ts"),
        genesis=EventId(as_hex(whole["genesis"], "genesis")),
        asked=_events(whole["asked"], "asked", MAX_LIST, 1),
        decisions=tuple(_step(each) for each in _list(whole["decisions"], "decisions", MAX_LIST, 1)),
        superseded=tuple(_cut(each) for each in _list(whole["superseded"], "superseded", MAX_LIST)),
        feeds={MemberId(as_hex(m, "feed")): _feed(each) for m, each in feeds.items()},
        entries={EventId(as_hex(e, "entry")): _shown(each) for e, each in shown.items()},
        logs=_logs(whole["logs"]),
        releases=tuple(_again(each) for each in _list(whole["releases"], "releases", MAX_LIST)),
        descendants=tuple(_descendant(each) for each in _list(whole["descendants"], "descendants", MAX_ROWS)),
        signed=canon.encode({k: v for k, v in whole.items() if k != "signature"}, max_bytes=MAX_FILE),
        signature=from_base64(whole["signature"], 64, "signature"),
    )


def proof_json(proof: FeedProof) -> dict[str, Json]:
    """One feed as it stands in the file."""
    return {
        "note": proof.note.decode("utf-8"),
        "consistency": [each.hex() for each in proof.consistency],
        "old": None if proof.old is None else _edge_json(proof.old),
        "new": None if proof.new is None else _edge_json(proof.new),
    }


def shown_json(shown: Shown) -> dict[str, Json]:
    """One entry as it stands in the file."""
    body: Json = None if shown.body is None else [shown.body.salt.hex(), shown.body.data.decode("utf-8")]
    return {"line": shown.line.decode("utf-8"), "path": [each.hex() for each in shown.path], "body": body}


def _edge_json(edge: Edge) -> dict[str, Json]:
    return {"size": edge.size, "root": edge.root, "path": [each.hex() for each in edge.path]}


# -- reading -------------------------------------------------------------------------------------------------------------
def _object(value: Json, what: str) -> dict[str, Json]:
    if not isinstance(value, dict) or len(value) > MAX_ROWS:
        raise BadBundle(f"couldn't read bundle: {what} is an object of at most {MAX_ROWS}")
    return value


def _closed(value: Json, expected: set[str] | frozenset[str], what: str) -> dict[str, Json]:
    if not isinstance(value, dict) or value.keys() != expected:
        raise BadBundle(f"couldn't read bundle: {what} has not exactly its keys")
    return value


def _list(value: Json, what: str, most: int, least: int = 0) -> Sequence[Json]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise BadBundle(f"couldn't read bundle: {what} is a list of {least} to {most}")
    return value


def _int(value: Json, what: str, low: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MAX_INT:
        raise BadBundle(f"couldn't read bundle: {what} is an integer from {low}")
    return value


def _flag(value: Json, what: str) -> bool:
    if not isinstance(value, bool):
        raise BadBundle(f"couldn't read bundle: {what} is true or false")
    return value


def _text(value: Json, what: str, most: int) -> bytes:
    if not isinstance(value, str):
        raise BadBundle(f"couldn't read bundle: {what} is a text")
    data = value.encode("utf-8")
    if len(data) > most:
        raise TooLarge(f"couldn't read bundle: {what} has {len(data)} bytes, the limit is {most}")
    return data


def _maybe_hex(value: Json, what: str) -> Digest | None:
    return None if value is None else Digest(as_hex(value, what))


def _hashes(value: Json, what: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(as_hex(each, what)) for each in _list(value, what, MAX_PATH))


def _events(value: Json, what: str, most: int, least: int = 0) -> tuple[EventId, ...]:
    found = tuple(EventId(as_hex(each, what)) for each in _list(value, what, most, least))
    if any(a >= b for a, b in pairwise(found)):
        raise BadBundle(f"couldn't read bundle: {what} ascends, each once")
    return found


def _step(value: Json) -> Step:
    whole = _closed(value, {"proposal", "commits"}, "a decision")
    return Step(
        proposal=EventId(as_hex(whole["proposal"], "proposal")),
        commits=_events(whole["commits"], "commits", MAX_LIST, 1),
    )


def _cut(value: Json) -> Cut:
    found = parse(value)
    if not isinstance(found, Cut):
        raise BadBundle("couldn't read bundle: superseded has release cuts only")
    return found


def _edge(value: Json) -> Edge | None:
    if value is None:
        return None
    whole = _closed(value, {"size", "root", "path"}, "an end")
    return Edge(
        size=_int(whole["size"], "size", 1),
        root=Digest(as_hex(whole["root"], "root")),
        path=_hashes(whole["path"], "path"),
    )


def _feed(value: Json) -> FeedProof:
    whole = _closed(value, {"note", "consistency", "old", "new"}, "a feed")
    return FeedProof(
        note=_text(whole["note"], "note", MAX_NOTE),
        consistency=_hashes(whole["consistency"], "consistency"),
        old=_edge(whole["old"]),
        new=_edge(whole["new"]),
    )


def _shown(value: Json) -> Shown:
    whole = _closed(value, {"line", "path", "body"}, "an entry")
    body = None
    if whole["body"] is not None:
        salt, data = _list(whole["body"], "body", 2, 2)
        if not (isinstance(salt, str) and len(salt) == 2 * SALT_BYTES and salt == salt.lower()):
            raise BadBundle("couldn't read bundle: a salt has 32 hex digits")
        try:
            body = Body(salt=bytes.fromhex(salt), data=_text(data, "body", MAX_BODY))
        except ValueError:
            raise BadBundle("couldn't read bundle: a salt has 32 hex digits") from None
    return Shown(line=_text(whole["line"], "line", MAX_LINE), path=_hashes(whole["path"], "path"), body=body)


def _logs(value: Json) -> dict[str, dict[str, Json] | None]:
    whole = _closed(value, {"old", "new"}, "logs")
    return {
        "old": None if whole["old"] is None else _object(whole["old"], "old log"),
        "new": _object(whole["new"], "new log"),
    }


def _again(value: Json) -> Again:
    whole = _closed(value, {"number", "release", "model", "without", "twice"}, "a release")
    return Again(
        number=_int(whole["number"], "number", 1),
        release=Digest(as_hex(whole["release"], "release")),
        model=Digest(as_hex(whole["model"], "model")),
        without=_maybe_hex(whole["without"], "without"),
        twice=_flag(whole["twice"], "twice"),
    )


def _descendant(value: Json) -> Descendant:
    whole = _closed(value, {"event", "member", "number", "view", "certainty", "why", "through"}, "a descendant")
    said = (whole["certainty"], whole["why"])
    if not all(isinstance(each, str) for each in said) or said[0] not in CERTAINTIES or said[1] not in REASONS:
        raise BadBundle("couldn't read bundle: a descendant is neither certain nor doubtful")
    return Descendant(
        event=EventId(as_hex(whole["event"], "event")),
        member=MemberId(as_hex(whole["member"], "member")),
        number=_int(whole["number"], "number", 1),
        view=_maybe_hex(whole["view"], "view"),
        certainty=str(whole["certainty"]),
        why=str(whole["why"]),
        through=_events(whole["through"], "through", MAX_ROWS, 1),
    )
