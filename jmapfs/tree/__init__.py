"""What the account looks like as files: directories, names, attributes; from the index alone.

It knows of no kernel and no network, and everything that shows or copies the tree stands on it.
"""

from jmapfs.tree.about import ABOUT_NAME, About, Reachability, time_text
from jmapfs.tree.attributes import Attributes, Kind, Ownership, file_attributes
from jmapfs.tree.combined import CombinedTree
from jmapfs.tree.layout import Directory, Layout, lay_out
from jmapfs.tree.mails import FIRST, Mail, MailboxPlace, MailsInOrder, MailsPart
from jmapfs.tree.view import DirectoryListing, Tree, TreeView

__all__ = [
    "ABOUT_NAME",
    "FIRST",
    "About",
    "Attributes",
    "CombinedTree",
    "Directory",
    "DirectoryListing",
    "Kind",
    "Layout",
    "Mail",
    "MailboxPlace",
    "MailsInOrder",
    "MailsPart",
    "Ownership",
    "Reachability",
    "Tree",
    "TreeView",
    "file_attributes",
    "lay_out",
    "time_text",
]
