"""What crosses a boundary between members: ids, canonical bytes, signatures, sparse updates, wire messages.

Pure values and functions: no torch, network, disk, clock, event loop or logging. `FORMAT.md` is the normative text.
"""
