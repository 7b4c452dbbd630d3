"""Appends to a ledger until it is killed, and prints each sequence number after `append` returned: `python FILE DB`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ledger.store import Store
from protocol.ids import CollectiveId
from protocol.keys import SigningKey


def main() -> None:
    key, collective = SigningKey(b"\x01" * 32), CollectiveId("cc" * 32)
    with Store.open(Path(sys.argv[1])) as store:
        while True:
            last = int.from_bytes(store.get_state("count") or b"", "big")
            count = {"count": (last + 1).to_bytes(8, "big")}
            body = {"number": last, "padding": "x" * (last % 7) * 500}
            record = store.append(key, collective, "test.event", body, now_ms=last, salt=os.urandom(16), state=count)
            print(record.entry.header.seq, flush=True)


if __name__ == "__main__":
    main()
