"""What the account looks like as files: directories, names, attributes; from the index alone.

It knows of no kernel and no network, and everything that shows or copies the tree stands on it.
"""

from jmapfs.tree.about import ABOUT_NAME, About
from jmapfs.tree.attributes import Attributes, Kind, Ownership
from jmapfs.tree.layout import Directory, Layout, lay_out
from jmapfs.tree.view import DirectoryListing, Tree

__all__ = [
    "ABOUT_NAME",
    "About",
    "Attributes",
    "Directory",
    "DirectoryListing",
    "Kind",
    "Layout",
    "Ownership",
    "Tree",
    "lay_out",
]
