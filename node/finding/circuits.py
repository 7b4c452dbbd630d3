"""The messages of libp2p's circuit relay v2, as far as a relay needs them: bytes in, values out. Knows no network.

Protocol buffers of https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md, each behind its length as a varint. Unknown
fields are skipped, as protocol buffers ask. Invariant: a message that is read names a type and, where it has to, an Ed25519 peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.errors import Malformed

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE: Final = 4096
RESERVE, CONNECT = 0, 1  # what is asked of a relay
OK, RESOURCE_LIMIT, PERMISSION_DENIED, CONNECTION_FAILED, NO_RESERVATION, MALFORMED = 100, 201, 202, 203, 204, 400

_HOP_STATUS, _STOP_CONNECT, _STOP_STATUS = 2, 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a peer asks of a relay: a reservation, or a connection to the peer with this binary id."""

    kind: int
    peer: bytes = b""


def read_asked(message: bytes) -> Asked:
    """Read what follows the length (raises Malformed)."""
    fields = _fields(message)
    kind, target = fields.get(1), fields.get(2)
    if kind == RESERVE:
        return Asked(kind=RESERVE)
    peer = _fields(target).get(1) if isinstance(target, bytes) else None
    if kind != CONNECT or not isinstance(peer, bytes) or len(peer) != 38:
        raise Malformed("couldn't read a relay's message: a reservation or a connection to an Ed25519 peer is expected")
    return Asked(kind=CONNECT, peer=peer)


def read_stop_status(message: bytes) -> int:
    """The status with which the other end answers a connection (raises Malformed)."""
    fields = _fields(message)
    status = fields.get(4)
    if fields.get(1) != _STOP_STATUS or not isinstance(status, int):
        raise Malformed("couldn't read a relay's message: a status is expected")
    return status


def status(code: int) -> bytes:
    """A relay's answer."""
    return _framed(_number(1, _HOP_STATUS) + _number(5, code))


def reserved(expires: int) -> bytes:
    """A relay's answer to a reservation, which ends at `expires` (s since 1970); it states no limit of time or bytes."""
    return _framed(_number(1, _HOP_STATUS) + _bytes(3, _number(1, expires)) + _number(5, OK))


def stop_connect(source: bytes) -> bytes:
    """Tell the other end that the peer with this binary id wants to be connected."""
    return _framed(_number(1, _STOP_CONNECT) + _bytes(2, _bytes(1, source)))


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Fields by number, the last one of each; numbers and bytes only."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == 2:
            if at + value > len(message):
                raise Malformed("couldn't read a relay's message: it ends early")
            found[tag >> 3] = message[at : at + value]
            at += value
        elif tag & 7 == 0:
            found[tag >> 3] = value
        else:
            raise Malformed("couldn't read a relay's message: no such field")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 63, 7):
        if at >= len(message):
            raise Malformed("couldn't read a relay's message: it ends early")
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise Malformed("couldn't read a relay's message: a number is too large")


def _written(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes((number,))


def _number(field: int, value: int) -> bytes:
    return _written(field << 3) + _written(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _written(field << 3 | 2) + _written(len(value)) + value


def _framed(message: bytes) -> bytes:
    return _written(len(message)) + message
