"""Which merges of PEFT and mergekit stand in the table, and how mergekit and Flower are asked, in Pythons of their own.

Weights are 1/n where a method sums and 1 where it divides by itself. Densities are those of the methods' papers or
examples: 0.2 (TIES) and 0.5. Methods of mergekit for exactly two models (slerp, nuslerp, nearswap, arcee_fusion) are left out.

Knows no measurement. Invariant: peers get and give files only; none of their code runs here, save PEFT's, which is ours too.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from harness import cache
from products import Matrix, Product

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One merge of a peer; `weight` None is 1/n."""

    name: str
    method: str
    weight: float | None = None
    density: float | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)


def _peft(method: str, density: float | None = None, weight: float | None = None) -> Wanted:
    shown = "" if density is None else f" {density}"
    return Wanted(name=f"PEFT {method}{shown}", method=method, density=density, weight=weight)


PEFT = (
    _peft("cat"),
    _peft("svd"),
    _peft("linear"),
    _peft("ties", 0.2, 1.0),
    _peft("ties", 0.5, 1.0),
    _peft("ties_svd", 0.2, 1.0),
    _peft("ties_svd", 0.5, 1.0),
    _peft("dare_linear", 0.5),
    _peft("dare_linear_svd", 0.5),
    _peft("dare_ties", 0.5, 1.0),
    _peft("dare_ties_svd", 0.5, 1.0),
    _peft("magnitude_prune", 0.5),
    _peft("magnitude_prune_svd", 0.5),
)


def _kit(method: str, weight: float | None = None, **parameters: object) -> Wanted:
    shown = "".join(f" {value}" for key, value in parameters.items() if key in ("density", "select_topk"))
    return Wanted(name=f"mergekit {method}{shown}", method=method, weight=weight, parameters=parameters)


MERGEKIT = (
    _kit("linear", 1.0, without_base=True),
    _kit("task_arithmetic"),
    _kit("ties", 1.0, density=0.2),
    _kit("ties", 1.0, density=0.5),
    _kit("dare_linear", density=0.5),
    _kit("dare_ties", density=0.5),
    _kit("della", 1.0, density=0.5),
    _kit("della_linear", density=0.5),
    _kit("breadcrumbs", density=0.5),
    _kit("breadcrumbs_ties", density=0.5),
    _kit("sce", 0.0, select_topk=0.5),
    _kit("model_stock", 0.0),
    _kit("multislerp", 1.0),
    _kit("karcher", 0.0, without_base=True),
    _kit("ram", 0.0),
    _kit("ramplus_tl", 0.0),
)  # weight 0.0: the method takes none


def mergekit(
    python: str, folder: Path, base: Product, members: Sequence[Product], *, seed: int
) -> Iterator[tuple[Wanted, dict[str, Matrix] | str]]:
    """The changes of weights that mergekit makes of whole weights, or why it did not.

    Raises:
        CalledProcessError: the script could not run at all.
    """
    from safetensors.numpy import load_file, save_file

    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        save_file(dict(base), place / "base.safetensors")
        for number, weights in enumerate(members):
            save_file(dict(weights), place / f"member{number}.safetensors")
        methods = [
            {"id": f"m{n}", "method": one.method, "parameters": _weighed(one, len(members))}
            for n, one in enumerate(MERGEKIT)
        ]
        (place / "methods.json").write_text(json.dumps(methods))
        subprocess.run([python, str(HERE / "mergekit_peer.py"), name, str(seed)], check=True)
        for n, one in enumerate(MERGEKIT):
            refused = place / f"m{n}.txt"
            yield one, refused.read_text() if refused.is_file() else load_file(place / f"m{n}.safetensors")


def _weighed(wanted: Wanted, members: int) -> dict[str, object]:
    if wanted.weight == 0.0:
        return dict(wanted.parameters)
    return {**wanted.parameters, "weight": wanted.weight or 1 / members}


@dataclass(frozen=True, slots=True, kw_only=True)
class Federated:
    """What Flower's FedAvg gave: global arrays after each round, and mean bytes of a message up and down in each."""

    views: npt.NDArray[np.float32]  # [rounds, P]
    up: tuple[float, ...]
    down: tuple[float, ...]
    versions: str


def flower(python: str, folder: Path, model: str, rounds: int, seed: int) -> Federated:
    """Run FedAvg over Flower's simulation engine.

    Raises:
        CalledProcessError: it could not run; its words are on the standard error.
    """
    out = folder / f"flower-{model}-{seed}.npz"
    environment = {**os.environ, "FISHERNET_CACHE": str(cache()), "OMP_NUM_THREADS": "1"}
    command = [python, str(HERE / "flower_peer.py"), model, str(rounds), str(seed), str(out)]
    subprocess.run(command, check=True, env=environment)
    with np.load(out) as found:
        return Federated(
            views=found["views"],
            up=tuple(found["up"].tolist()),
            down=tuple(found["down"].tolist()),
            versions=str(found["versions"]),
        )
