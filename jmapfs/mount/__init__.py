"""The life of a mount: its daemon, its control socket, its end."""

from jmapfs.mount.background import run_in_background
from jmapfs.mount.choosing import mail_accounts
from jmapfs.mount.control import ask
from jmapfs.mount.daemon import Stopped, run_daemon
from jmapfs.mount.logs import log_to_file, log_to_stderr
from jmapfs.mount.mountinfo import mount_at, mounts
from jmapfs.mount.mountpoint import check, resolve
from jmapfs.mount.options import MountOptions, parse_options
from jmapfs.mount.places import (
    default_cache_root,
    log_path,
    socket_directory,
    socket_name,
)
from jmapfs.mount.prefetching import PREFETCH_STEP, FetchedMails, MissingMails, Reason
from jmapfs.mount.report import PipeReport, Report
from jmapfs.mount.request import AccountSource, MountRequest
from jmapfs.mount.unmounting import unmount

__all__ = [
    "PREFETCH_STEP",
    "AccountSource",
    "FetchedMails",
    "MissingMails",
    "MountOptions",
    "MountRequest",
    "PipeReport",
    "Reason",
    "Report",
    "Stopped",
    "ask",
    "check",
    "default_cache_root",
    "log_path",
    "log_to_file",
    "log_to_stderr",
    "mail_accounts",
    "mount_at",
    "mounts",
    "parse_options",
    "resolve",
    "run_daemon",
    "run_in_background",
    "socket_directory",
    "socket_name",
    "unmount",
]
