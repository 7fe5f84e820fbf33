"""The entry point of `jmapfs` and `python -m jmapfs`.

Importing a command takes up to half a second. During the import, Ctrl-C ends the process silently,
without the traceback of the module that is being imported. After the import, `jmapfs.cli.main`
restores Python's handler of SIGINT.
"""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jmapfs.cli.main import main as run_command_line  # noqa: PLC0415 - not before that

    run_command_line()


def mount_helper() -> NoReturn:
    """Mount for mount(8), and exit with a code of mount(8)."""
    from jmapfs.cli.mount_helper import main as run_helper  # noqa: PLC0415 - only for this command

    run_helper()


if __name__ == "__main__":
    main()
