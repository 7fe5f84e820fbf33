"""The configuration file: which accounts there are, and where their secrets come from.

    # $XDG_CONFIG_HOME/jmapfs/config.toml, or the file that JMAPFS_CONFIG names
    [home]
    server = "alice@example.org"          # a session URL, a host, or a mail address
    user = "alice@example.org"
    password_command = "pass show mail"   # or password_file, password_env

    [work]
    server = "jmap.example.com"
    token_file = "~/.config/jmapfs/work.token"   # or token_command, token_env
    account = "Shared"                    # one of the accounts that the user can see

Secrets themselves are not in it. What is not understood is an error, not passed over: a
misspelt key would otherwise be found out on the day when the backup is needed.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import platformdirs

from jmapfs.errors import ConfigError


class AccountTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One account of the configuration file."""

    server: str
    user: str | None = None
    account: str | None = None
    password_command: str | None = None
    password_file: str | None = None
    password_env: str | None = None
    token_command: str | None = None
    token_file: str | None = None
    token_env: str | None = None


_KEYS: Final = frozenset(AccountTable.__struct_fields__)


@dataclass(frozen=True, slots=True)
class Config:
    """The accounts of a configuration file, by name; `path` is where it is, or would be."""

    path: Path
    accounts: dict[str, AccountTable]


def config_path() -> Path:
    """Return where the configuration file is: `JMAPFS_CONFIG`, or in the XDG directory."""
    explicit = os.environ.get("JMAPFS_CONFIG")
    return Path(explicit) if explicit else platformdirs.user_config_path("jmapfs") / "config.toml"


def read_config() -> Config:
    """Read the configuration file; without one there are no accounts.

    Raises:
        ConfigError: it cannot be read or is not right; the message says where.
    """
    path = config_path()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if os.environ.get("JMAPFS_CONFIG"):
            raise ConfigError(f"{path}: JMAPFS_CONFIG names a file that is not there") from None
        return Config(path, {})
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return Config(path, {name: _account(path, name, table) for name, table in tables.items()})


def _account(path: Path, name: str, table: Any) -> AccountTable:  # noqa: ANN401 - TOML is anything
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name!r} stands outside of an account's table, as in [home]")
    unknown = sorted(table.keys() - _KEYS)
    if unknown:
        hint = ", or name a command that prints it" if {"password", "token"} & set(unknown) else ""
        raise ConfigError(
            f"{path}: [{name}] has unknown keys: {', '.join(unknown)}"
            f" (known are {', '.join(sorted(_KEYS))}{hint})"
        )
    try:
        return msgspec.convert(table, AccountTable)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: [{name}]: {error}") from error
