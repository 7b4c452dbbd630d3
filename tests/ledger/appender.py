"""Appends to a ledger until it is killed, and prints each acknowledged sequence number: `python FILE DB [MAX_FILE_BYTES]`.

Single appends and batches by turns; a batch is acknowledged by its last number. With MAX_FILE_BYTES no file may grow beyond.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from ledger.store import Draft, Store
from protocol.errors import FishernetError
from protocol.ids import CollectiveId
from protocol.keys import SigningKey


def main() -> None:
    key, collective = SigningKey(b"\x01" * 32), CollectiveId("cc" * 32)
    with Store.open(Path(sys.argv[1])) as store:
        if len(sys.argv) > 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        while True:
            last = int.from_bytes(store.get_state("count") or b"", "big")
            number = 1 + last % 4
            drafts = [
                Draft(type="test.event", body={"number": n, "padding": "x" * (n % 7) * 500}, salt=os.urandom(16))
                for n in range(last, last + number)
            ]
            count = {"count": (last + number).to_bytes(8, "big")}
            records = store.append_all(key, collective, drafts, now_ms=last, state=count)
            print(records[-1].entry.header.seq, flush=True)


if __name__ == "__main__":
    try:
        main()
    except FishernetError as e:
        print(f"{e.code}: {e}", file=sys.stderr)
        sys.exit(3)
