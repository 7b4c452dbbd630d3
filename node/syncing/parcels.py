"""Bundles as files: writes and reads the items of `protocol.parcel`, in the open or sealed, a chunk at a time.

Knows no store and no members, only how bytes follow each other. Invariants: no length of a file is believed before it was
compared with a limit, nothing is held but one item or one chunk, and a file that ends early is told from one that is whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from node.errors_network import BundleCut, BundleError, NotForUs
from protocol import envelope, frames, parcel
from protocol.errors import Malformed
from protocol.ids import Digest
from protocol.keys import SigningKey, member_id
from protocol.parcel import Blob, End, Header, Item

READ: Final = 256 * 1024


class Writer:
    """Appends items to a file; what is written becomes a bundle with `end`."""

    def __init__(self, file: BinaryIO, header: Header, key: bytes | None = None) -> None:
        """Write the header; `key` is the one that the header has for its readers, None for a bundle in the open."""
        self._file, self._hash, self._waiting = file, hashlib.sha256(), bytearray()
        self._sealer: envelope.Sealer | None = None
        data = header.to_bytes()
        file.write(parcel.MAGIC + frames.frame(data))
        if key is not None:
            self._sealer = envelope.Sealer(key, hashlib.sha256(data).digest())
            file.write(self._sealer.start)

    def item(self, item: Item) -> None:
        """Append a page."""
        self._put(frames.frame(item.to_bytes()))

    def blob(self, blob: Blob, chunks: Iterable[bytes]) -> None:
        """Append a blob.

        Raises:
            BundleError: the chunks are not its bytes; the file is of no use then.
        """
        self.item(blob)
        found, left = hashlib.sha256(), blob.size
        for chunk in chunks:
            found.update(chunk)
            left -= len(chunk)
            self._put(chunk)
        if left or found.hexdigest() != blob.digest:
            raise BundleError(
                f"couldn't write bundle: blob {blob.digest[:12]} is damaged on this disk", hint="fishernet audit"
            )

    def end(self) -> None:
        """Say that the bundle is whole."""
        self.item(End(digest=Digest(self._hash.hexdigest())))
        if self._sealer is not None:
            self._file.write(frames.frame(self._sealer.seal(bytes(self._waiting), last=True)))

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        if self._sealer is None:
            self._file.write(data)
            return
        self._waiting += data
        while len(self._waiting) > envelope.CHUNK:  # never the last bytes: those are sealed as the end
            self._file.write(frames.frame(self._sealer.seal(bytes(self._waiting[: envelope.CHUNK]))))
            del self._waiting[: envelope.CHUNK]


class Reader:
    """Reads a bundle's items in order."""

    def __init__(self, file: BinaryIO, key: SigningKey | None = None) -> None:
        """Read the header; with `key` a sealed bundle is opened, without one only its header can be looked at.

        Raises:
            BundleError: no bundle, or one that ends early.
            Refused: a header that is not right.
            NotForUs: it is sealed, and not for this key.
        """
        self._file, self._hash = file, hashlib.sha256()
        self._opener: envelope.Opener | None = None
        self._open, self._last, self._left = b"", False, 0  # opened bytes not taken yet; the last chunk was; of a blob
        self.at = 0  # bytes of the file that were read
        if self._raw(len(parcel.MAGIC), "magic") != parcel.MAGIC:
            raise BundleError("couldn't read bundle: the file is not one of this version's")
        data = self._raw(frames.frame_length(self._raw(frames.HEADER, "header"), parcel.MAX_HEADER), "header")
        self.header = parcel.parse_header(data)
        self.readable = not self.header.sealed
        if self.header.sealed and key is not None:
            mine = self.header.readers.get(member_id(key))
            if mine is None:
                raise NotForUs(
                    "couldn't read bundle: it is sealed for other members", hint="fishernet bundle show FILE"
                )
            start = self._raw(envelope.START, "sealed part")
            self._opener = envelope.Opener(envelope.open_key(mine, key), start, hashlib.sha256(data).digest())
            self.readable = True

    def items(self) -> Iterator[Item]:
        """Every item but the last; of a blob's raw bytes (`chunks`) what nobody read is passed over.

        Raises:
            BundleCut: the file ends early; what came before is right as far as it proves itself.
            Refused: bytes that are no items, or another digest at the end.
        """
        if not self.readable:
            raise NotForUs("couldn't read bundle: it is sealed, and no key was given")
        while True:
            so_far = self._hash.hexdigest()
            item = parcel.parse_item(self._take(frames.frame_length(self._take(frames.HEADER), parcel.MAX_ITEM)))
            if isinstance(item, End):
                return self._finish(item, so_far)
            self._left = item.size if isinstance(item, Blob) else 0
            yield item
            for _ in self.chunks():
                pass

    def chunks(self) -> Iterator[bytes]:
        """What is left of the raw bytes of the blob that `items` gave last."""
        while self._left > 0:
            data = self._take(min(self._left, READ))
            self._left -= len(data)
            yield data

    def _finish(self, end: End, so_far: str) -> None:
        if end.digest != so_far:
            raise Malformed("couldn't read bundle: it was changed on its way, its digest is another one")
        sealed_on = self._opener is not None and (self._open or not self._last)
        if sealed_on or self._file.read(1):
            raise Malformed("couldn't read bundle: bytes follow its end")

    def _take(self, size: int) -> bytes:
        """Exactly `size` bytes of the body."""
        if self._opener is None:
            data = self._raw(size, "body")
        else:
            parts, have = [self._open], len(self._open)
            while have < size:
                parts.append(self._chunk())
                have += len(parts[-1])
            whole = b"".join(parts)
            data, self._open = whole[:size], whole[size:]
        self._hash.update(data)
        return data

    def _chunk(self) -> bytes:
        if self._last or self._opener is None:
            raise BundleCut("couldn't read bundle: it ends early", hint="copy the file again, or import what came")
        most = envelope.CHUNK + envelope.OVERHEAD
        chunk, self._last = self._opener.open(
            self._raw(frames.frame_length(self._raw(frames.HEADER, "chunk"), most), "chunk")
        )
        return chunk

    def _raw(self, size: int, what: str) -> bytes:
        data = self._file.read(size)
        self.at += len(data)
        if len(data) < size:
            raise BundleCut(
                f"couldn't read bundle: the file ends in its {what}, after {self.at} bytes",
                hint="copy it again and import it again: what was taken is kept and passed over",
            )
        return data
