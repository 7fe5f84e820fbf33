"""The request to mount: the account, the mountpoint and the mount options.

Options are spelled as for mount(8) and sshfs.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from jmapfs.account import AccountSource
from jmapfs.errors import UsageError
from jmapfs.tree.tree import Ownership

# The options of all file systems (mount(8)). mount(8) and systemd act on some of them and pass all
# on. They have no effect in jmapfs: a mount is always read-only, and has no times of access.
_WITHOUT_EFFECT: Final = re.compile(
    "ro|defaults|async|sync|dirsync|silent|loud|nofail|_netdev|(fs|def|root)?context=.*"
    "|(no)?(atime|auto|dev|diratime|exec|group|iversion|lazytime|mand|owner|relatime|strictatime)"
    "|(no)?(suid|symfollow|users?)|(x-|X-|comment=|user=|u?helper=).*",
    re.DOTALL,
)
_FLAGS: Final = frozenset({"allow_other", "allow_root"})
_NUMBERS: Final = {"uid": 10, "gid": 10, "umask": 8}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The values of `-o`: the owner and mode of files, who has access, the name of the mount."""

    ownership: Ownership = field(default_factory=lambda: Ownership(os.getuid(), os.getgid()))
    flags: frozenset[str] = frozenset()
    fsname: str | None = None


def parse_options(arguments: Iterable[str]) -> MountOptions:
    """Parse the values of `-o`: options separated by commas; later options win.

    Raises UsageError if an option is not known, or its value is not a number.
    """
    options = MountOptions()
    for argument in arguments:
        for option in filter(None, argument.split(",")):
            options = _with_option(options, option)
    return options


def _with_option(options: MountOptions, option: str) -> MountOptions:
    name, separator, value = option.partition("=")
    if _WITHOUT_EFFECT.fullmatch(option):
        return options
    if not separator and name in _FLAGS:
        return replace(options, flags=options.flags | {name})
    if separator and name == "fsname":
        return replace(options, fsname=value)
    if separator and name in _NUMBERS:
        try:
            number = int(value, _NUMBERS[name])
        except ValueError:
            number = -1
        if number < 0:
            raise UsageError(f"-o {option}: the value is not a number")
        return replace(options, ownership=replace(options.ownership, **{name: number}))
    if name in {"rw", "nonempty"}:
        raise UsageError(
            f"-o {option}: a jmapfs mount is read-only, and its directory must be empty"
        )
    if name == "remount":
        raise UsageError(f"-o {option}: a mount keeps its options: unmount it and mount it again")
    known = sorted(_FLAGS | {"fsname=NAME"} | {f"{known}=N" for known in _NUMBERS})
    raise UsageError(f"-o {option}: no such option; there are {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class MountRequest:
    """A mount to be made; `cache_limit` in bytes, `poll_interval` in seconds.

    With `all_accounts`, each account that the user can see is a directory at the top.
    """

    source: AccountSource
    mountpoint: Path
    cache_root: Path
    cache_limit: int
    options: MountOptions
    poll_interval: float = 60.0
    all_accounts: bool = False
