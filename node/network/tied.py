"""A command for a child that cannot outlive us, whatever we die of and whenever.

On Linux the kernel ends a child when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG), once the child has asked for
it. It asks before it becomes the program, and then looks whether its parent is still there: one that died in between would never
be noticed. `setpriv` and `sh` do that in 3 ms; without them a Python of 25 ms does. Elsewhere there is no such signal, and the
program has to notice by itself that nobody talks to it. Knows no program. Invariant: the process id does not change.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

_CHECK = '[ "$PPID" = "$0" ] && exec "$@"'  # sh asks for its parent when it starts, which is after the signal is set
_PYTHON = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0) or os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied(argv: Sequence[str]) -> list[str]:
    """`argv`, whose program is a path, as a child of this process that ends with it; to be started in a thread that stays."""
    if sys.platform != "linux":
        return list(argv)
    setpriv, shell, parent = shutil.which("setpriv"), shutil.which("sh"), str(os.getpid())
    if setpriv and shell:
        return [setpriv, "--pdeathsig", "KILL", shell, "-c", _CHECK, parent, *argv]
    return [sys.executable, "-ISE", "-c", _PYTHON, parent, *argv]
