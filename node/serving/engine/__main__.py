"""The engine process: `python -m node.serving.engine` answers the jobs of `node.serving.engine.inbox` on its standard input.

A thread reads the jobs, two read adapters, the main thread computes. Knows no names of models and no ledger. Invariant: it
ends when its input ends, and writes no file of the node's.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time


def main() -> None:
    """Run until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m node.serving.engine", description="The engine process of a node.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of one forward pass")
    parser.add_argument("--rows", type=int, default=16, help="answers written at the same time")
    parser.add_argument("--max-active", type=int, default=128, help="adapters that a step may use")
    parser.add_argument("--cycle", type=float, default=2.0, help="seconds after which an adapter gives way to others")
    parser.add_argument("--queue", type=int, default=512, help="answers that may wait")
    parser.add_argument("--ram", type=int, default=1024, help="MiB of adapters in memory")
    parser.add_argument("--context", type=int, help="read no more tokens than this, though the model could")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the weights; else by the device")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the time of those that work
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not write between our lines

    import torch

    from node.serving.engine.inbox import Inbox, Output
    from node.serving.engine.loop import Engine, Settings
    from node.serving.engine.scheduler import Limits

    torch.set_num_threads(arguments.threads)
    settings = Settings(
        rows=arguments.rows,
        limits=Limits(max_active=arguments.max_active, cycle=arguments.cycle, queue=arguments.queue),
        ram=arguments.ram << 20,
        context=arguments.context,
        dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
    )
    output = Output(lines)
    engine = Engine(output.reports(), settings, output.flush, time.monotonic)
    inbox = Inbox(engine, output)
    threading.Thread(target=inbox.read, args=(sys.stdin.buffer,), daemon=True, name="jobs").start()
    engine.run()


if __name__ == "__main__":
    main()
