"""The kernel's side: pyfuse3's operations, answered from the tree and the content. No more."""

from jmapfs.fuse.operations import FileContent, MailOperations

__all__ = ["FileContent", "MailOperations"]
