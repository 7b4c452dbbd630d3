"""The running node: config, swarm, sync, gate, rounds, voting, serving, HTTP API, daemon and command line."""
