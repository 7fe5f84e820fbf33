"""What things are called in the tree: names of files and directories, and inode numbers.

Pure functions of what the server says, so that two machines, or one after its cache was lost,
arrive at the same tree. Nothing above this package makes up a name or a number.
"""

from jmapfs.names.email import SUFFIX, email_stem, numbered_name
from jmapfs.names.inode import (
    ABOUT_INODE,
    ROOT_INODE,
    account_slots,
    directory_inode,
    email_inode,
    in_account,
    inode_slot,
    of_account,
)
from jmapfs.names.mailbox import sibling_names
from jmapfs.names.text import KEY_LENGTH, key, safe_text

__all__ = [
    "ABOUT_INODE",
    "KEY_LENGTH",
    "ROOT_INODE",
    "SUFFIX",
    "account_slots",
    "directory_inode",
    "email_inode",
    "email_stem",
    "in_account",
    "inode_slot",
    "key",
    "numbered_name",
    "of_account",
    "safe_text",
    "sibling_names",
]
