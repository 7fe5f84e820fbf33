"""Keeping the index true to the server: the first listing, and what changes after it."""

from jmapfs.sync.arrival import Arrival
from jmapfs.sync.keeper import Condition, Keeper, Opener
from jmapfs.sync.listing import ListingReport
from jmapfs.sync.synchronizer import Synchronizer, check_account

__all__ = [
    "Arrival",
    "Condition",
    "Keeper",
    "ListingReport",
    "Opener",
    "Synchronizer",
    "check_account",
]
