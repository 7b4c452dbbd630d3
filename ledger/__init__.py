"""The record: signed feeds, their store, the fold that turns events into state, votes, audit. No torch, no network."""
