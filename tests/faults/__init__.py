"""Faults of a network or server, and a proxy that injects them between jmapfs and any server."""
