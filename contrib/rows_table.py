"""How rows lie in the tables of `rows.db`: plain, or sealed with the node's data key; who reads what is `contrib.rows`.

In a sealed store salt, content, tags and labels are sealed to their place; digests, split keys and subjects are blinded, so
that a stolen file confirms no guess. Numbers, names of data sets and the part of a row stay readable. A subject is
blinded in a plain store too. Invariant: a store is sealed as a whole or plain as a whole; a wrong key is found at opening.
"""

from __future__ import annotations

import hmac
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Self, TypeAlias

from sqlite_utils import Database

from contrib import splitting
from contrib.errors import RowsSealed
from contrib.row import Row
from contrib.rows_file import transaction
from contrib.sealing import KEY_BYTES, NONCE_BYTES, Blinder, Sealer, row_place
from protocol.ids import Digest

Entropy: TypeAlias = Callable[[int], bytes]
Record: TypeAlias = dict[str, "str | bytes | int | None"]

CHUNK: Final = 500

_CHECK: Final = "sealed"  # fact: proves the data key without telling it
_BLIND: Final = "blind"  # fact: what subjects are blinded with


class RowTable:
    """The rows of one open database; `sealer` is None in a plain store and in a sealed one whose key is not here."""

    def __init__(self, db: Database, entropy: Entropy, sealer: Sealer | None, *, sealed: bool) -> None:
        """Wrap an open database; `open` is the way in."""
        self._db = db
        self._entropy = entropy
        self._sealer = sealer
        self._known: Blinder | None = None
        self.sealed = sealed

    @classmethod
    def open(cls, db: Database, entropy: Entropy, key: bytes | None, *, read_only: bool) -> Self:
        """Take the tables with the data key, if any; a store without rows becomes sealed when a key is given.

        Raises:
            RowsSealed: the key is not the one that sealed this store.
        """
        sealer = None if key is None else Sealer.of(key)
        fresh = fact(db, _BLIND) is None or (sealer and fact(db, _CHECK) is None and _is_empty(db))
        if fresh and not read_only:
            with transaction(db.conn):
                _settle(db, entropy, sealer)
        check = fact(db, _CHECK)
        if check is None:
            return cls(db, entropy, None, sealed=False)
        if sealer and not hmac.compare_digest(proof_of(sealer), check):
            raise RowsSealed(
                "couldn't open rows: they were sealed with another key; restore keys/rows.key from your copy"
            )
        return cls(db, entropy, sealer, sealed=True)

    def records(self, dataset: str, rows: Iterable[tuple[Row, splitting.Part]], now_ms: int) -> Iterator[Record]:
        """The records of `rows`, with the ids that they get (call inside the transaction that inserts them)."""
        found = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rows'").fetchone()
        for number, (row, part) in enumerate(rows, (found[0] if found else 0) + 1):
            salt = self._entropy(splitting.SALT_BYTES)
            subject = None if row.subject is None else self.subject(row.subject)
            yield {
                "id": number,
                "dataset": dataset,
                "part": part,
                "digest": self.digest(row.digest()),
                "split_key": self.digest(row.split_key()),
                **self._closed(dataset, number, salt, row.canonical(), json.dumps(row.tags).encode()),
                "subject": subject,
                "filing": self._filing(row.tags, subject),
                "added_ms": now_ms,
            }

    def digest(self, digest: Digest) -> str:
        """How a content digest or split key is stored."""
        return self._need().blinder.name("digest", bytes.fromhex(digest)) if self.sealed else digest

    def subject(self, subject: str) -> str:
        """How a subject is stored: never in clear, blanks around it ignored."""
        return self._blinder().name("subject", unicodedata.normalize("NFC", subject).strip().encode())

    def contents(self, dataset: str, ids: Sequence[int]) -> Iterator[tuple[bytes, bytes]]:
        """Salt and canonical bytes of each row, in the order of `ids`."""
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            query = "SELECT id, salt, content FROM rows WHERE id IN (SELECT value FROM json_each(?))"
            found = {row[0]: row[1:] for row in self._db.execute(query, [json.dumps(chunk)])}
            for number in chunk:
                salt, content = found[number]
                yield self._opened(dataset, number, content) if self.sealed else (salt, content)

    def ids(self, dataset: str, part: splitting.Part) -> list[int]:
        """Ids of the rows of one part in order of arrival."""
        query = "SELECT id FROM rows WHERE dataset = ? AND part = ? ORDER BY id"
        return [row[0] for row in self._db.execute(query, [dataset, part])]

    def tagged(self, dataset: str, part: splitting.Part) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Ids of the rows of one part in order of arrival, with their tags."""
        query = "SELECT id, tags FROM rows WHERE dataset = ? AND part = ? ORDER BY id"
        for number, tags in self._db.execute(query, [dataset, part]):
            yield number, tuple(json.loads(self._text(row_place(dataset, number, "tags"), tags)))

    def labels(self, dataset: str, stored: bytes | None) -> tuple[str, ...] | None:
        """The labels of a data set; None without any, or when the key is not here."""
        if stored is None or (self.sealed and self._sealer is None):
            return None
        return tuple(json.loads(self._text(row_place(dataset, 0, "labels"), stored)))

    def stored_labels(self, dataset: str, labels: tuple[str, ...] | None) -> bytes | None:
        """How labels are stored."""
        return None if labels is None else self._sealed(row_place(dataset, 0, "labels"), json.dumps(labels).encode())

    def seal(self, key: bytes) -> RowTable:
        """Seal every row and label of a plain store, in the caller's transaction; the plain bytes are still on the disk.

        Returns the table to go on with once the transaction is over.
        """
        secret = fact(self._db, _BLIND) or self._entropy(KEY_BYTES)
        labels = dict(self._db.execute("SELECT name, labels FROM datasets WHERE labels IS NOT NULL"))
        sealer = Sealer.of(key)
        made = RowTable(self._db, self._entropy, sealer, sealed=True)
        _keep(self._db, _CHECK, proof_of(sealer))
        _keep(self._db, _BLIND, made._sealed(_BLIND, secret))
        for name, stored in labels.items():
            self._db.table("datasets").update(name, {"labels": made._sealed(row_place(name, 0, "labels"), stored)})
        ids = [row[0] for row in self._db.execute("SELECT id FROM rows")]
        columns = "id, dataset, digest, split_key, salt, content, tags"
        query = f"SELECT {columns} FROM rows WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608 - fixed names
        change = (
            "UPDATE rows SET digest = :digest, split_key = :split_key, salt = :salt, content = :content, tags = :tags"
            " WHERE id = :id"
        )
        for start in range(0, len(ids), CHUNK):
            found = self._db.execute(query, [json.dumps(ids[start : start + CHUNK])]).fetchall()
            self._db.conn.executemany(
                change,
                [
                    {
                        "id": number,
                        "digest": made.digest(Digest(digest)),
                        "split_key": made.digest(Digest(split_key)),
                        **made._closed(dataset, number, salt, content, tags),
                    }
                    for number, dataset, digest, split_key, salt, content, tags in found
                ],
            )
        return made

    def _need(self) -> Sealer:
        if self._sealer is None:
            raise RowsSealed("couldn't read rows: they are sealed and the key is not open; give the node's passphrase")
        return self._sealer

    def _blinder(self) -> Blinder:
        """What subjects and filings are blinded with."""
        if self._known is None:
            stored = fact(self._db, _BLIND)  # there is one in every store that a writer has opened
            self._known = Blinder(self._entropy(KEY_BYTES) if stored is None else self._text(_BLIND, stored))
        return self._known

    def _filing(self, tags: tuple[str, ...], subject: str | None) -> str:
        """One content may be filed several times, under other tags or subjects; "" for neither."""
        if not tags and subject is None:
            return ""
        return self._blinder().name("filing", json.dumps([tags, subject]).encode())

    def _closed(self, dataset: str, number: int, salt: bytes, content: bytes, tags: bytes) -> Record:
        if not self.sealed:
            return {"salt": salt, "content": content, "tags": tags}
        both = self._sealed(row_place(dataset, number, "content"), salt + content)
        return {"salt": b"", "content": both, "tags": self._sealed(row_place(dataset, number, "tags"), tags)}

    def _opened(self, dataset: str, number: int, content: bytes) -> tuple[bytes, bytes]:
        both = self._text(row_place(dataset, number, "content"), content)
        return both[: splitting.SALT_BYTES], both[splitting.SALT_BYTES :]

    def _sealed(self, place: str, data: bytes) -> bytes:
        return self._need().seal(place, data, self._entropy(NONCE_BYTES)) if self.sealed else data

    def _text(self, place: str, stored: bytes) -> bytes:
        return self._need().open(place, stored) if self.sealed else stored


def proof_of(sealer: Sealer) -> bytes:
    """What a store keeps to recognise its data key."""
    return bytes.fromhex(sealer.blinder.name("check", b""))


def _settle(db: Database, entropy: Entropy, sealer: Sealer | None) -> None:
    """Draw what subjects are blinded with, and seal a store that is still empty when there is a key."""
    sealed = fact(db, _CHECK) is not None
    if sealer and not sealed and _is_empty(db):
        _keep(db, _CHECK, proof_of(sealer))
        _keep(db, _BLIND, sealer.seal(_BLIND, entropy(KEY_BYTES), entropy(NONCE_BYTES)))
    elif not sealed and fact(db, _BLIND) is None:
        _keep(db, _BLIND, entropy(KEY_BYTES))


def fact(db: Database, name: str) -> bytes | None:
    """A fact about the store."""
    found = db.execute("SELECT value FROM facts WHERE name = ?", [name]).fetchone()
    return found[0] if found else None


def _keep(db: Database, name: str, value: bytes) -> None:
    db.table("facts").insert({"name": name, "value": value}, replace=True)


def _is_empty(db: Database) -> bool:
    return db.execute("SELECT 1 FROM datasets LIMIT 1").fetchone() is None
