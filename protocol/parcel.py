"""The bytes of a bundle: feeds and blobs of one collective in a file, for those who have no link (FORMAT.md, "Bundle").

    magic || frame(header) || body
    body: items, each frame(kind || payload); a blob's raw bytes follow its frame; the last item is the digest of all before
The header is canonical JSON, signed by whoever made the bundle. A sealed bundle has the same body inside a stream that only
the keys named in the header open (`protocol.envelope`). Nothing is compressed and nothing is named by a path: what is read is
never longer than what stands in the file. Knows no file, store or members.
Law: `parse_header(h.to_bytes()) == h`, `parse_item(i.to_bytes()) == i`, and a parser raises nothing but `Refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from protocol import keys, wire
from protocol.canon import MAX_INT, Json, decode_object, encode
from protocol.errors import Malformed, TooLarge
from protocol.ids import CollectiveId, Digest, MemberId, as_hex
from protocol.keys import SigningKey
from protocol.text import from_base64, to_base64

MAGIC: Final = b"fishernet-bundle/1\n"
DOMAIN: Final = "feed-bundle"
SUFFIX: Final = ".bundle"
MAX_FEEDS: Final = 1024
MAX_READERS: Final = 64
MAX_HEADER: Final = 512 * 1024
KEY_BYTES: Final = 32
SEALED_KEY_BYTES: Final = KEY_BYTES + 48  # a libsodium sealed box
_ID: Final = 32
_PAGE, _BLOB, _END = b"p", b"b", b"e"
MAX_ITEM: Final = 1 + _ID + wire.MAX_PAGE + 64
_FIELDS: Final = frozenset({"v", "kind", "collective", "maker", "made", "since", "heads", "readers", "signature"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a bundle says of itself, in the open even when the rest is sealed.

    `since` and `heads` are where each feed begins and ends in it (entries; a feed that begins at 0 is not in `since`), `made` is
    the maker's clock in ms, `readers` the sealed key of the body for each reader: empty for a bundle that anybody can read.
    """

    collective: CollectiveId
    maker: MemberId
    made: int
    since: Mapping[MemberId, int]
    heads: Mapping[MemberId, int]
    readers: Mapping[MemberId, bytes] = field(default_factory=dict)
    signature: bytes = b""

    @property
    def sealed(self) -> bool:
        """Whether the body can be read by the named readers only."""
        return bool(self.readers)

    def unsigned(self) -> dict[str, Json]:
        """Everything but the signature."""
        return {
            "v": 1,
            "kind": DOMAIN,
            "collective": self.collective,
            "maker": self.maker,
            "made": self.made,
            "since": {member: size for member, size in self.since.items()},
            "heads": {member: size for member, size in self.heads.items()},
            "readers": {reader: to_base64(key) for reader, key in self.readers.items()},
        }

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return encode({**self.unsigned(), "signature": to_base64(self.signature)}, max_bytes=MAX_HEADER)


def signed(key: SigningKey, **fields: object) -> Header:
    """A header signed by its maker; `fields` as in `Header`, but for `maker` and `signature`."""
    bare = Header(maker=keys.member_id(key), **fields)  # type: ignore[arg-type]
    signature = keys.sign(key, DOMAIN, encode(bare.unsigned(), max_bytes=MAX_HEADER))
    return Header(maker=bare.maker, signature=signature, **fields)  # type: ignore[arg-type]


def parse_header(data: bytes) -> Header:
    """Read a header and verify its maker's signature.

    Raises:
        Refused: malformed, over a limit, or not signed by the maker it names.
    """
    value = decode_object(data, max_bytes=MAX_HEADER)
    if value.keys() != _FIELDS or value["v"] != 1 or value["v"] is True or value["kind"] != DOMAIN:
        raise Malformed("couldn't read bundle: the fields are not those of a bundle's header")
    sealed = _table(value["readers"], MAX_READERS, "readers")
    header = Header(
        collective=CollectiveId(as_hex(value["collective"], "collective")),
        maker=MemberId(as_hex(value["maker"], "maker")),
        made=_count(value["made"]),
        since={m: _count(n) for m, n in _table(value["since"], MAX_FEEDS, "feeds").items()},
        heads={m: _count(n) for m, n in _table(value["heads"], MAX_FEEDS, "feeds").items()},
        readers={m: from_base64(key, SEALED_KEY_BYTES, "sealed key") for m, key in sealed.items()},
        signature=from_base64(value["signature"], 64, "signature"),
    )
    keys.verify(header.maker, DOMAIN, encode(header.unsigned(), max_bytes=MAX_HEADER), header.signature)
    return header


def _table(value: Json, most: int, what: str) -> dict[MemberId, Json]:
    if not isinstance(value, dict) or len(value) > most:
        raise Malformed(f"couldn't read bundle: a table of at most {most} {what} is expected")
    return {MemberId(as_hex(name, "member")): content for name, content in value.items()}


def _count(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_INT:
        raise Malformed("couldn't read bundle: a count from 0 on is expected")
    return value


# -- items -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some entries of one feed under its newest note: the answer of the feed protocol, with the name of the feed."""

    member: MemberId
    page: wire.FeedPage

    def to_bytes(self) -> bytes:
        """Kind and payload of its frame."""
        return _PAGE + bytes.fromhex(self.member) + self.page.to_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """`size` raw bytes follow, whose SHA-256 is `digest`."""

    digest: Digest
    size: int

    def to_bytes(self) -> bytes:
        """Kind and payload of its frame; not the raw bytes."""
        return _BLOB + bytes.fromhex(self.digest) + wire.blob_size(self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The bundle is whole: the SHA-256 of all bytes of the body before this item."""

    digest: Digest

    def to_bytes(self) -> bytes:
        """Kind and payload of its frame."""
        return _END + bytes.fromhex(self.digest)


Item: TypeAlias = Page | Blob | End


def parse_item(data: bytes) -> Item:
    """Read what stands in an item's frame; records and notes are not verified yet.

    Raises:
        Refused: malformed, or over a limit.
    """
    if len(data) > MAX_ITEM:
        raise TooLarge(f"couldn't read bundle: an item of {len(data)} bytes, the limit is {MAX_ITEM}")
    kind, name, rest = data[:1], data[1 : 1 + _ID].hex(), data[1 + _ID :]
    if len(name) != 2 * _ID:
        raise Malformed("couldn't read bundle: an item is too short")
    if kind == _PAGE:
        return Page(member=MemberId(name), page=wire.parse_page(rest))
    if kind == _BLOB:
        return Blob(digest=Digest(name), size=wire.parse_blob_size(rest))
    if kind == _END and not rest:
        return End(digest=Digest(name))
    raise Malformed("couldn't read bundle: an item of no known kind")
