"""Snapshots: dated copies of an account on disk, that can be trusted without jmapfs."""
