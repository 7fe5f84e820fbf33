"""Mount namespaces for tests.

A new namespace has copies of all mounts. A copy keeps the daemon of a mount alive after its
unmount, so other tests would find that their daemons do not end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_SCRIPT: Final = r"""
mapfile -t mounts </proc/self/mountinfo
for line in "${mounts[@]}"; do
    read -r _ _ _ _ path _ <<<"$line"
    if [[ $line == *" - fuse.jmapfs "* && $path/ != "$0"/* ]]; then
        umount --lazy "$(printf %b "$path")"
    fi
done
exec "$@"
"""


def new_namespace(*options: str, keep: Path) -> list[str]:
    """Return the beginning of a command that runs in a new mount namespace.

    Of the mounts of jmapfs, it has only those at and below `keep`. `options` are more options of
    unshare(1).
    """
    return ["unshare", "--mount", *options, "bash", "-c", _SCRIPT, str(keep)]
