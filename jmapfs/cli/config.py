"""The configuration file, and the credentials of the accounts in it.

    # $XDG_CONFIG_HOME/jmapfs/config.toml, or the file that JMAPFS_CONFIG names
    [home]
    server = "alice@example.org"          # a session URL, a host, or a mail address
    user = "alice@example.org"
    password_command = "pass show mail"   # or password_file, password_env

    [work]
    server = "jmap.example.com"
    token_file = "~/.config/jmapfs/work.token"   # or token_command, token_env
    account = "Shared"                    # one of the accounts that the user can see
    rewrite_origin = true                 # the session names URLs that cannot be reached
    ca_file = "~/.config/jmapfs/ca.pem"   # more certificate authorities

A secret comes from a command, a file or the environment. While a mount runs, it is read again from
a command or a file after the server has refused it. A secret is never on a command line, in
the configuration file, in a message or in a log.

An unknown key is an error. Otherwise a misspelt key would be noticed too late.
"""

import contextlib
import os
import shlex
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import platformdirs

from jmapfs.account import AccountSource
from jmapfs.errors import ConfigError
from jmapfs.jmap.credentials import BasicCredentials, BearerCredentials, Credentials
from jmapfs.jmap.login import Login
from jmapfs.private_files import read_named_file
from jmapfs.protection import child_environment, hide_variable, protect_memory

_COMMAND_SECONDS: Final = 120  # the user may have to type a passphrase


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
    rewrite_origin: bool = False
    ca_file: str | None = None


_KEYS: Final = frozenset(AccountTable.__struct_fields__)


@dataclass(frozen=True, slots=True)
class Config:
    """The accounts of the configuration file, by name. The file `path` need not exist."""

    path: Path
    accounts: dict[str, AccountTable]


def config_path() -> Path:
    """Return the path of the configuration file: `JMAPFS_CONFIG`, or in the XDG directory."""
    explicit = os.environ.get("JMAPFS_CONFIG")
    return Path(explicit) if explicit else platformdirs.user_config_path("jmapfs") / "config.toml"


def read_config() -> Config:
    """Read the configuration file. If the file does not exist, there are no accounts.

    Raises ConfigError if the file cannot be read or is not valid. The message says where.
    """
    path = config_path()
    if path == Path(os.devnull):
        # This is how users name no file.
        return Config(path, {})
    try:
        # A command in this file runs with the rights of the user.
        content = read_named_file(path, own=not os.environ.get("JMAPFS_CONFIG"))
        tables = tomllib.loads(content.decode())
    except FileNotFoundError:
        if os.environ.get("JMAPFS_CONFIG"):
            raise ConfigError(f"{path}: the file that JMAPFS_CONFIG names does not exist") from None
        return Config(path, {})
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    accounts = {name: _account(path, name, table) for name, table in tables.items()}
    for account in accounts.values():
        for variable in filter(None, (account.password_env, account.token_env)):
            hide_variable(variable)
    return Config(path, accounts)


def command_environment() -> dict[str, str]:
    """Return the environment for a command of the user: without the secrets of all accounts."""
    with contextlib.suppress(ConfigError):
        # A configuration that is not valid does not stop a command that does not need it.
        read_config()
    return child_environment()


def _account(path: Path, name: str, table: Any) -> AccountTable:  # noqa: ANN401 - TOML is anything
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name!r} is outside a table: each account needs one, as [home]")
    unknown = sorted(table.keys() - _KEYS)
    if unknown:
        hint = ""
        if {"password", "token"} & set(unknown):
            hint = "; a secret must not be in this file: use password_command or token_command"
        raise ConfigError(
            f"{path}: [{name}] has unknown keys: {', '.join(unknown)}"
            f" (known keys: {', '.join(sorted(_KEYS))}){hint}"
        )
    try:
        return msgspec.convert(table, AccountTable)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: [{name}]: {error}") from error


def account_source(argument: str, config: Config, *, account: str | None = None) -> AccountSource:
    """Return the account for `argument`, which is a name in the configuration or a location.

    `account` comes from the command line and overrides the configuration. From now on, this process
    leaves no core dump. Raises ConfigError if there is no such account, or its secret is not
    available.
    """
    protect_memory()
    table = config.accounts.get(argument)
    if table is not None:
        return AccountSource(
            argument,
            table.server,
            _configured_login(argument, table, config),
            account or table.account,
            table.rewrite_origin,
            _ca_file(f"{config.path}: [{argument}] ca_file", table.ca_file),
        )
    if is_path(argument):
        raise ConfigError(
            f"{argument} is a path, not an account: give the name of an account in {config.path},"
            " a session URL (https://…), a host or a mail address"
        )
    if not any(mark in argument for mark in ".:@/") and argument != "localhost":
        names = ", ".join(sorted(config.accounts)) or "none"
        raise ConfigError(
            f"{argument}: no such account in {config.path} (accounts there: {names}), and not a"
            " URL, a host or a mail address"
        )
    user = _user_in(argument)
    from_environment = _credentials_from_environment(user)
    if from_environment is None:
        password = "JMAPFS_PASSWORD" if user else "JMAPFS_USERNAME and JMAPFS_PASSWORD"
        raise ConfigError(
            f"no secret for {argument}: set {password}, or JMAPFS_TOKEN, or add the account to"
            f" {config.path}"
        )
    return AccountSource(argument, argument, Login(from_environment), account)


