"""The options of `-o`, as mount(8), sshfs and others spell them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from jmapfs.errors import UsageError
from jmapfs.tree import Ownership

# What mount(8) and fstab pass along, and what is so in any case.
_WITHOUT_EFFECT: Final = frozenset(
    {"ro", "defaults", "auto", "noauto", "user", "nofail", "_netdev", "nosuid", "nodev", "noexec"}
)
_FLAGS: Final = frozenset({"allow_other", "allow_root"})
_NUMBERS: Final = {"uid": 10, "gid": 10, "umask": 8}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Who the files belong to, who else may look, and what the mount is called."""

    ownership: Ownership = field(default_factory=lambda: Ownership(os.getuid(), os.getgid()))
    flags: frozenset[str] = frozenset()
    fsname: str | None = None


def parse_options(arguments: Iterable[str]) -> MountOptions:
    """Read the values of `-o`: options separated by commas, later ones win.

    Raises:
        UsageError: an option is not known, or its value is not a number.
    """
    options = MountOptions()
    for argument in arguments:
        for option in filter(None, argument.split(",")):
            options = _with(options, option)
    return options


def _with(options: MountOptions, option: str) -> MountOptions:
    name, separator, value = option.partition("=")
    if not separator and name in _WITHOUT_EFFECT:
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
        raise UsageError(f"-o {option}: a jmapfs mount is read-only, on an empty directory")
    known = sorted(_FLAGS | {"fsname=NAME"} | {f"{known}=N" for known in _NUMBERS})
    raise UsageError(f"-o {option}: no such option; there are {', '.join(known)}")
