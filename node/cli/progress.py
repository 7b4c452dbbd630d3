"""Progress bars for people, on stderr and only on a terminal; programs read events from the control socket instead."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from node import control
from protocol.errors import Retry

if TYPE_CHECKING:
    from rich.console import Console

    from node.home import Home


@contextlib.contextmanager
def staged(out: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar whose text is the stage: call the yielded function with (stage, part done from 0 to 1)."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(stage: str, part: float) -> None:
            bar.update(task, description=stage, total=1.0 if part > 0 else None, completed=part)

        yield show


@contextlib.contextmanager
def working(text: str, out: Console) -> Iterator[None]:
    """A spinner beside `text`."""
    with out.status(text):
        yield


@contextlib.contextmanager
def training(home: Home, out: Console) -> Iterator[None]:
    """A bar over the steps that the daemon of `home` reports while the block runs."""
    if out.quiet:
        yield
        return
    with staged(out) as show:
        show("training", 0.0)
        # A daemon thread: it ends with the daemon's stream or with this process, whichever comes first.
        threading.Thread(target=_steps, args=(home, show), daemon=True).start()
        yield


def _steps(home: Home, show: Callable[[str, float], None]) -> None:
    with contextlib.suppress(Retry):  # no daemon: the run is offline and shows only that it goes on
        for event in control.follow(home):
            step, steps = event.get("step"), event.get("steps")
            trial = event.get("trial")
            doing = f"tuning, trial {trial}" if trial else "training"
            if event.get("kind") == "train.step" and isinstance(step, int) and isinstance(steps, int) and steps:
                show(f"{doing}, step {step} of {steps}", step / steps)
