"""`python -m tests.fuzz`: as many inputs as asked for, spread over all parsers; `--grow` looks for inputs worth keeping first.

Prints one line for each parser, and the first input that breaks the law; ends with 1 then.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from tests.fuzz import harness
from tests.fuzz.test_fuzz import TARGETS


def main() -> int:
    """Run, and say what was tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs in all (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other inputs (default 1)")
    parser.add_argument(
        "--grow", type=int, default=0, help="first trace so many mutations of each parser's corpus and keep new ones"
    )
    parser.add_argument("names", nargs="*", help="only these parsers (default: all)")
    options = parser.parse_args()
    chosen = [target for target in TARGETS if not options.names or target.name in options.names]
    whole = sum(target.weight for target in chosen)
    tried = broken = 0
    gc.freeze()
    for target in chosen:
        began = time.monotonic()
        try:
            kept = 0
            if options.grow:
                found = harness.grow(target, count=options.grow, seed=options.seed)
                kept = harness.keep(target, found) if found else len(harness.corpus(target))
            count, accepted = harness.run(target, count=int(options.count * target.weight / whole), seed=options.seed)
        except harness.Broken as e:
            broken += 1
            harness.keep(target, [e.data])
            print(f"{target.name:16} BROKEN {e}", flush=True)
            continue
        tried += count
        took = time.monotonic() - began
        print(f"{target.name:16} {count:>8} tried {accepted:>7} taken {took:7.1f} s corpus {kept}", flush=True)
    print(f"{tried} inputs, {broken} parsers broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
