"""jmapfs: a JMAP mail account as a read-only file tree.

The packages are layers, and each imports only from the layers below it. ARCHITECTURE.md lists the
layers and their modules.
"""

__version__ = "0.1.0"
