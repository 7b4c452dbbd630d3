"""What every benchmark script shares: the options, the table, the JSON, and the exit code.

A script measures and hands over figures; a figure with a floor that it misses makes the script end with 1. Knows nothing
of what is measured. The JSON is a list of {id, value, floor, aim, unit, holds}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from protocol.ids import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number; `floor` must hold, `aim` is where we want to be. With `lower` smaller is better."""

    id: str
    value: float
    unit: str = ""
    floor: float | None = None
    aim: float | None = None
    lower: bool = False

    @property
    def holds(self) -> bool:
        """Whether the floor is kept; without a floor it always is."""
        if self.floor is None:
            return True
        return self.value <= self.floor if self.lower else self.value >= self.floor

    def to_json(self) -> dict[str, object]:
        """The form in the JSON file."""
        value = round(self.value, 6)
        return {
            "id": self.id,
            "value": value,
            "floor": self.floor,
            "aim": self.aim,
            "unit": self.unit,
            "holds": self.holds,
        }


def options(description: str) -> argparse.ArgumentParser:
    """The parser with what all scripts take."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


def cache() -> Path:
    """Where models and data lie for this user, as the program itself decides it."""
    if chosen := os.environ.get("FISHERNET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fishernet"


def base_model(name: str) -> tuple[Path, Digest]:
    """Folder and digest of a model of the cache; "tiny", the test model, goes by a digest that stands for no other."""
    from contrib.models import find, tiny_folder

    if name == "tiny":
        return tiny_folder(), Digest("ba" * 32)
    found = find(name, cache())
    return found.path, found.digest


def machine() -> str:
    """The machine in one line: processor, cores, memory, versions, load."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    installed = [f"{name} {found}" for name in ("torch", "transformers", "peft", "numpy") if (found := _version(name))]
    return (
        f"{model}, {os.cpu_count()} cores, {gigabytes:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, {', '.join(installed)}, load {os.getloadavg()[0]:.1f}"
    )


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers stand to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [list(header), ["-" * width for width in widths], *cells]:
        aligned = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(aligned).rstrip())


def finish(figures: Sequence[Figure], options: argparse.Namespace, *, began: float) -> int:
    """Print the figures, write the JSON, and return the exit code: 1 when a floor is missed."""
    rows = [
        (f.id, f.value, f.unit, f.floor, f.aim, "-" if f.floor is None else "yes" if f.holds else "NO") for f in figures
    ]
    table("figures", ("id", "value", "unit", "floor", "aim", "holds"), rows)
    print(f"\n{machine()}; {time.monotonic() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([f.to_json() for f in figures], indent=1) + "\n")
    missed = [f.id for f in figures if not f.holds]
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
