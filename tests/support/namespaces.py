"""A laboratory network on one machine: hosts in network namespaces, a switch, links with delay, loss and rate, cuts, NAT.

    with Lab() as lab:
        a, b, slow = lab.host("a"), lab.host("b"), lab.host("slow")
        lab.link(slow, rate_bit=256_000, delay_ms=150, loss=0.02)   # each direction; 300 ms for a round trip
        lab.cut([a], [b, slow]); lab.heal(); lab.block([a], [b])    # block: one direction only
        lab.nat(b, c)                                               # both behind one router that masquerades
        a.popen("python", "-m", "node", "up", "--home", "...")      # or Node.start with node.wrap = a.prefix
        a.socket(socket.AF_INET, socket.SOCK_DGRAM)                 # a socket of this process that lives at that host

The switch is a bridge in a namespace of its own, so that nothing of it reaches the machine's network. A shaped host's link goes
through `tc netem` where the kernel has it, else through a process of ours (`links.py`); other hosts use veth pairs directly.
Unix sockets and files are shared by all hosts: a test talks to its nodes through them. Needs root; `unavailable()` says why not.
Invariant: when the block has ended, however it ended, no namespace and no process of it is left; those of a killed test are swept
by the next `Lab`, which knows them by the process id and start time in their names.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from links import Shape
from netns import MADE, enter, existing, inside, own_prefix, pids_in, remove, run, sweep, tied


# -- whether it works here -------------------------------------------------------------------------------------------
@functools.cache
def unavailable() -> str | None:
    """Why there can be no laboratory on this machine; None when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [tool for tool in ("ip", "nsenter", "nft") if shutil.which(tool) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)} (Debian: iproute2, util-linux, nftables)"
    if not Path("/dev/net/tun").exists():
        return "user-space links need /dev/net/tun"
    name = f"{own_prefix()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"couldn't make a network namespace: {tried.stderr.strip()}"
    try:
        table = (
            "table bridge try { chain c { type filter hook forward priority 0; }; }\n"
            "table ip try { chain c { type nat hook postrouting priority 100; masquerade; }; }\n"
        )
        for command, text in (("ip -batch -", "link add br0 type bridge\n"), ("nft -f -", table)):
            tried = subprocess.run([*inside(name), *command.split()], input=text, capture_output=True, text=True)
            if tried.returncode:
                return f"couldn't use a namespace ({command}): {tried.stderr.strip()[:200]}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return None


# -- the laboratory --------------------------------------------------------------------------------------------------
class Host:
    """One machine of the laboratory: a network namespace with `eth0`."""

    def __init__(self, lab: Lab, name: str, number: int, address: str) -> None:
        self.name, self.number, self.address = name, number, address
        self.namespace = f"{lab.prefix}-{number}"
        self.port = f"v{number}"  # the switch's end of its cable
        self.behind: Host | None = None  # the router that hides it

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words to put before a command so that it runs at this host (in the same process id)."""
        return inside(self.namespace)

    def run(self, *command: str, timeout_s: float = 60.0, check: bool = True, **more: Any) -> Any:
        """Run a command at this host and return what it said."""
        more = {"capture_output": True, "text": True, **more}
        return subprocess.run([*self.prefix, *command], timeout=timeout_s, check=check, **more)

    def popen(self, *command: str, **more: Any) -> subprocess.Popen[Any]:
        """Start a process here; it dies with the thread that started it, and at the latest with the laboratory."""
        return subprocess.Popen([*self.prefix, *tied(), *command], **more)

    def socket(self, family: int, kind: int) -> socket.socket:
        """A socket of this process that sends and receives at this host for as long as it is open."""
        with self.entered():
            return socket.socket(family, kind)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is at this host for the block: so are sockets it makes and processes it starts in it."""
        with open("/proc/thread-self/ns/net") as home, (MADE / self.namespace).open() as there:
            enter(there.fileno())
            try:
                yield
            finally:
                enter(home.fileno())

    def pids(self) -> list[int]:
        """Processes that run at this host."""
        return pids_in(self.namespace)


