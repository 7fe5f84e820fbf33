"""The life of a mount: its daemon, what it answers, its end."""

from jmapfs.mount.background import run_in_background
from jmapfs.mount.daemon import Stopped, run_daemon
from jmapfs.mount.logs import log_to_file, log_to_stderr
from jmapfs.mount.mountpoint import check
from jmapfs.mount.options import MountOptions, parse_options
from jmapfs.mount.places import log_path
from jmapfs.mount.prefetching import PREFETCH_STEP, FetchedMails, MissingMails, Reason
from jmapfs.mount.report import PipeReport, Report
from jmapfs.mount.request import MountRequest
from jmapfs.mount.unmounting import unmount

__all__ = [
    "PREFETCH_STEP",
    "FetchedMails",
    "MissingMails",
    "MountOptions",
    "MountRequest",
    "PipeReport",
    "Reason",
    "Report",
    "Stopped",
    "check",
    "log_path",
    "log_to_file",
    "log_to_stderr",
    "parse_options",
    "run_daemon",
    "run_in_background",
    "unmount",
]
