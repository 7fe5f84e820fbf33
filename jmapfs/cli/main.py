"""The `jmapfs` command: its subcommands, and how their errors reach the user.

A `JmapfsError`, or an error in the command line, is printed on stderr as one line and sets the exit
code (see `jmapfs.errors`). Any other exception is a bug and leaves its traceback. All lines begin
with `jmapfs: `.

Each subcommand is imported when it is called: `jmapfs --help` is fast, and only `jmapfs mount`
needs FUSE.
"""

import importlib
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

import click

from jmapfs import __version__
from jmapfs.cli.log import show_warnings
from jmapfs.cli.options import escaped
from jmapfs.errors import JmapfsError, MountpointError, UsageError

INTERRUPTED: Final = 130

# For each command: its module in jmapfs.cli, and the first sentence of its docstring.
_COMMANDS: Final = {
    "accounts": ("mount_command", "List the accounts with mail that the user of ACCOUNT can see."),
    "diff": ("snapshots_command", "Show how the mail changed between two snapshots in DEST."),
    "freeze": ("freeze_command", "Hold MOUNTPOINT at its current state, for a backup."),
    "mount": ("mount_command", "Mount ACCOUNT at MOUNTPOINT, an empty directory."),
    "prefetch": ("prefetch_command", "Fetch all mail below each PATH into the cache."),
    "prune": ("snapshots_command", "Remove the snapshots in DEST that no rule keeps."),
    "snapshot": ("snapshot_command", "Copy the current mail of SOURCE into a directory of DEST."),
    "snapshots": ("snapshots_command", "List the snapshots in DEST, the oldest first."),
    "status": ("status_command", "Show the status of one mount, or of all mounts."),
    "sync": ("freeze_command", "Ask for changes now, and wait until MOUNTPOINT shows them."),
    "thaw": ("freeze_command", "End a freeze: MOUNTPOINT follows the account again."),
    "umount": ("freeze_command", "Unmount MOUNTPOINT, and wait until its daemon has ended."),
    "verify": ("verify_command", "Compare one snapshot, or all in DEST, with their checksums."),
    "watch": ("watch_command", "Print the names that change below MOUNTPOINT, or run a COMMAND."),
}


class LazyCommand(click.Command):
    """A listed command. Its module is not imported yet."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._name = name
        self._module = module

    def load(self) -> click.Command:
        """Import the command."""
        module = importlib.import_module(f"jmapfs.cli.{self._module}")
        command: click.Command = getattr(module, f"{self._name}_command")
        return command


class _LazyGroup(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, LazyCommand):
            command = command.load()
            # `jmapfs.__main__` sets SIG_DFL during the imports. Set Python's handler again.
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        return name, command, rest


@click.group(
    cls=_LazyGroup,
    commands=[LazyCommand(name, *where) for name, where in _COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="jmapfs")
def cli() -> None:
    """Mount a JMAP mail account as a read-only file tree."""


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(run(cli, "jmapfs"))


def run(command: click.Command, name: str) -> int:
    """Run a command, print its error, and return its exit code."""
    show_warnings()
    code, message = 0, ""
    try:
        code = command.main(prog_name=name, standalone_mode=False) or 0
    except JmapfsError as error:
        code, message = error.exit_code, str(error)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        code = error.exit_code
        error.show()
    except click.UsageError as error:
        path = name if error.ctx is None else error.ctx.command_path
        code = error.exit_code
        message = f"{error.format_message().rstrip('.')}: see {path} --help"
    except ImportError as error:
        if "fuse" not in str(error):
            raise
        code = MountpointError.exit_code
        message = f"mount needs libfuse3 and pyfuse3: {error}"
    except FileNotFoundError:
        if _has_working_directory():
            raise
        code, message = UsageError.exit_code, "the working directory was removed: change to another"
    except (KeyboardInterrupt, click.Abort) as error:
        code, message = INTERRUPTED, str(error) or "interrupted"
    if message:
        click.echo(f"jmapfs: {escaped(' '.join(message.split()))}", err=True)
    return code


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True
