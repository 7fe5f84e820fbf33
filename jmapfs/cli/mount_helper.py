"""`mount.jmapfs`: what mount(8), systemd and autofs run to mount a file system of type `jmapfs`.

    home  /mnt/mail  jmapfs  allow_other,config=/etc/jmapfs.toml,noauto,x-systemd.automount  0 0

The options of `jmapfs mount` are given as mount options. Generic options, which are for mount(8)
and systemd, are accepted. See mount(8) for the command line and the exit codes.
"""

import os
import pwd
import sys
from typing import Final, NoReturn

import click

from jmapfs.cli.main import INTERRUPTED, add_help, run
from jmapfs.cli.mount_command import mount_command
from jmapfs.cli.output import show_bugs
from jmapfs.daemon.request import parse_options
from jmapfs.errors import UsageError

_NAME: Final = "mount.jmapfs"

# The exit codes of mount(8) for those of jmapfs; 32 is a mount failure.
_EXIT_CODES: Final = {0: 0, UsageError.exit_code: 1, INTERRUPTED: 8}
_MOUNT_FAILURE: Final = 32

_COMMAND_OPTIONS: Final = ("account", "cache_dir", "cache_size", "poll_interval")
_COMMAND_FLAGS: Final = ("all_accounts", "verbose")


@click.command(_NAME)
@click.argument("account")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT…]", help="Mount options.")
@click.option("-s", "sloppy", is_flag=True, help="Ignore unknown options.")
@click.option("-f", "fake", is_flag=True, help="Check the options, and do not mount.")
@click.option("-v", "verbose", is_flag=True, help="Without effect.")
@click.option("-n", "no_table", is_flag=True, help="Without effect.")
@click.option("-t", "file_system", metavar="TYPE", help="Without effect.")
def mount_helper(
    account: str,
    mountpoint: str,
    options: tuple[str, ...],
    *,
    sloppy: bool,
    fake: bool,
    verbose: bool,
    no_table: bool,
    file_system: str | None,
) -> None:
    """Mount ACCOUNT at MOUNTPOINT, as mount(8) asks for it."""
    del verbose, no_table, file_system
    # mount(8) recognizes a mount of fstab by its source.
    mount_options = [f"fsname={account}"]
    arguments = []
    user = None
    for option in ",".join(options).split(","):
        name, separator, value = option.partition("=")
        # mount(8) adds `rw` unless the user gives `ro`.
        if option in {"", "rw"}:
            continue
        if separator and name in _COMMAND_OPTIONS:
            arguments.append(f"--{name.replace('_', '-')}={value}")
        elif option in _COMMAND_FLAGS:
            arguments.append(f"--{name.replace('_', '-')}")
        elif separator and name == "config":
            os.environ["JMAPFS_CONFIG"] = value
        elif separator and name == "setuid":
            user = value
        elif not sloppy or _is_known(option):
            mount_options.append(option)
    parse_options(mount_options)
    if user is not None:
        _become(user)
    if not fake:
        arguments += [f"-o{option}" for option in mount_options]
        arguments += ["--", account, mountpoint]
        mount_command.main(arguments, prog_name=_NAME, standalone_mode=False)


def _is_known(option: str) -> bool:
    try:
        parse_options([option])
    except UsageError:
        return False
    return True


def _become(name: str) -> None:
    """Continue as another user, with this user's directories."""
    try:
        user = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f"-o setuid={name}: no such user") from None
    if os.getuid() != user.pw_uid:
        if os.getuid() != 0:
            raise UsageError(f"-o setuid={name}: only root can mount for another user")
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    for variable in [one for one in os.environ if one.startswith("XDG_")]:
        del os.environ[variable]
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}


def main() -> NoReturn:
    """Run the helper and exit with a code of mount(8)."""
    show_bugs()
    sys.exit(_EXIT_CODES.get(run(add_help(mount_helper), _NAME), _MOUNT_FAILURE))
