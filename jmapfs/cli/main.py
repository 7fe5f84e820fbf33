"""The `jmapfs` command: its subcommands, and how their errors reach the user.

A `JmapfsError`, or an error in the command line, is printed on stderr as one line and sets the exit
code (see `jmapfs.errors`). Any other exception is a bug and leaves its traceback. All lines begin
with `jmapfs: `. If the reader of a pipe has ended, the command ends without a message.

Each subcommand is imported when it is called: `jmapfs --help` is fast, and only `jmapfs mount`
needs FUSE.
"""

import importlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import click

from jmapfs import __version__
from jmapfs.cli.log import show_warnings
from jmapfs.cli.output import notice, print_line, print_lines, print_usage, show_bugs
from jmapfs.errors import JmapfsError, MountpointError, ReaderGoneError, UsageError

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
        return add_help(command)


def add_help(command: click.Command) -> click.Command:
    """Give a command a `--help` that prints with `cli.output`; return the command.

    The one of click ends with a traceback if stdout cannot be written.
    """
    if command.add_help_option:
        command.add_help_option = False
        command.params.append(
            _eager_flag("-h", "--help", text="Show this message and exit.", callback=_show_help)
        )
    return command


def _eager_flag(
    *names: str,
    text: str,
    callback: Callable[[click.Context], None],
) -> click.Option:
    def run_callback(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001
        if value and not context.resilient_parsing:
            callback(context)
            context.exit()

    return click.Option(
        names, is_flag=True, is_eager=True, expose_value=False, help=text, callback=run_callback
    )


def _show_help(context: click.Context) -> None:
    print_lines(context.get_help().splitlines())


def _show_version(_context: click.Context) -> None:
    print_line(f"jmapfs, version {__version__}")


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
    params=[_eager_flag("--version", text="Show the version and exit.", callback=_show_version)],
    context_settings={"max_content_width": 100},
)
def cli() -> None:
    """Mount a JMAP mail account as a read-only file tree."""


add_help(cli)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    show_bugs()
    sys.exit(run(cli, "jmapfs"))


def run(command: click.Command, name: str) -> int:
    """Run a command, print its error, and return its exit code."""
    show_warnings()
    code, message = 0, ""
    try:
        code = command.main(prog_name=name, standalone_mode=False) or 0
    except ReaderGoneError as error:
        code = error.exit_code
    except JmapfsError as error:
        code, message = error.exit_code, str(error)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        code = error.exit_code
        print_usage(error.format_message())
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
        notice(message)
    return code


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True