def is_path(argument: str) -> bool:
    """Return whether an argument can only be a path: a location with a slash is a URL."""
    return argument in {".", "..", "~"} or ("/" in argument and "://" not in argument)


def _user_in(location: str) -> str | None:
    """Return the user name that a location implies: a mail address, or nothing."""
    return location if "@" in location and "/" not in location else None


def _configured_login(name: str, table: AccountTable, config: Config) -> Login:
    where = f"{config.path}: [{name}]"
    user = _user_in(table.server) if table.user is None else table.user
    given = [
        (kind, source, value)
        for kind in ("password", "token")
        for source in ("command", "file", "env")
        if (value := getattr(table, f"{kind}_{source}")) is not None
    ]
    if len(given) > 1:
        keys = " and ".join(f"{kind}_{source}" for kind, source, _ in given)
        raise ConfigError(f"{where} has {keys}: keep one of them")
    if not given:
        credentials = _credentials_from_environment(user)
        if credentials is None:
            raise ConfigError(
                f"{where} names no secret, and the environment has none: add password_command,"
                " password_file, password_env, token_command, token_file or token_env"
            )
        return Login(credentials)
    kind, source, value = given[0]
    if kind == "password" and user is None:
        raise ConfigError(f"{where} has a password but no user: add user")
    read = {"command": _from_command, "file": _from_file, "env": _from_variable}[source]
    # The daemon of a mount has another directory. There, names must mean the same files.
    directory = Path.cwd()

    def credentials_now() -> Credentials:
        secret = read(f"{where} {kind}_{source}", value, directory)
        if kind == "token" or user is None:
            return BearerCredentials(secret)
        return BasicCredentials(user, secret)

    # The environment of a process does not change. A command may ask the user for a passphrase.
    return Login(
        credentials_now(),
        None if source == "env" else credentials_now,
        quick=source == "file",
    )


def _ca_file(where: str, name: str | None) -> Path | None:
    return None if name is None else _absolute(where, name, Path.cwd())


def _credentials_from_environment(user: str | None) -> Credentials | None:
    token = os.environ.get("JMAPFS_TOKEN")
    if token:
        return BearerCredentials(_first_line("JMAPFS_TOKEN", token))
    user = os.environ.get("JMAPFS_USERNAME") or user
    password = os.environ.get("JMAPFS_PASSWORD")
    if not user or not password:
        return None
    return BasicCredentials(
        _first_line("JMAPFS_USERNAME", user), _first_line("JMAPFS_PASSWORD", password)
    )


def _from_command(where: str, command: str, directory: Path) -> str:
    try:
        words = shlex.split(command)
        if not words:
            raise ConfigError(f"{where}: the command is empty")
        # Only stdout is redirected: the command may ask for a passphrase on the terminal.
        result = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            check=False,
            timeout=_COMMAND_SECONDS,
            cwd=directory,
            env=child_environment(),
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}: {error.filename}") from error
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{where}: no output within {_COMMAND_SECONDS} s") from None
    if result.returncode != 0:
        raise ConfigError(f"{where}: the command failed with exit code {result.returncode}")
    return _first_line(where, result.stdout)


def _absolute(where: str, name: str, directory: Path) -> Path:
    try:
        return directory / Path(name).expanduser()
    except RuntimeError:
        raise ConfigError(f"{where}: {name}: there is no such home directory") from None


def _from_file(where: str, name: str, directory: Path) -> str:
    path = _absolute(where, name, directory)
    try:
        content = read_named_file(path, secret=True)
    except OSError as error:
        raise ConfigError(f"{where}: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: not a file name: {error}") from error
    return _first_line(where, content)


def _from_variable(where: str, name: str, _directory: Path) -> str:
    secret = os.environ.get(name)
    if not secret:
        raise ConfigError(f"{where}: the environment variable {name} is not set")
    return _first_line(where, secret)


def _first_line(where: str, content: str | bytes) -> str:
    try:
        text = content.decode() if isinstance(content, bytes) else content
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: the secret is not UTF-8 text") from None
    # The secret is the first line: files of `pass` and similar programs have notes below.
    secret = text.split("\n", 1)[0].rstrip("\r")
    if not secret:
        raise ConfigError(f"{where}: the secret is empty")
    if not secret.isprintable():
        raise ConfigError(f"{where}: the secret contains control characters")
    return secret
