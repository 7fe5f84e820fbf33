"""What `jmapfs` and `python -m jmapfs` run: the commands, once they are imported.

That takes a third of a second. Ctrl-C meanwhile ends the process as it does any other, without
the traceback of whatever was just being imported.
"""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jmapfs.cli.main import main as run_command_line

    signal.signal(signal.SIGINT, handler)
    run_command_line()


if __name__ == "__main__":
    main()
