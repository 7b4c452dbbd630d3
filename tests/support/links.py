"""A network link in user space: frames between pairs of TAP devices, with a rate, a delay and a loss in each direction.

For kernels without `tc netem`. `namespaces.Lab` starts one such process in its switch namespace and tells it in lines of JSON on
stdin what to forward: {"number": 3, "near": "a3", "far": "b3", "up": SHAPE, "down": SHAPE} with SHAPE = {"rate_bit", "delay_ms",
"loss", "queue_ms"}; up is from near to far. {"number": 3} alone ends that link. Each line is answered by one line. Ends at EOF.
Knows no addresses. Law: frames of one direction keep their order, and at most `queue_ms` of them wait for the line to be free.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import sys
import time
from dataclasses import dataclass, field

_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_FRAME = 65_600
_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One direction: bits a second (0 = any), delay, share of lost frames, and how long a queue the sender's end has."""

    rate_bit: int = 0
    delay_ms: float = 0.0
    loss: float = 0.0
    queue_ms: float = 1000.0


@dataclass(slots=True, kw_only=True)
class Lane:
    """One direction of one link, from a device to another."""

    source: int
    target: int
    shape: Shape
    free_at: float = 0.0


@dataclass(slots=True)
class Wire:
    """All lanes of this process, and the frames that are on their way."""

    rng: random.Random
    lanes: dict[int, Lane] = field(default_factory=dict)  # by the device that it reads
    links: dict[int, tuple[int, int]] = field(default_factory=dict)
    _flying: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _count: int = 0

    def take(self, lane: Lane, frame: bytes, now: float) -> None:
        """Send a frame on its way, or drop it: by chance, or because the line is busy for too long."""
        shape = lane.shape
        starts = max(now, lane.free_at)
        if starts - now > shape.queue_ms / 1000:
            return
        if shape.rate_bit:
            starts = lane.free_at = starts + len(frame) * 8 / shape.rate_bit
        if self.rng.random() < shape.loss:
            return  # it took its time on the line
        self._count += 1
        heapq.heappush(self._flying, (starts + shape.delay_ms / 1000, self._count, lane.target, frame))

    def deliver(self, now: float) -> float | None:
        """Hand over what has arrived; the seconds until the next frame does."""
        while self._flying and self._flying[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._flying)
            try:
                os.write(target, frame)
            except OSError:
                continue  # the device is down, gone or full: the frame is lost, as frames are
        return max(0.0, self._flying[0][0] - now) if self._flying else None


def tap(name: str) -> int:
    """Open the TAP device of that name in this network namespace, made when it is not there."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _TAP_WITHOUT_HEADER))
    return device


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    wire, ready = Wire(random.Random(seed)), selectors.DefaultSelector()
    ready.register(0, selectors.EVENT_READ)
    told = b""
    while True:
        wait = wire.deliver(time.monotonic())
        for key, _ in ready.select(wait):
            if key.fd == 0:
                data = os.read(0, 65_536)
                if not data:
                    return
                *lines, told = (told + data).split(b"\n")
                for line in lines:
                    change(wire, ready, json.loads(line))
                    os.write(1, b"done\n")
            elif key.fd in wire.lanes:
                drain(wire, wire.lanes[key.fd])


def change(wire: Wire, ready: selectors.BaseSelector, order: dict) -> None:
    """Make, reshape or end one link."""
    number = order["number"]
    if "up" not in order:
        for device in wire.links.pop(number, ()):
            ready.unregister(device)
            del wire.lanes[device]
            os.close(device)
        return
    if number not in wire.links:
        near, far = wire.links[number] = tap(order["near"]), tap(order["far"])
        for device in (near, far):
            ready.register(device, selectors.EVENT_READ)
        wire.lanes[near] = Lane(source=near, target=far, shape=Shape())
        wire.lanes[far] = Lane(source=far, target=near, shape=Shape())
    near, far = wire.links[number]
    wire.lanes[near].shape, wire.lanes[far].shape = Shape(**order["up"]), Shape(**order["down"])


def drain(wire: Wire, lane: Lane) -> None:
    """Take the frames that wait at a device, a bounded number, so that no lane starves another."""
    for _ in range(_AT_ONCE):
        try:
            frame = os.read(lane.source, _FRAME)
        except BlockingIOError:
            return
        except OSError:
            return  # the device is down
        wire.take(lane, frame, time.monotonic())


if __name__ == "__main__":
    main()
