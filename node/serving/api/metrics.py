"""What Prometheus reads at /metrics: times that the API itself takes, and the engine's own counters at each look.

One registry per application, so that two of them in one process do not mix. Labels are bounded: at most `MOST_MODELS` names
of models, the rest counts as "other"; no label holds anything that a client wrote. Knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from node.ports import Piece, Usage
from node.serving.api.node_metrics import NodeMeters, Read

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MOST_MODELS: Final = 100
OTHER: Final = "other"
_FAST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # s
_SLOW: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)  # s

_COUNTERS: Final = {  # the engine's name -> help; the metric is fishernet_engine_<name>_total
    "steps": "Forward passes.",
    "tokens_prefill": "Prompt tokens computed.",
    "tokens_decode": "Answer tokens drawn.",
    "prefix_hit_tokens": "Prompt tokens that the prefix cache held.",
    "tier_hits_active": "Requests whose adapter was active.",
    "tier_hits_ram": "Requests whose adapter was in memory.",
    "tier_hits_disk": "Requests whose adapter was read from disk.",
    "swap_ins": "Adapters put into an active slot.",
    "evictions_active": "Adapters taken out of an active slot.",
    "evictions_ram": "Adapters dropped from memory.",
    "load_errors": "Adapters that could not be loaded.",
    "queue_full": "Requests refused because the queue was full.",
    "cancelled": "Requests that their client gave up.",
    "deadlines": "Answers that their deadline cut.",
}
_GAUGES: Final = {
    "requests_waiting": "Requests that wait.",
    "requests_running": "Requests that are answered.",
    "rows": "Rows of one forward pass, at most.",
    "rows_busy": "Rows in use.",
    "adapters_active": "Adapters in active slots.",
    "adapters_ram": "Adapters in memory.",
    "adapters_ram_bytes": "Bytes of the adapters in memory.",
}


class Metrics:
    """The meters of one application."""

    def __init__(self, node: Read | None = None) -> None:
        """`node` gives the numbers of the node around the API, if there is one."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        if node is not None:
            self.registry.register(NodeMeters(node))
        self._models: set[str] = set()
        self._engine: Mapping[str, Any] = {}
        options: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter(
            "fishernet_requests",
            "Requests, by what was asked and how it ended.",
            ["route", "model", "status"],
            **options,
        )
        self._tokens = Counter("fishernet_tokens", "Tokens, by kind.", ["model", "kind"], **options)
        self._first = Histogram(
            "fishernet_ttft_seconds", "From a request to its first token.", ["model"], buckets=_SLOW, **options
        )
        self._between = Histogram(
            "fishernet_itl_seconds", "Between two pieces of one answer.", ["model"], buckets=_FAST, **options
        )
        self._whole = Histogram(
            "fishernet_request_seconds", "From a request to its end.", ["model"], buckets=_SLOW, **options
        )
        self._denied = Counter("fishernet_denied", "Requests refused by key, by reason.", ["reason"], **options)
        self._up = Gauge("fishernet_requests_in_flight", "Requests in the API.", **options)
        self.registry.register(_Engine(self))

    def label(self, model: str) -> str:
        """The label of a model: its name while there are not too many of them."""
        if model in self._models or len(self._models) < MOST_MODELS:
            self._models.add(model)
            return model
        return OTHER

    def denied(self, reason: str) -> None:
        """A request was refused by key; `reason` is a code of ours."""
        self._denied.labels(reason).inc()

    def refused(self, route: str, status: int) -> None:
        """A request ended before it had a model."""
        self._requests.labels(route, "", str(status)).inc()

    def watch(self, route: str, model: str) -> Watch:
        """Time one request from now on."""
        return Watch(self, route, self.label(model))

    def text(self, engine: Mapping[str, Any]) -> bytes:
        """Everything, in Prometheus' text format; `engine` is what the engine counts."""
        self._engine = engine
        return generate_latest(self.registry)


class Watch:
    """The times of one request."""

    __slots__ = ("_last", "_metrics", "_since", "ended", "model", "route", "seen")

    def __init__(self, metrics: Metrics, route: str, model: str) -> None:
        self._metrics, self.route, self.model = metrics, route, model
        self._since, self.ended, self.seen = time.monotonic(), False, 0
        self._last: dict[int, float] = {}
        metrics._up.inc()

    def piece(self, piece: Piece) -> None:
        """A piece of an answer came."""
        now = time.monotonic()
        if not self._last:
            self._metrics._first.labels(self.model).observe(now - self._since)
        elif (last := self._last.get(piece.index)) is not None:
            self._metrics._between.labels(self.model).observe(now - last)
        self._last[piece.index] = now
        self.seen += 1

    def usage(self, usage: Usage) -> None:
        """The tokens of the request are known."""
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("answer", usage.completion_tokens),
        ):
            self._metrics._tokens.labels(self.model, kind).inc(count)

    def end(self, status: int) -> float:
        """The request ended; returns its seconds. Only the first call counts."""
        seconds = time.monotonic() - self._since
        if not self.ended:
            self.ended = True
            self._metrics._up.dec()
            self._metrics._requests.labels(self.route, self.model, str(status)).inc()
            self._metrics._whole.labels(self.model).observe(seconds)
        return seconds


class _Engine:
    """The engine's counters as Prometheus' metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """The newest values; none while the engine is not loaded."""
        found = self._metrics._engine
        yield GaugeMetricFamily("fishernet_engine_up", "1 while the engine is loaded.", value=float(bool(found)))
        for name, text in _COUNTERS.items():
            if (number := _number(found.get(name))) is not None:
                yield CounterMetricFamily(f"fishernet_engine_{name}", text, value=number)
        for name, text in _GAUGES.items():
            if (number := _number(found.get(name))) is not None:
                yield GaugeMetricFamily(f"fishernet_engine_{name}", text, value=number)
        each = found.get("per_adapter")
        if isinstance(each, Mapping):
            yield from self._adapters(each)

    def _adapters(self, each: Mapping[str, Any]) -> Iterator[Metric]:
        """Per adapter: the busiest ones by name, the others together."""
        sums: dict[str, dict[str, float]] = {}
        busiest = sorted(each.items(), key=lambda item: (-(_number(item[1].get("requests")) or 0), item[0]))
        for rank, (name, counts) in enumerate(busiest):
            mine = sums.setdefault(name if rank < MOST_MODELS else OTHER, {})
            for key in ("requests", "tokens", "waiting"):
                mine[key] = mine.get(key, 0.0) + (_number(counts.get(key)) or 0.0)
        requests = CounterMetricFamily("fishernet_adapter_requests", "Requests.", labels=["adapter"])
        tokens = CounterMetricFamily("fishernet_adapter_tokens", "Answer tokens.", labels=["adapter"])
        waiting = GaugeMetricFamily("fishernet_adapter_waiting", "Requests that wait.", labels=["adapter"])
        for name, mine in sums.items():
            requests.add_metric([name], mine["requests"])
            tokens.add_metric([name], mine["tokens"])
            waiting.add_metric([name], mine["waiting"])
        yield from (requests, tokens, waiting)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
