"""The active slots: adapters that the next step may use, by number. Slot 0 is the bare base.

On the CPU a slot is a reference to the adapter's own block: activation copies nothing and an active adapter costs no
second memory. On another device the block is copied there in one piece. Knows no requests: who may go is the scheduler's
decision.

Invariant: a slot's adapter never changes while the slot is taken, and a slot that rows use is not given back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from node.serving.engine.adapter import HostAdapter, Pair
from node.serving.engine.model import ModelShape

SMALLEST_BUCKET = 8


class Pool:
    """Up to `slots` active adapters, and at most `budget` bytes of them on a device of its own memory."""

    def __init__(
        self, shape: ModelShape, *, slots: int, device: torch.device, dtype: torch.dtype, budget: int | None = None
    ) -> None:
        self._shape, self._device, self._dtype, self._budget = shape, device, dtype, budget
        self.slots = slots
        self._free = list(range(slots, 0, -1))
        self._watch: Callable[[int], None] = lambda _slot: None
        self._sites: dict[int, Mapping[str, Pair]] = {}
        self._bytes: dict[int, int] = {}
        self._held: dict[int, HostAdapter] = {}
        self._shared: WeakValueDictionary[int, Tensor] = WeakValueDictionary()  # by the address of the held original

    def watch(self, activated: Callable[[int], None]) -> None:
        """Call `activated` with every slot that is filled from now on."""
        self._watch = activated

    def put(self, adapter: HostAdapter) -> int:
        """Take a slot for the adapter. Raises MemoryError: none is free."""
        if not self._free or (self._budget is not None and sum(self._bytes.values()) + adapter.nbytes > self._budget):
            raise MemoryError("couldn't activate adapter: no slot is free; deactivate one first")
        slot = self._free.pop()
        on_cpu = self._device.type == "cpu"
        self._sites[slot] = adapter.sites if on_cpu else _moved(adapter, self._device, self._shared)
        self._bytes[slot] = adapter.nbytes
        self._held[slot] = adapter
        self._watch(slot)
        return slot

    def remove(self, slot: int) -> None:
        """Give the slot back."""
        del self._sites[slot], self._bytes[slot], self._held[slot]
        self._free.append(slot)

    def pair(self, slot: int, site: str) -> Pair | None:
        """What the adapter in `slot` adds at `site`; None: nothing."""
        return self._sites[slot].get(site)

    def free(self, rank: int) -> int:
        """How many more adapters of this rank surely find a slot; ranks count as the next power of two."""
        if self._budget is None:
            return len(self._free)
        left = self._budget - sum(self._bytes.values())
        return min(len(self._free), left // most_bytes(self._shape, bucket(rank), self._dtype))


def bucket(rank: int) -> int:
    """The power of two, at least 8, that a rank is counted as."""
    return max(SMALLEST_BUCKET, 1 << math.ceil(math.log2(rank)))


def most_bytes(shape: ModelShape, rank: int, dtype: torch.dtype) -> int:
    """Bytes of an adapter of this rank on every linear."""
    row = sum(site.layers * (len(site.parts) * site.width + sum(site.outs)) for site in shape.sites)
    return row * rank * dtype.itemsize


def _moved(adapter: HostAdapter, device: torch.device, shared: MutableMapping[int, Tensor]) -> Mapping[str, Pair]:
    """The adapter's block on the device in one copy; a shared A goes there once."""
    blob = adapter.blob.to(device, non_blocking=True)
    begin, end = adapter.blob.data_ptr(), adapter.blob.data_ptr() + adapter.nbytes

    def view(host: Tensor) -> Tensor:
        if not begin <= host.data_ptr() < end:
            if (there := shared.get(host.data_ptr())) is None:
                shared[host.data_ptr()] = there = host.to(device, non_blocking=True)
            return there
        return blob[host.storage_offset() : host.storage_offset() + host.numel()].view(host.shape)

    return {name: Pair(a=view(pair.a), b=view(pair.b), parts=pair.parts) for name, pair in adapter.sites.items()}
