"""`jmapfs`: its commands together, and what becomes of their errors.

Errors that were foreseen are one line on stderr and their exit code (see `jmapfs.errors`); what
was not is a bug, with its traceback.

Nothing that is imported here needs FUSE: the commands that do import it when they are called.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from jmapfs import __version__
from jmapfs.cli import mount_command
from jmapfs.cli.output import console, escaped
from jmapfs.cli.signals import InterruptedBySignal
from jmapfs.cli.snapshot_command import snapshot_command
from jmapfs.cli.snapshots_command import diff_command, prune_command, snapshots_command
from jmapfs.cli.verify_command import verify_command
from jmapfs.errors import JmapfsError, MountpointError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="jmapfs")
def cli() -> None:
    """Mount a JMAP mail account as a read-only file tree."""


_SNAPSHOT_COMMANDS = (
    snapshot_command,
    snapshots_command,
    verify_command,
    diff_command,
    prune_command,
)

for _command in (*mount_command.ALL, *_SNAPSHOT_COMMANDS):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        sys.exit(cli.main(standalone_mode=False))
    except JmapfsError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ImportError as error:
        if "fuse" not in str(error):
            raise
        _fail(f"mounts need libfuse3 and pyfuse3: {error}", MountpointError.exit_code)
    except InterruptedBySignal as error:
        _fail(str(error) or "interrupted", INTERRUPTED)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", INTERRUPTED)


def _fail(message: str, exit_code: int) -> NoReturn:
    console.print(f"jmapfs: {escaped(message)}", markup=False)
    sys.exit(exit_code)
