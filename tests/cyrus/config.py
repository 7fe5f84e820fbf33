"""The configuration of a Cyrus: its two configuration files and their directories.

A server writes only below one directory, so that several can run at the same time and the removal
of the directory removes everything. This includes Unix sockets, which limit the length of its path.

The `servername` is random. It is the realm of the passwords, and it identifies the server: the IMAP
greeting and the 401 of HTTP contain it, so that a server of another process on the same port is
detected.

Two settings differ from the defaults. With `conversations_db: skiplist`, each APPEND takes longer
than the previous one (85 per second, `twoskip` has 690, measured). With `munge8bit`, Cyrus replaces
8-bit characters in headers by X.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.mail_server.private_server import load_config, save_config

PROGRAMS = Path("/usr/lib/cyrus/bin")
MASTER = PROGRAMS / "master"
SASLPASSWD = Path("/usr/sbin/saslpasswd2")

# The path of a socket has at most 107 bytes; our longest suffix is "/sockets/notify".
LONGEST_DIRECTORY = 80

MAIL_DIRECTORIES = ("conf", "mail", "search")
"""The directories of the mail and of everything that Cyrus knows about it, without passwords."""

_CONFIG_FILE = "server.json"

_IMAPD_CONF = """\
configdirectory: {directory}/conf
partition-default: {directory}/mail
defaultpartition: default
proc_path: {directory}/proc
mboxname_lockpath: {directory}/lock
idlesocket: {directory}/sockets/idle
lmtpsocket: {directory}/sockets/lmtp
notifysocket: {directory}/sockets/notify
defaultsearchtier: main
mainsearchpartition-default: {directory}/search
search_engine: xapian
servername: {servername}
cyrus_user: {owner}
httpmodules: jmap
conversations: yes
conversations_db: twoskip
jmap_nonstandard_extensions: yes
altnamespace: yes
unixhierarchysep: yes
allowplaintext: yes
munge8bit: no
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {directory}/sasldb2
autocreate_users: anyone
autocreate_quota: 0
"""

_CYRUS_CONF = """\
START {{
  recover cmd="{programs}/ctl_cyrusdb -C {directory}/imapd.conf -r"
}}
SERVICES {{
  imap cmd="{programs}/imapd -C {directory}/imapd.conf" listen="127.0.0.1:{imap_port}" prefork=0
  http cmd="{programs}/httpd -C {directory}/imapd.conf" listen="127.0.0.1:{http_port}" prefork=0
}}
"""


@dataclass(frozen=True)
class Config:
    """The directory, name and ports of a server."""

    directory: Path
    servername: str
    imap_port: int
    http_port: int


def owner() -> str:
    """Return the user that Cyrus runs as: Debian's `cyrus` for root, otherwise this user.

    Started by root, Cyrus switches to its own user; started by any other user, it does not.
    """
    return "cyrus" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def missing() -> str | None:
    """Return the reason why Cyrus cannot run on this machine; None if it can."""
    for program in (MASTER, PROGRAMS / "imapd", PROGRAMS / "httpd", SASLPASSWD):
        if not os.access(program, os.X_OK):
            return f"{program} is missing (scripts/setup installs it)"
    try:
        pwd.getpwnam(owner())
    except KeyError:
        return f"the user {owner()!r} does not exist"
    return None


def change_owner(path: Path) -> None:
    """Make Cyrus the owner of `path`, if this process is root."""
    if os.geteuid() == 0:
        shutil.chown(path, owner(), pwd.getpwnam(owner()).pw_gid)


def write_config(config: Config) -> None:
    """Create the directories and files that the server needs before its first start.

    Raises:
        ValueError: the path of the directory is too long for Unix sockets.
    """
    if len(os.fsencode(config.directory)) > LONGEST_DIRECTORY:
        msg = f"{config.directory} is too long for the paths of Unix sockets"
        raise ValueError(msg)
    change_owner(config.directory)
    for name in (*MAIL_DIRECTORIES, "proc", "lock", "sockets"):
        subdirectory = config.directory / name
        subdirectory.mkdir(mode=0o700, exist_ok=True)
        change_owner(subdirectory)
    values = {**vars(config), "owner": owner(), "programs": PROGRAMS}
    (config.directory / "imapd.conf").write_text(_IMAPD_CONF.format(**values))
    (config.directory / "cyrus.conf").write_text(_CYRUS_CONF.format(**values))
    save_config(config, _CONFIG_FILE)


def load(directory: Path) -> Config | None:
    """Return the configuration of the server in `directory`, if there is one."""
    return load_config(Config, directory, _CONFIG_FILE)


def set_password(config: Config, name: str, password: str) -> None:
    """Set the password of a user; a running server accepts it at once."""
    database = config.directory / "sasldb2"
    subprocess.run(
        [SASLPASSWD, "-p", "-c", "-f", database, "-u", config.servername, name],
        input=password.encode(),
        check=True,
        capture_output=True,
    )
    change_owner(database)
