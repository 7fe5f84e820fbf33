"""Keeping the index true to the server: the first listing, and what changes after it."""

from jmapfs.sync.listing import ListingReport
from jmapfs.sync.synchronizer import Synchronizer

__all__ = ["ListingReport", "Synchronizer"]
