"""jmapfs: a JMAP mail account as a read-only file tree.

The layers, from the bottom: `errors`, `lock`, `names`, `jmap`, `index` and `cache`, `sync` and
`fetch`, `tree`, `fuse` and `account` and `control`, `mount` and `snapshot`, `cli`. Each imports
only from those below it; ARCHITECTURE.md tells why.
"""

__version__ = "0.1.0"
