"""The entry point of `jmapfs` and `python -m jmapfs`.

Importing a command takes up to half a second. During the import, Ctrl-C ends the process silently,
without the traceback of the module that is being imported. After the import, `jmapfs.cli.main`
restores Python's handler of SIGINT.
"""

import os
import signal
import sys
from typing import NoReturn


def _open_standard_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that the caller has closed.

    Otherwise Python has None in its place, and the next file or pipe gets its number.
    """
    # A file gets the lowest free number.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - positional only
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    _open_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jmapfs.cli.main import main as run_command_line  # noqa: PLC0415 - not before that

    run_command_line()


def mount_helper() -> NoReturn:
    """Mount for mount(8), and exit with a code of mount(8)."""
    _open_standard_streams()
    from jmapfs.cli.mount_helper import main as run_helper  # noqa: PLC0415 - only for this command

    run_helper()


if __name__ == "__main__":
    main()
