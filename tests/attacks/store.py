"""A: what can be done to the file. C, D: entries that no honest program would write, put into the file by hand."""

from __future__ import annotations

import base64
import json

from paper import key

from protocol import canon, keys
from tests.attacks.case import Held, Place, long, tampering

TREE = "node-mismatch root-mismatch bad-chain"
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the prime-order subgroup (RFC 8032)
AT = 5


@tampering(1, "a line is changed", "bad-signature", also=TREE)
def _(held: Held) -> Place:
    line = held.line("ada", AT).replace(b'"ts":1', b'"ts":2')
    held.tamper(held.put(line, "ada", AT))
    return held.place("ada", AT)


@tampering(1, "a body is changed", "bad-commitment")
def _(held: Held) -> Place:
    held.tamper(f"UPDATE entries SET data = CAST('{{}}' AS BLOB) WHERE feed = {held.feed('bob')} AND seq = {AT}")  # noqa: S608
    return held.place("bob", AT)


@tampering(2, "an entry is deleted in the middle", "gap", also=f"{TREE} wrong-place tail-missing")
def _(held: Held) -> Place:
    held.tamper(f"DELETE FROM entries WHERE feed = {held.feed('cyd')} AND seq = {AT}")  # noqa: S608
    return held.place("cyd", AT)


@tampering(4, "a leaf hash is changed behind triggers that were taken away and put back", "leaf-mismatch", also=TREE)
def _(held: Held) -> Place:
    held.tamper(f"UPDATE entries SET leaf = zeroblob(32) WHERE feed = {held.feed('ada')} AND seq = {AT}")  # noqa: S608
    return held.place("ada", AT)


@tampering(
    5, "a byte of the file is changed so that SQLite calls it sound", "bad-signature", also=f"{TREE} leaf-mismatch"
)
def _(held: Held) -> Place:
    held.tamper("PRAGMA wal_checkpoint(TRUNCATE)")
    line, raw = held.line("ada", AT), held.path.read_bytes()
    assert raw.count(line) == 1
    held.path.write_bytes(raw.replace(line, line.replace(b'"ts":1', b'"ts":2')))
    return held.place("ada", AT)


@tampering(6, "two entries change places", "wrong-place", also=f"{TREE} bad-commitment")
def _(held: Held) -> Place:
    held.tamper(held.put(held.line("bob", AT + 1), "bob", AT), held.put(held.line("bob", AT), "bob", AT + 1))
    return held.place("bob", AT)


@tampering(7, "an entry stands twice", "wrong-place", also=f"{TREE} bad-commitment")
def _(held: Held) -> Place:
    held.tamper(held.put(held.line("bob", AT - 1), "bob", AT))
    return held.place("bob", AT)


@tampering(8, "a node of the stored tree is changed", "node-mismatch", world=long)
def _(held: Held) -> Place:
    # Node 1 of level 1: hash 65 of the first tile.
    changed = "CAST(substr(hashes, 1, 65 * 32) || zeroblob(32) || substr(hashes, 66 * 32 + 1) AS BLOB)"
    held.tamper(f"UPDATE tiles SET hashes = {changed} WHERE feed = {held.feed('ada')} AND number = 0")  # noqa: S608
    return held.place("ada", 3)


@tampering(8, "a high node of the stored tree is changed", "node-mismatch", world=long)
def _(held: Held) -> Place:
    held.tamper(f"UPDATE nodes SET hash = zeroblob(32) WHERE feed = {held.feed('ada')} AND level = 6 AND idx = 0")  # noqa: S608
    return held.place("ada", 63)


@tampering(13, "the tail is gone and a head remembers it", "tail-missing", also="node-mismatch")
def _(held: Held) -> Place:
    feed, size = held.feed("cyd"), len(held.world.feeds["cyd"])
    held.tamper(
        f"DELETE FROM entries WHERE feed = {feed} AND seq >= {size - 2}",  # noqa: S608
    )
    return held.place("cyd", size - 2)


@tampering(31, "an entry stands in another member's feed", "wrong-feed", also=f"{TREE} bad-commitment")
def _(held: Held) -> Place:
    held.tamper(held.put(held.line("ada", AT), "bob", AT))
    return held.place("bob", AT)


# -- C: signatures ---------------------------------------------------------------------------------------------------------
def _signed_otherwise(held: Held, signature: bytes) -> Place:
    line = json.loads(held.line("ada", AT))
    line["s"] = base64.b64encode(signature).decode()
    held.tamper(held.put(canon.encode(line), "ada", AT))
    return held.place("ada", AT)


