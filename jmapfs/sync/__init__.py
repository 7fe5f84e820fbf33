"""Keeping the index true to the server: the first listing, and what changes after it."""

from jmapfs.sync.synchronizer import ListingReport, Synchronizer

__all__ = ["ListingReport", "Synchronizer"]
