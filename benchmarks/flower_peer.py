"""Flower as a peer: its FedAvg over its simulation engine, with clients that train as our members do.

    python benchmarks/flower_peer.py MODEL ROUNDS SEED OUT.npz      (with a Python that has flwr and what contrib needs)

Every client is one member: it trains with `contrib.training` on the rows, steps and seeds that the lab gives that member,
from the arrays that Flower's server sent. Server, strategy, messages and aggregation are Flower's. OUT gets `views`
[rounds, P], the global arrays after each round, and `up` and `down` [rounds], the mean bytes of a serialised message each way.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).resolve().parent
NAMES = ("clinic", "security", "cinema")


def main() -> int:
    model, rounds, seed, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    sys.path[:0] = [str(ROOT), str(ROOT.parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT.parent)])  # of Ray's actors
    import flower_peer
    import numpy as np
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation
    from lab import open_lab

    coordinates = open_lab(model, names=NAMES[:1]).learner.coordinates
    views: list[np.ndarray] = []
    sizes: list[tuple[int, float, float]] = []

    class Watched(FedAvg):
        """FedAvg as it is, looked at after each aggregation."""

        def aggregate_train(self, server_round: int, replies):  # noqa: ANN001, ANN202
            replies = list(replies)
            if failed := [reply.error.reason for reply in replies if reply.has_error()]:
                raise RuntimeError(f"couldn't train a client: {failed[0]}")
            arrays, metrics = super().aggregate_train(server_round, replies)
            views.append(arrays.to_numpy_ndarrays()[0].copy())
            for reply in replies:
                found = next(iter(reply.content.metric_records.values()))
                sizes.append((server_round, float(found["down"]), float(_size(reply))))
            return arrays, metrics

    server = ServerApp()

    @server.main()
    def serve(grid: Grid, _context: object) -> None:
        strategy = Watched(fraction_evaluate=0.0, min_train_nodes=len(NAMES), min_available_nodes=len(NAMES))
        strategy.start(
            grid,
            ArrayRecord([np.zeros(coordinates, dtype=np.float32)]),
            num_rounds=rounds,
            timeout=36_000,
            train_config=ConfigRecord({"model": model, "seed": seed}),
        )

    client = ClientApp()
    client.train()(flower_peer.train)  # by its module's name: Ray's actors import it
    run_simulation(
        server,
        client,
        num_supernodes=len(NAMES),
        backend_config={
            "init_args": {"num_cpus": 1, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    up = [float(np.mean([size for n, _, size in sizes if n == number + 1])) for number in range(rounds)]
    down = [float(np.mean([size for n, size, _ in sizes if n == number + 1])) for number in range(rounds)]
    versions = json.dumps({name: version(name) for name in ("flwr", "ray", "torch")})
    np.savez(out, views=np.stack(views), up=up, down=down, versions=versions)
    return 0


def train(message, context):  # noqa: ANN001, ANN201
    """One member's local run from the arrays of the server."""
    import numpy as np
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    config = message.content["config"]
    name = NAMES[int(context.node_config["partition-id"])]
    lab = _opened(str(config["model"]), name)
    number = int(config["server-round"]) - 1
    settings = dataclasses.replace(lab.settings, seed=int(config["seed"]) * 1000 + number)
    view = message.content["arrays"].to_numpy_ndarrays()[0]
    run = lab.local(name, view if np.any(view) else None, settings)
    rows = settings.steps * settings.batch  # as many for every member: FedAvg's weights are equal
    metrics = MetricRecord({"num-examples": rows, "down": float(_size(message))})
    return Message(content=RecordDict({"arrays": ArrayRecord([run.theta]), "metrics": metrics}), reply_to=message)


@functools.cache
def _opened(model: str, name: str):  # noqa: ANN202
    from lab import open_lab

    return open_lab(model, names=[name])


def _size(message) -> int:  # noqa: ANN001
    from flwr.common.serde import message_to_proto

    return len(message_to_proto(message).SerializeToString())


if __name__ == "__main__":
    sys.exit(main())
