"""Appends to a ledger until it is killed, and prints each acknowledged sequence number: `python FILE DB [MAX_FILE_BYTES]`.

Single appends and batches by turns; a batch is acknowledged by its last number. With MAX_FILE_BYTES no file may grow beyond.
`python FILE DB nursery` forks such a process for each line of its input, prints its process id first and `end` after its
death: starting an interpreter for each costs ten times as much as what is tried.
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


def nursery() -> None:
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.argv = sys.argv[:2]
            print(os.getpid(), flush=True)
            return main()
        os.waitpid(child, 0)
        print("end", flush=True)
    return None


if __name__ == "__main__":
    try:
        nursery() if sys.argv[2:] == ["nursery"] else main()
    except FishernetError as e:
        print(f"{e.code}: {e}", file=sys.stderr)
        sys.exit(3)