class Lab:
    """A switch and its hosts, for the length of a `with` block."""

    _labs = 0

    def __init__(self, net: str = "10.77.0.0/16", *, seed: int = 0) -> None:
        """`net`: where hosts get addresses; it is known inside only. `seed`: which frames get lost."""
        Lab._labs += 1
        self.prefix = f"{own_prefix()}-{Lab._labs}"
        self._net, self._seed = ipaddress.ip_network(net), seed
        self._addresses = iter(self._net.hosts())
        self._switch = f"{self.prefix}-0"
        self._hosts: list[Host] = []
        self._routers = 0
        self._blocked: set[tuple[int, int]] = set()
        self._shaped: set[int] = set()
        self._links: subprocess.Popen[bytes] | None = None

    # life
    def __enter__(self) -> Lab:
        sweep()
        try:
            self._namespace(self._switch)
            self._ip(self._switch, "link add br0 type bridge forward_delay 0 mcast_snooping 0", "link set br0 up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._links is not None:
            self._links.kill()
            self._links.wait(10)
            for pipe in (self._links.stdin, self._links.stdout):
                if pipe is not None:
                    pipe.close()
        remove([name for name in existing() if name.startswith(self.prefix + "-")])

    # hosts
    def host(self, name: str = "") -> Host:
        """A new machine at the switch."""
        host = Host(self, name or f"host{len(self._hosts) + 1}", len(self._hosts) + 1, str(next(self._addresses)))
        self._hosts.append(host)
        self._namespace(host.namespace)
        self._ip(
            self._switch,
            f"link add {host.port} type veth peer name eth0 netns {host.namespace}",
            f"link set {host.port} master br0 up",
        )
        self._ip(host.namespace, f"address add {host.address}/{self._net.prefixlen} dev eth0", "link set eth0 up")
        return host

    def hosts(self, *names: str) -> list[Host]:
        """New machines of these names."""
        return [self.host(name) for name in names]

    def nat(self, *hosts: Host) -> Host:
        """Put machines behind a new router that masquerades; they get new, private addresses. Do it before they are used.

        The router is a host too (its `address` is the one that others see); nobody outside can open a connection inwards.
        """
        self._routers += 1
        router = self.host(f"router{self._routers}")
        inner = f"192.168.{self._routers}"
        self._ip(
            router.namespace,
            "link add lan type bridge forward_delay 0 mcast_snooping 0",
            f"address add {inner}.1/24 dev lan",
            "link set lan up",
        )
        for n, host in enumerate(hosts, 2):
            self._ip(self._switch, f"link delete {host.port}")
            self._ip(
                router.namespace,
                f"link add {host.port} type veth peer name eth0 netns {host.namespace}",
                f"link set {host.port} master lan up",
            )
            host.address, host.behind = f"{inner}.{n}", router
            self._ip(
                host.namespace,
                f"address add {host.address}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {inner}.1",
            )
        self._set(router.namespace, "net.ipv4.ip_forward", "1")
        self._nft(
            router.namespace,
            'table ip nat { chain post { type nat hook postrouting priority 100; oifname "eth0" masquerade; }; }\n'
            "table ip wall { chain forward { type filter hook forward priority 0; "
            'iifname "eth0" ct state new drop; }; }\n',
        )
        return router

    # links
    def link(
        self, host: Host, *, rate_bit: int = 0, delay_ms: float = 0.0, loss: float = 0.0, queue_ms: float = 1000.0
    ) -> None:
        """Shape a machine's link, the same in each direction: `delay_ms` is one way, `rate_bit` 0 is any. Works while it is used.

        All zero: the plain cable again. At most `queue_ms` of frames wait for a busy line, as in a modem; the rest is dropped.
        """
        assert host.behind is None, "shape the router, not the machine behind it"
        shape = Shape(rate_bit=rate_bit, delay_ms=delay_ms, loss=loss, queue_ms=queue_ms)
        plain = not (rate_bit or delay_ms or loss)
        if has_netem():
            self._netem(host, shape, plain)
        else:
            self._user_link(host, shape, plain)
        self._write_cuts()  # its port may be another one now

    def _netem(self, host: Host, shape: Shape, plain: bool) -> None:
        rate = f" rate {shape.rate_bit}bit" if shape.rate_bit else ""
        in_flight = (shape.delay_ms + shape.queue_ms) / 1000 * (shape.rate_bit or 1e9) / 8 / 1500
        what = f"netem delay {shape.delay_ms}ms loss {100 * shape.loss}%{rate} limit {max(8, int(in_flight))}"
        for namespace, device in ((host.namespace, "eth0"), (self._switch, host.port)):
            if not plain:
                run([*inside(namespace), "tc", "qdisc", "replace", "dev", device, "root", *what.split()])
            elif host.number in self._shaped:
                run([*inside(namespace), "tc", "qdisc", "delete", "dev", device, "root"])
        self._shaped = self._shaped - {host.number} if plain else self._shaped | {host.number}

    def _user_link(self, host: Host, shape: Shape, plain: bool) -> None:
        n = host.number
        if plain and n in self._shaped:
            self._ip(self._switch, f"link set {host.port} master br0")
            self._tell({"number": n})
            self._ip(self._switch, f"link delete s{n}")
            self._shaped.discard(n)
        elif not plain:
            both = {"up": asdict(shape), "down": asdict(shape)}
            self._tell({"number": n, "near": f"a{n}", "far": f"b{n}", **both})
            if n not in self._shaped:
                self._ip(
                    self._switch,
                    f"link add s{n} type bridge forward_delay 0 mcast_snooping 0",
                    f"link set s{n} up",
                    f"link set a{n} master s{n} up",
                    f"link set b{n} master br0 up",
                    f"link set {host.port} master s{n}",
                )
            self._shaped.add(n)

    def _tell(self, order: dict[str, Any]) -> None:
        """One order to the process of user-space links, started at the first one; returns when it was carried out."""
        if self._links is None:
            program = [sys.executable, "-IS", str(Path(__file__).parent / "links.py"), str(self._seed)]
            self._links = subprocess.Popen(
                [*inside(self._switch), *tied(), *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            with contextlib.suppress(OSError):  # its delays must not be those of a busy machine
                os.setpriority(os.PRIO_PROCESS, self._links.pid, -10)
        assert self._links.stdin is not None
        assert self._links.stdout is not None
        self._links.stdin.write(json.dumps(order).encode() + b"\n")
        self._links.stdin.flush()
        assert self._links.stdout.readline() == b"done\n", "the process of the links has ended"

    # cuts
    def cut(self, *groups: Sequence[Host]) -> None:
        """From now on nothing passes between machines of different groups; a machine in no group is not concerned."""
        for group in groups:
            for other in groups:
                if other is not group:
                    self._blocked |= {(a.number, b.number) for a in group for b in other}
        self._write_cuts()

    def block(self, sources: Sequence[Host], targets: Sequence[Host]) -> None:
        """From now on nothing passes from `sources` to `targets`; the other direction is not concerned."""
        self._blocked |= {(a.number, b.number) for a in sources for b in targets}
        self._write_cuts()

    def heal(self) -> None:
        """Take back all cuts."""
        self._blocked.clear()
        self._write_cuts()

    def _write_cuts(self) -> None:
        pairs = sorted({(self._port(a), self._port(b)) for a, b in self._blocked})
        assert all(a != b for a, b in pairs), "machines behind one router can't be cut from each other"
        text = "table bridge cuts {}\ndelete table bridge cuts\n"
        if pairs:
            named = ", ".join(f'"{a}" . "{b}"' for a, b in pairs)
            text += (
                "table bridge cuts { chain c { type filter hook forward priority 0; ether type arp accept; "
                f"iifname . oifname {{ {named} }} drop; }}; }}\n"
            )
        self._nft(self._switch, text)

    def _port(self, number: int) -> str:
        host = self._hosts[number - 1]
        host = host.behind or host
        return f"b{host.number}" if host.number in self._shaped and not has_netem() else host.port

    # tools
    def _namespace(self, name: str) -> None:
        run(["ip", "netns", "add", name])
        self._ip(name, "link set lo up")
        self._set(name, "net.ipv6.conf.all.disable_ipv6", "1")

    @staticmethod
    def _ip(namespace: str, *commands: str) -> None:
        run(["ip", "-n", namespace, "-batch", "-"], "\n".join(commands) + "\n")

    @staticmethod
    def _nft(namespace: str, text: str) -> None:
        run([*inside(namespace), "nft", "-f", "-"], text)

    @staticmethod
    def _set(namespace: str, key: str, value: str) -> None:
        file = Path("/proc/sys") / key.replace(".", "/")
        with open("/proc/thread-self/ns/net") as home, (MADE / namespace).open() as there:
            enter(there.fileno())
            try:
                if file.exists():
                    file.write_text(value)
            finally:
                enter(home.fileno())


@functools.cache
def has_netem() -> bool:
    """Whether the kernel has `tc netem`."""
    name = f"{own_prefix()}-try"
    run(["ip", "netns", "add", name])
    try:
        command = [*inside(name), "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        return shutil.which("tc") is not None and subprocess.run(command, capture_output=True).returncode == 0
    finally:
        run(["ip", "netns", "delete", name])
