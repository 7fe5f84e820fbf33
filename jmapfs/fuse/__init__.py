"""The kernel's side: pyfuse3's operations, answered from the tree and the content. No more."""

from jmapfs.fuse.operations import FileContent, MailOperations
from jmapfs.fuse.page_cache import KernelPages

__all__ = ["FileContent", "KernelPages", "MailOperations"]
