"""Taking up a changed node.toml while the node runs: what can change at once changes, what cannot is named.

First everything is read and checked, then the parts are told one after another; what a part cannot take is said and the rest
goes on. Knows of each part only how it takes new settings. Invariant: a file that is not acceptable changes nothing, and
settings that need a restart stay as they were in the running node, so that every reload names them again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Final

from node.data.egress import policy_of
from node.logs import Logs
from node.parts import Parts, feed_rates, guard_limits, swarm_config
from node.sections import NodeConfig
from node.serving.front import Front, experts_of
from protocol.canon import Json
from protocol.errors import Fatal, FishernetError

log = logging.getLogger("fishernet.reloading")

RESTART: Final[Mapping[str, str]] = {
    "node.collective": "a home works in one collective",
    "node.model": "the base model is loaded at the start",
    "serve.host": "the API's socket is bound at the start",
    "serve.port": "the API's socket is bound at the start",
    "ledger.post_quantum": "the key is made at the start",
}
# What is told to whom: sections and keys. Every key that is not here is read where it is used, each time.
_CONCERNED: Final[Mapping[str, frozenset[str]]] = {
    "log": frozenset({"log"}),
    "network": frozenset({"network"}),
    "egress": frozenset({"egress"}),
    "limits": frozenset({"limits"}),
    "api_keys": frozenset({"serve.api_keys"}),
    "experts": frozenset({"serve.experts"}),
    "engine": frozenset({"serve.rows", "serve.max_active", "serve.adapter_mib", "serve.precision", "train.threads"}),
    "measured": frozenset({"train.datasets", "train.held_out_rows", "train.length", "train.purpose", "train.threads"}),
    "heartbeat": frozenset({"ledger.heartbeat_s"}),
}


def differing(old: NodeConfig, new: NodeConfig) -> tuple[str, ...]:
    """The keys, as SECTION.KEY in the order of the file, whose values differ."""
    before, after = old.model_dump(), new.model_dump()
    return tuple(f"{s}.{key}" for s, keys in after.items() for key, value in keys.items() if before[s][key] != value)


def kept(old: NodeConfig, new: NodeConfig, keys: Iterable[str]) -> NodeConfig:
    """`new`, with the values of `old` for `keys`."""
    for each in keys:
        section, _, key = each.partition(".")
        held = getattr(new, section).model_copy(update={key: getattr(getattr(old, section), key)})
        new = new.model_copy(update={section: held})
    return new


class Reloading:
    """The one who turns the running parts to other settings."""

    def __init__(
        self,
        parts: Parts,
        front: Front,
        logs: Logs,
        *,
        use_data: Callable[[], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        """`use_data` measures anew on the data sets that are configured, `spawn` lets work go on as long as the node runs."""
        self._parts, self._front, self._logs = parts, front, logs
        self._use_data, self._spawn = use_data, spawn

    def reload(self) -> dict[str, Json]:
        """Read node.toml and go on with it; returns {"changed", "restart": {key: why}, "failed": {key: cause}}.

        Raises:
            ConfigError and other Refused kinds: the file is not acceptable; nothing has changed.
        """
        session = self._parts.session
        old, new = session.config, session.home.read_config()
        keys = differing(old, new)
        restart = {key: RESTART[key] for key in keys if key in RESTART}
        live = tuple(key for key in keys if key not in restart)
        wanted = kept(old, new, restart)
        self._check(wanted)
        session.config = wanted
        failed = self._tell(wanted, frozenset(live))
        changed = [key for key in live if key not in failed]
        log.info(
            "event=reloaded changed=%s restart=%s failed=%s",
            ",".join(changed) or "-",
            ",".join(restart) or "-",
            ",".join(failed) or "-",
        )
        return {"changed": list(changed), "restart": dict(restart), "failed": dict(failed)}

    def _check(self, new: NodeConfig) -> None:
        """Everything that can be seen to be wrong before anything changes."""
        self._logs.check(new.log)
        experts_of(new, self._parts.session.home)
        swarm_config(self._parts.session, new).check()

    def _tell(self, new: NodeConfig, changed: frozenset[str]) -> dict[str, str]:
        """Turn each part that a changed key concerns; the keys whose part could not, with the cause."""
        parts, front = self._parts, self._front

        def measured() -> None:
            parts.permits.purpose = new.train.purpose
            self._later(parts.trainer.use(threads=new.train.threads, length=new.train.length))
            self._use_data()

        def limits() -> None:
            parts.guard.use(guard_limits(new.limits))
            parts.growth.use(feed_rates(new.limits))

        turns: Mapping[str, Callable[[], object]] = {
            "log": lambda: self._logs.turn(new.log),
            "network": lambda: parts.swarm.reconfigure(swarm_config(parts.session, new)),
            "limits": limits,
            "egress": lambda: parts.egress.use(policy_of(new.egress)),
            "api_keys": front.use_keys,
            "experts": front.use_experts,
            "engine": lambda: self._later(front.renew_engine()),
            "measured": measured,
            "heartbeat": lambda: parts.witnessing.beat_every(new.ledger.heartbeat_s),
        }
        failed = dict[str, str]()
        for name, concerned in _CONCERNED.items():
            mine = [key for key in changed if key in concerned or key.partition(".")[0] in concerned]
            if mine and (cause := _tried(turns[name])):
                failed |= dict.fromkeys(mine, cause)
        return failed

    def _later(self, work: Coroutine[None, None, None]) -> None:
        """Let what waits for others' work go on beside us; its trouble is said in the log."""

        async def run() -> None:
            try:
                await work
            except FishernetError as e:
                log.warning("event=not-reloaded code=%s cause=%s", e.code, e)

        self._spawn(run())


def _tried(turn: Callable[[], object]) -> str:
    try:
        turn()
    except FishernetError as e:
        if isinstance(e, Fatal):
            raise
        log.warning("event=not-reloaded code=%s cause=%s", e.code, e)
        return str(e)
    return ""
