"""What applications meet of a running node: the models it serves, the API on its port, and what it tells of their use.

Follows the shelf and the charter's base; knows no network and no votes. Invariant: an answer under way ends on the base
and the version it began with, and what was decided on an API key reaches the ledger or a file before the node ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from contrib.models import Model as BaseModel
from node import http
from node.collective.holdings import Holdings
from node.collective.replay import Replay
from node.collective.seat import now_ms
from node.home import Home
from node.lasting import lasting
from node.sections import NodeConfig
from node.serving.access import grants as key_grants
from node.serving.access.keyfile import KeyFile
from node.serving.access.log import AccessLog
from node.serving.api.app import Facts, Keys, create_app
from node.serving.api.keys import Door
from node.serving.api.node_metrics import Read
from node.serving.models import Load, Serving
from node.serving.routing import configured
from node.serving.shelf import Shelf
from node.session import Session
from protocol.canon import Json
from protocol.errors import Fatal, FishernetError
from protocol.ids import ZERO, Digest

log = logging.getLogger("fishernet.daemon")
_RETRY_S: Final = 2.0


class Front:
    """The serving side of one running node; it has no models before `open`."""

    def __init__(
        self,
        session: Session,
        replay: Replay,
        holdings: Holdings,
        *,
        ready: Callable[[], Mapping[str, bool]],
        meters: Read,
    ) -> None:
        """`ready` says what else of the node has to be there before /ready says so; `meters` the numbers for /metrics."""
        self._session, self._seat = session, session.need_seat()
        self._replay, self._holdings, self._ready, self._meters = replay, holdings, ready, meters
        self._access = AccessLog(now_ms)
        self._access.take_up(session.home.served_counts)
        self.epoch: Digest | None = None  # whose base and shape the trainer and the engine have
        self.serving: Serving | None = None
        self.shelf: Shelf | None = None
        self.port: int | None = None
        self._door: Door | None = None

    # -- models ------------------------------------------------------------------------------------------------------
    def open(self, epoch: Digest, model: BaseModel, adapter: Mapping[str, Json]) -> None:
        """Have something to serve: the base `model` and adapters of the shape `adapter`."""
        config, experts = self._session.config, experts_of(self._session.config, self._session.home)
        self.serving = Serving(
            model=model.path, base=model.digest, adapter=dict(adapter), load=load_of(config), experts=experts
        )
        self.shelf = Shelf(self._seat, self._replay, self.serving, self._holdings)
        self.epoch = epoch

    async def turn(self, epoch: Digest, model: BaseModel, adapter: Mapping[str, Json]) -> None:
        """Serve with another base or shape from now on; answers under way end on the old one."""
        if self.serving is None:
            return self.open(epoch, model, adapter)
        await self.serving.set_base(model=model.path, base=model.digest, adapter=dict(adapter))
        self.shelf = Shelf(self._seat, self._replay, self.serving, self._holdings)
        self.epoch = epoch

    async def update(self) -> list[tuple[str, Digest]]:
        """Serve what was decided or came in; returns the names and digests that appeared."""
        return await self.shelf.update() if self.shelf is not None else []

    # -- the API -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Answer on the API's port until cancelled (raises AddressError); call it after `open`."""
        if self.serving is None:
            raise RuntimeError("the front has no models yet")
        serve, file = self._session.config.serve, KeyFile(self._session.home.api_keys)
        keys = Keys(file=file, judge=self._judge, log=self._access)
        app = create_app(self.serving, self._facts, api_keys=serve.api_keys, keys=keys, meters=self._meters)
        self._door = app.state.door
        address = http.Address(host=serve.host, port=serve.port)
        async with asyncio.TaskGroup() as both:
            both.create_task(http.run_server(app, address, on_ready=self._up))
            if serve.preload:
                both.create_task(self._preload(self.serving))

    def use_keys(self) -> None:
        """Take the API keys that node.toml names now."""
        if self._door is not None:
            self._door.use(self._session.config.serve.api_keys)

    def use_experts(self) -> None:
        """Choose for "auto" by the texts that node.toml names now (raises ConfigError)."""
        if self.serving is not None:
            self.serving.expect(experts_of(self._session.config, self._session.home))

    async def renew_engine(self) -> None:
        """Answer with an engine of the size that node.toml says now; it takes until the old one is idle (raises Retry)."""
        if self.serving is not None:
            config = self._session.config
            await self.serving.renew(load_of(config), preload=config.serve.preload)

    async def stop(self) -> None:
        """End the engine."""
        if self.serving is not None:
            await self.serving.stop()

    async def _preload(self, serving: Serving) -> None:
        """Load the model; meanwhile the API says at /ready that it is missing."""

        async def loaded() -> None:
            while not serving.running:
                await serving.start(preload=True)

        await lasting(loaded, log=log, event="not-loaded", rest_s=_RETRY_S)

    def _up(self, port: int) -> None:
        self.port = port
        log.info("event=api-up port=%s", port)

    def _facts(self) -> Facts:
        head = self._session.store.head(self._seat.collective, self._seat.me)
        releases = self._seat.fold.releases
        return Facts(
            node=self._session.config.node.name,
            head=head.root if head else ZERO,
            release=releases[-1].digest if releases else None,
            ready={**self._ready(), **self._loaded()},
        )

    def _loaded(self) -> dict[str, bool]:
        """The engine, where it is to be loaded before requests come."""
        return {"engine": bool(self.serving and self.serving.running)} if self._session.config.serve.preload else {}

    # -- who used it -------------------------------------------------------------------------------------------------
    def _judge(self, grants: tuple[str, ...], purpose: str, now: int) -> tuple[str, ...]:
        """What the ledger says against the grants that an API key rests on."""
        return key_grants.against(self._seat.book, self._seat.past(), self._seat.me, grants, purpose, now)

    def tell(self, *, ending: bool = False) -> None:
        """Write what was decided on API keys into our feed, when it is time or at the end."""
        if not (self._access.due or ending):
            return
        try:
            self._access.write(self._seat.append)
        except FishernetError as e:
            if isinstance(e, Fatal) and not ending:
                raise
            log.log(logging.WARNING if ending else logging.DEBUG, "event=served-not-told code=%s", e.code)

    def keep(self) -> None:
        """Put what could not be written into a file; the next start takes it up."""
        with contextlib.suppress(OSError):
            self._access.keep(self._session.home.served_counts)

    def status(self) -> dict[str, Json]:
        """What `fishernet status` shows of it."""
        return {
            "url": f"http://{self._session.config.serve.host}:{self.port}/v1" if self.port else None,
            "ready": bool(self.serving and self.serving.running),
            "models": [m.name for m in self.serving.models()] if self.serving else [],
        }


def load_of(config: NodeConfig) -> Load:
    """How much the engine takes on."""
    serve = config.serve
    return Load(
        threads=config.train.threads,
        rows=serve.rows,
        max_active=serve.max_active,
        ram=serve.adapter_mib,
        dtype=None if serve.precision == "auto" else serve.precision,
    )


def experts_of(config: NodeConfig, home: Home) -> Mapping[str, str]:
    """What the operator says models are for (raises ConfigError: a file that is named cannot be read)."""
    return configured(config.serve.experts, home.path)
