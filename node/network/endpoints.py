"""What a swarm needs to know of this machine before it starts: its transport key, and whether its ports are free.

Reads files and asks the system, starts nothing. Invariant: what is wrong is said before p2pd is started, which would
share a taken port silently or end without a reason.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

from nacl.signing import SigningKey

from node.errors_network import BadTransport, PortTaken
from protocol import addresses
from protocol.errors import Malformed, Refused

_IDENTITY_PREFIX = bytes((0x08, 0x01, 0x12, 0x40))  # libp2p crypto.proto: Ed25519, 64 bytes of seed and public key


def read_identity(path: Path) -> SigningKey:
    """The transport key in the identity file of p2pd.

    Raises:
        BadTransport: there is none, or it is not of the form that p2pd reads.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise BadTransport(f"couldn't read transport key {path}: {e.strerror}") from None
    if len(raw) != 68 or not raw.startswith(_IDENTITY_PREFIX):
        raise BadTransport(f"couldn't read transport key {path}: not an Ed25519 identity of 68 bytes")
    return SigningKey(raw[4:36])


def check_listen(listen: Iterable[str]) -> tuple[str, ...]:
    """Addresses of this machine to listen on.

    Raises:
        Malformed: one of them is none.
    """
    checked = tuple(addresses.check_address(address) for address in listen)
    if any(addresses.is_circuit(address) for address in checked):
        raise Malformed("couldn't listen on a circuit: name the relay in `relays` instead")
    return checked


def is_local(listen: Iterable[str]) -> bool:
    """Whether only this machine can reach us there."""
    hosts = [addresses.host(address) for address in listen]
    return all(kind in {"ip4", "ip6"} and ipaddress.ip_address(name).is_loopback for kind, name in hosts)


def check_ports(listen: Iterable[str]) -> None:
    """See whether we can listen on each address (p2pd sets SO_REUSEPORT and would not notice).

    Raises:
        PortTaken: somebody else does.
    """
    for address in listen:
        _, family, host, _, number = address.split("/")
        if family not in ("ip4", "ip6") or number == "0":
            continue
        with socket.socket(socket.AF_INET if family == "ip4" else socket.AF_INET6) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(number)))
            except OSError as e:
                raise PortTaken(
                    f"couldn't listen on {address}: {e.strerror}",
                    hint="choose another port in node.toml, or stop the other program",
                ) from None


def with_port(listen: tuple[str, ...], visible: tuple[str, ...]) -> tuple[str, ...]:
    """A single address with port 0 keeps, in later lives, the port that the system chose."""
    ports = {addresses.port(address) for address in direct(visible)}
    if len(listen) == 1 and addresses.port(listen[0]) == 0 and len(ports) == 1:
        return (f"{listen[0].rsplit('/', 1)[0]}/{ports.pop()}",)
    return listen


def is_dialable(address: str) -> bool:
    """Whether others can use `address`: a TCP address with a port."""
    try:
        return addresses.port(addresses.check_address(address)) > 0
    except Refused:
        return False


def shown(visible: Iterable[str]) -> tuple[str, ...]:
    """What others are told of the addresses that p2pd sees: at most 8 that can be dialled, 3 of them circuits.

    Loopback is told only where there is nothing else: elsewhere it would be somebody else's.
    """
    visible = tuple(visible)
    circuits = [address for address in visible if is_dialable(address) and addresses.is_circuit(address)][:3]
    here = direct(visible)
    outside = [address for address in here if not is_local([address])]
    return tuple((outside or here)[: 8 - len(circuits)] + circuits)


def direct(visible: Iterable[str]) -> list[str]:
    """Those of p2pd's addresses that are TCP ports of this machine."""
    return [address for address in visible if is_dialable(address) and not addresses.is_circuit(address)]
