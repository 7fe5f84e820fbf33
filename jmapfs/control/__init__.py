"""Talking to a running mount: where it is, what can be asked of it, and how it answers.

Nothing here needs FUSE: whoever asks a mount need not be able to mount.
"""

from jmapfs.control.asking import SYNC_SECONDS, ask
from jmapfs.control.holding import Hold, hold, hold_over
from jmapfs.control.mountinfo import SUBTYPE, Mount, mount_at, mount_of, mounts, require_mount
from jmapfs.control.places import file_stem, resolve, socket_directory, socket_name
from jmapfs.control.protocol import Answer, Request
from jmapfs.control.serving import Command, Session, SessionCommand, control_socket

__all__ = [
    "SUBTYPE",
    "SYNC_SECONDS",
    "Answer",
    "Command",
    "Hold",
    "Mount",
    "Request",
    "Session",
    "SessionCommand",
    "ask",
    "control_socket",
    "file_stem",
    "hold",
    "hold_over",
    "mount_at",
    "mount_of",
    "mounts",
    "require_mount",
    "resolve",
    "socket_directory",
    "socket_name",
]
