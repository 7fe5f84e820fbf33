"""An account at hand: how to get at it, where its index and blobs are, who writes the index."""

from jmapfs.account.choosing import mail_accounts, mail_accounts_of
from jmapfs.account.downloads import AccountBlobs, TotalTraffic
from jmapfs.account.lead import Lead
from jmapfs.account.places import account_directory, default_cache_root
from jmapfs.account.source import AccountSource

__all__ = [
    "AccountBlobs",
    "AccountSource",
    "Lead",
    "TotalTraffic",
    "account_directory",
    "default_cache_root",
    "mail_accounts",
    "mail_accounts_of",
]
