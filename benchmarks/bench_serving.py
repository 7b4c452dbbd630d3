"""The serving engine against its peers: many adapters in one batch, one thread, bfloat16, rank 8, SmolLM2-135M.

Ours, transformers, PEFT and (in a process of its own, where a python with it is given) llama.cpp decode in turns, so that
whatever else the machine does hits all of them. A time is the CPU time of one decode step, a figure the median over the
rounds of the ratio within a round; 64 tokens of context in every row. All-linear adapters change q, k, v, o, gate, up and
down. "own A" are adapters as anyone trains them, each with its A and B (4.9 MB); "shared A" are versions of one charter.

    python benchmarks/bench_serving.py [--quick] [--rounds N] [--llama PYTHON] [--json FILE]

PYTHON is that of an environment with llama-cpp-python (`pip install llama-cpp-python` builds it).
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import serving_peers
import torch
from harness import Figure, cache, finish, options, table
from safetensors.torch import save_file
from serving_peers import LlamaCpp, Step

from contrib import models
from contrib.adapters import AdapterSpec, layout, layout_of
from node.serving.engine import adapter as adapters
from node.serving.engine.adapter import HostAdapter, from_peft, from_vector
from node.serving.engine.rows import Work
from node.serving.engine.runner import LlamaRunner

ROWS, CONTEXT, RANK, ALPHA = 16, 64, 8, 16
ALL, QV = ("all-linear",), ("q_proj", "v_proj")
RNG = np.random.default_rng(0)


def main() -> int:
    began = time.monotonic()
    parser = options(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="few rounds, without PEFT, transformers and llama.cpp")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--llama", metavar="PYTHON", help="a python that can import llama_cpp")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (5 if arguments.quick else 15)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        figures = Bench(arguments, Path(work)).figures()
    return finish(figures, arguments, began=began)


class Bench:
    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.quick, self.rounds, self.work = arguments.quick, arguments.rounds, work
        self.folder = models.add(models.SMOLLM2, cache()).path
        self.runner = LlamaRunner(self.folder, rows=ROWS, context=1024, dtype=torch.bfloat16)
        print(f"kernels: {self.runner.kernels}")
        self.folders = [self.peft_folder(n) for n in range(ROWS)]
        self.prompts = RNG.integers(5, 40000, (ROWS, CONTEXT)).tolist()
        self.steps: dict[str, Step] = {}
        self.times: dict[str, list[float]] = {}
        self.llama = (
            None
            if self.quick or not arguments.llama
            else LlamaCpp(arguments.llama, self.folder, self.folders, self.work)
        )

    # -- what is compared --------------------------------------------------------------------------------------------
    def figures(self) -> list[Figure]:
        found = [*self.swap_in(), *self.memory(), *self.registered()]
        own = [from_peft(folder, self.runner.shape, torch.bfloat16) for folder in self.folders]
        sets = {
            "own A": own,
            "shared A": [self.vector(n, ALL, seed=0) for n in range(ROWS)],
            "q,v": [self.vector(n, QV, seed=n + 1) for n in range(ROWS)],
        }
        self.add_ours("base, 16 rows", [0] * ROWS)
        self.add_ours("base, 1 row", [0])
        for name, some in sets.items():
            self.add_ours(f"16 {name}", [self.runner.activate(adapter) for adapter in some])
        if not self.quick:
            self.steps["transformers, 16 rows"] = serving_peers.transformers_step(self.folder, self.prompts)
            self.steps["PEFT, 16 adapters"] = serving_peers.peft_step(self.folder, self.folders, self.prompts)
        self.steps["memory"], size = serving_peers.memory_step(self.work)
        self.measure()
        weights = 2 * self.parameters()
        bandwidth = size / statistics.median(self.times["memory"])
        base, one = "base, 16 rows", "base, 1 row"
        found += [
            Figure(
                id="serving.16-all-linear-over-base", value=self.ratio(base, "16 own A"), floor=0.75, aim=0.85, unit="x"
            ),
            Figure(id="serving.16-of-one-charter-over-base", value=self.ratio(base, "16 shared A"), aim=0.85, unit="x"),
            Figure(id="serving.16-q-v-over-base", value=self.ratio(base, "16 q,v"), floor=0.88, aim=0.95, unit="x"),
            Figure(
                id="serving.batch-1-of-memory-bound",
                value=100 * weights / size * self.ratio("memory", one),
                floor=25,
                aim=60,
                unit="%",
            ),
            Figure(id="serving.memory-bandwidth", value=bandwidth / 1e9, unit="GB/s"),
            Figure(id="serving.tokens-per-cpu-second-16", value=ROWS / self.median("16 own A"), unit="tok/s"),
        ]
        if not self.quick:
            found += [
                Figure(
                    id="serving.against-peft-mixed",
                    value=self.ratio("PEFT, 16 adapters", "16 own A"),
                    floor=5,
                    aim=10,
                    unit="x",
                ),
                Figure(
                    id="serving.base-against-transformers",
                    value=self.ratio("transformers, 16 rows", base),
                    floor=1.5,
                    aim=2.4,
                    unit="x",
                ),
            ]
        if self.llama:
            turns = "llama.cpp, 16 adapters in turn"
            found += [
                Figure(id="serving.against-llama-cpp", value=self.ratio(turns, "16 own A"), floor=2, aim=3, unit="x"),
                Figure(id="serving.batch-1-against-llama-cpp", value=self.ratio("llama.cpp, 1 row", one), unit="x"),
                Figure(id="serving.base-16-against-llama-cpp", value=self.ratio("llama.cpp, 16 rows", base), unit="x"),
            ]
            self.llama.close()
        return found

    def measure(self) -> None:
        for step in self.steps.values():
            step()
        self.times.update({name: [] for name in self.steps})
        for number in range(self.rounds):
            for name in list(self.steps)[:: 1 if number % 2 else -1]:
                self.times[name].append(self.steps[name]())
            if self.llama:
                for name, what in (("1 row", "base 8"), ("16 rows", "batch 4"), ("16 adapters in turn", "turns 2")):
                    self.times.setdefault(f"llama.cpp, {name}", []).append(self.llama.ask(what))
        table(
            f"CPU ms of one decode step, {self.rounds} rounds",
            ("step", "median", "least", "most"),
            [(n, 1e3 * self.median(n), 1e3 * min(t), 1e3 * max(t)) for n, t in self.times.items()],
        )

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def ratio(self, over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(self.times[over], self.times[under], strict=True))

    # -- ours --------------------------------------------------------------------------------------------------------
    def add_ours(self, name: str, slots: list[int]) -> None:
        """A step of one token for rows that stay at their context: what it reads is forgotten again."""
        runner, prompts = self.runner, self.prompts

        def step() -> float:
            rows = [runner.open(p, s, f"{s}") for p, s in zip(prompts, slots, strict=False)]
            fill = [Work(row=r.row, ids=p[r.cached :], want="none") for r, p in zip(rows, prompts, strict=False)]
            runner.step(fill)
            since = time.thread_time()
            for _ in range(3):
                runner.step([Work(row=r.row, ids=[7]) for r in rows])
            spent = (time.thread_time() - since) / 3
            for row in rows:
                runner.close(row.row, keep=True)
            return spent

        self.steps[name] = step

    def vector(self, number: int, targets: tuple[str, ...], seed: int) -> HostAdapter:
        spec = AdapterSpec(rank=RANK, alpha=ALPHA, targets=targets, seed=f"{seed:064x}")
        values = RNG.normal(0, 0.02, layout(self.folder, spec).coordinates).astype(np.float32)
        return from_vector(values, spec, self.runner.shape, torch.bfloat16, digest=f"{number}")

    def peft_folder(self, number: int) -> Path:
        """A PEFT folder as PEFT saves it: float32 A and B of all seven linears."""
        folder = self.work / f"adapter-{number}"
        folder.mkdir()
        spec = AdapterSpec(rank=RANK, alpha=ALPHA, targets=ALL, seed="00" * 32)
        parts: dict[str, torch.Tensor] = {}
        for path, width, out in layout(self.folder, spec).modules:
            for kind, shape in (("A", (RANK, width)), ("B", (out, RANK))):
                parts[f"base_model.model.{path}.lora_{kind}.weight"] = torch.randn(shape) * 0.02
        save_file(parts, folder / "adapter_model.safetensors")
        names = sorted({path.rpartition(".")[2] for path, _, _ in layout(self.folder, spec).modules})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": ALPHA,
            "target_modules": names,
        }
        (folder / "adapter_config.json").write_text(json.dumps({**config, "bias": "none", "lora_dropout": 0.0}))
        return folder

    def parameters(self) -> int:
        """Weights that a token's step reads: all but the embedding, which is the head's twin here."""
        from contrib.weights import tensors

        return sum(int(np.prod(t.shape)) for t in tensors(self.folder).values())

    def swap_in(self) -> list[Figure]:
        """RAM to active, and from a file that lies in the page cache to active."""
        runner, times = self.runner, {"ram": [], "disk": [], "vector": []}  # type: dict[str, list[float]]
        spec = AdapterSpec(rank=RANK, alpha=ALPHA, targets=ALL, seed="00" * 32)
        file = self.work / "vector.npy"
        np.save(file, RNG.normal(0, 0.02, layout(self.folder, spec).coordinates).astype(np.float32))
        adapters._shared_a.cache_clear()
        for folder in [self.folders[0], *self.folders]:
            since = time.thread_time()
            loaded = from_peft(folder, runner.shape, torch.bfloat16, digest="x")
            runner.deactivate(runner.activate(loaded))
            times["disk"].append(time.thread_time() - since)
            since = time.thread_time()
            slot = runner.activate(loaded)
            times["ram"].append(time.thread_time() - since)
            runner.deactivate(slot)
            since = time.thread_time()
            runner.deactivate(
                runner.activate(from_vector(np.load(file), spec, runner.shape, torch.bfloat16, digest="x"))
            )
            times["vector"].append(time.thread_time() - since)
        ram, disk, vector = (1e3 * statistics.median(values[1:]) for values in times.values())
        return [
            Figure(id="serving.swap-in-from-ram", value=ram, floor=5, aim=2, unit="ms", lower=True),
            Figure(id="serving.swap-in-from-disk", value=disk, floor=30, aim=15, unit="ms", lower=True),
            Figure(id="serving.swap-in-vector-from-disk", value=vector, floor=30, aim=15, unit="ms", lower=True),
        ]

    def memory(self) -> list[Figure]:
        """Resident memory that 32 further adapters take, over their own bytes in bfloat16."""
        known = {p: (s.width, o) for s in self.runner.shape.sites for p, o in adapters._paths(s)}
        spec = AdapterSpec(rank=RANK, alpha=ALPHA, targets=ALL, seed="00" * 32)
        own = sum(2 * RANK * (width + out) for _, width, out in layout_of(known, spec).modules)
        held = [from_peft(folder, self.runner.shape, torch.bfloat16, digest="x") for folder in self.folders]
        gc.collect()
        before = _resident()
        held += [from_peft(folder, self.runner.shape, torch.bfloat16, digest="x") for folder in self.folders * 2]
        grown = (_resident() - before) / (2 * ROWS)
        return [Figure(id="serving.ram-per-adapter", value=grown / own, floor=1.1, aim=1.0, unit="x", lower=True)]

    def registered(self) -> list[Figure]:
        """Requests over 100 adapters against requests over 1, 16 rows and 16 slots in use, to the last token of all."""
        kinds = {
            "serving.100-registered-over-1": [
                self.vector(n, ALL, seed=0) for n in range(100)
            ],  # one charter's versions
            "serving.100-registered-own-a-over-1": [self.vector(n, ALL, seed=n + 1) for n in range(100)],
        }
        found = []
        for name, many in kinds.items():
            spent: dict[int, list[float]] = {1: [], 100: []}
            swaps = 0
            for number in range(4 if self.quick else 8):
                for count in (1, 100) if number % 2 else (100, 1):
                    since = time.thread_time()
                    swaps = max(swaps, self.traffic(many[:count], requests=48))
                    spent[count].append(time.thread_time() - since)
            value = statistics.median(a / b for a, b in zip(spent[1][1:], spent[100][1:], strict=True))
            rate = 48 * 16 / statistics.median(spent[100])
            print(f"{name}: {swaps} swap-ins for 48 requests of 16 + 16 tokens, {rate:.0f} tokens a CPU second")
            bounds = {} if "own-a" in name else {"floor": 0.9, "aim": 0.97}
            found.append(Figure(id=name, value=value, unit="x", **bounds))
        return found

    def traffic(self, some: list[HostAdapter], requests: int) -> int:
        """Serve requests of 16 tokens in and 16 out; a row that ends makes room for the next. Returns the swap-ins."""
        runner, rng, slots, busy = self.runner, np.random.default_rng(1), {}, {}  # type: ignore[var-annotated]
        swaps, waiting, prompt = 0, requests, np.random.default_rng(2)
        while waiting or busy:
            work = [Work(row=row, ids=[7]) for row in busy]
            while waiting and len(busy) < ROWS:
                adapter, waiting = some[int(rng.integers(len(some)))], waiting - 1
                if adapter.digest not in slots:
                    used = {held[1] for held in busy.values()}
                    if len(slots) == ROWS:
                        runner.deactivate(slots.pop(next(name for name in slots if name not in used)))
                    slots[adapter.digest] = runner.activate(adapter)
                    swaps += 1
                ids = prompt.integers(5, 40000, 16).tolist()
                row = runner.open(ids, slots[adapter.digest], adapter.digest).row
                busy[row] = [16, adapter.digest]
                work.append(Work(row=row, ids=ids))
            runner.step(work)
            for row in list(busy):
                busy[row][0] -= 1
                if not busy[row][0]:
                    runner.close(row, keep=False)
                    del busy[row]
        for slot in slots.values():
            runner.deactivate(slot)
        return swaps


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
