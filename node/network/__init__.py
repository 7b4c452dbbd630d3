"""Reaching other members: p2pd, the swarm, the three stream protocols, feeds and blobs kept up to date."""