@tampering(26, "a signature with S + L", "bad-signature", also=TREE)
def _(held: Held) -> Place:
    good = held.world.feeds["ada"][AT].entry.signature
    return _signed_otherwise(held, good[:32] + (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little"))


@tampering(28, "a signature whose R is not canonical", "bad-signature", also=TREE)
def _(held: Held) -> Place:
    good = held.world.feeds["ada"][AT].entry.signature
    return _signed_otherwise(held, (2**255 - 18).to_bytes(32, "little") + good[32:])


@tampering(29, "a signature of the identity point", "bad-signature", also=TREE)
def _(held: Held) -> Place:
    return _signed_otherwise(held, b"\x01" + bytes(63))


@tampering(30, "a signature made for another purpose", "bad-signature", also=TREE)
def _(held: Held) -> Place:
    header = canon.encode(json.loads(held.line("ada", AT))["e"])
    return _signed_otherwise(held, keys.sign(key("ada"), "keys-bound", header))


# -- D: encodings, each signed by the author over exactly these bytes ------------------------------------------------------
def _spelled(held: Held, change: object) -> Place:
    """The author spells its header otherwise and signs that; `change` gives the bytes."""
    assert callable(change)
    header = canon.encode(json.loads(held.line("ada", AT))["e"], max_bytes=1 << 20)
    signed: bytes = change(header)
    mark = base64.b64encode(keys.sign(key("ada"), "entry", signed))
    held.tamper(held.put(b'{"e":' + signed + b',"s":"' + mark + b'"}', "ada", AT))
    return held.place("ada", AT)


SPELLINGS = {
    (37, "a key stands twice", "malformed"): lambda h: h.replace(b'"v":1', b'"v":1,"v":1'),
    (38, "keys in another order", "not-canonical"): lambda h: b'{"v":1,' + h[1:].replace(b',"v":1', b""),
    (38, "a space", "not-canonical"): lambda h: h.replace(b'"v":1', b'"v": 1'),
    (39, "a float", "malformed"): lambda h: h.replace(b'"v":1', b'"v":1.0'),
    (39, "an exponent", "malformed"): lambda h: h.replace(b'"v":1', b'"v":1e0'),
    (39, "minus zero", "not-canonical"): lambda h: h.replace(b'"seq":5', b'"seq":-0'),
    (39, "an integer over 2^53", "malformed"): lambda h: h.replace(b'"v":1', b'"v":9007199254740993'),
    (39, "not a number", "malformed"): lambda h: h.replace(b'"v":1', b'"v":NaN'),
    (40, "text that is not normalised", "malformed"): lambda h: h.replace(b'"type":"', '"type":"e\u0301'.encode()),
    (40, "a key with a zero-width character", "malformed"): lambda h: h.replace(b'"v":1', '"v":1,"v\u200b":1'.encode()),
    (41, "a lone surrogate", "malformed"): lambda h: h.replace(b'"type":"', b'"type":"\\ud800'),
    (41, "overlong UTF-8", "malformed"): lambda h: h.replace(b'"type":"', b'"type":"\xc0\xaf'),
    (41, "a byte order mark", "malformed"): lambda h: b"\xef\xbb\xbf" + h,
    (42, "nested too deeply", "too-large"): lambda h: h.replace(b'"v":1', b'"v":' + b"[" * 4000 + b"]" * 4000),
    (42, "an integer of 5,000 digits", "malformed"): lambda h: h.replace(b'"v":1', b'"v":' + b"9" * 5000),
    (42, "33 KiB", "too-large"): lambda h: h.replace(b'"type":"', b'"type":"' + b"a" * 33 * 1024),
    (42, "65,536 bytes", "too-large"): lambda h: h + b" " * (65_536 - len(h)),
    (45, "a version that nobody knows", "malformed"): lambda h: h.replace(b'"v":1', b'"v":2'),
}  # fmt: skip

for (_number, _name, _code), _change in SPELLINGS.items():

    def _spelling(held: Held, change: object = _change) -> Place:
        return _spelled(held, change)

    tampering(_number, _name, _code, also=TREE)(_spelling)


@tampering(43, "a leaf that is an inner node", "malformed", also=TREE)
def _(held: Held) -> Place:
    left, right = (bytes.fromhex(held.world.feeds["ada"][n].entry.leaf) for n in (AT - 1, AT))
    held.tamper(held.put(b"\x01" + left + right, "ada", AT))
    return held.place("ada", AT)
