"""What Cyrus is told: its two configuration files, and the folders they name.

Everything a server writes lies under one directory, so that several run side by side and nothing
is left when it is removed. Its Unix sockets do too, hence the limit on the length of that path.

The `servername` is a random one and does two jobs: it is the realm of the passwords, and since
it stands in the IMAP greeting and in the 401 of HTTP it tells this server from another one that
happens to have got the same port.

Two settings are not the defaults. With `conversations_db: skiplist` every APPEND takes longer than
the one before it (85 a second where `twoskip` takes 690, measured). And with `munge8bit` Cyrus
puts an X for every 8-bit character in a header.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path("/usr/lib/cyrus/bin")
MASTER = PROGRAMS / "master"
SASLPASSWD = Path("/usr/sbin/saslpasswd2")

# A socket's path has to fit in 108 bytes; the longest name of ours below is "/sockets/notify".
LONGEST_DIRECTORY = 80

_KNOWN = "server.json"

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
    """One server's place and name on this machine."""

    directory: Path
    servername: str
    imap_port: int
    http_port: int


def owner() -> str:
    """Return the user that Cyrus runs as: Debian's `cyrus` for root, else whoever runs the tests.

    Cyrus gives up root for its own user, and is content to be any other from the start.
    """
    return "cyrus" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def missing() -> str | None:
    """Return why no Cyrus can run on this machine, or None if one can."""
    for program in (MASTER, PROGRAMS / "imapd", PROGRAMS / "httpd", SASLPASSWD):
        if not os.access(program, os.X_OK):
            return f"{program} is not there (scripts/setup installs it)"
    try:
        pwd.getpwnam(owner())
    except KeyError:
        return f"there is no user {owner()!r} on this machine"
    return None


def give(path: Path) -> None:
    """Make `path`, which root may have made, the property of Cyrus."""
    if os.geteuid() == 0:
        shutil.chown(path, owner(), pwd.getpwnam(owner()).pw_gid)


def lay_out(config: Config) -> None:
    """Make the folders and files that the server needs before its first start."""
    if len(os.fsencode(config.directory)) > LONGEST_DIRECTORY:
        msg = f"{config.directory} is too long a path for Unix sockets in it"
        raise ValueError(msg)
    give(config.directory)
    for name in ("conf", "mail", "proc", "lock", "sockets", "search"):
        folder = config.directory / name
        folder.mkdir(mode=0o700, exist_ok=True)
        give(folder)
    values = {**vars(config), "owner": owner(), "programs": PROGRAMS}
    (config.directory / "imapd.conf").write_text(_IMAPD_CONF.format(**values))
    (config.directory / "cyrus.conf").write_text(_CYRUS_CONF.format(**values))
    known = {**vars(config), "directory": str(config.directory)}
    (config.directory / _KNOWN).write_text(json.dumps(known))


def load(directory: Path) -> Config | None:
    """Return the configuration of the server that was laid out in `directory`, if any was."""
    try:
        known = json.loads((directory / _KNOWN).read_text())
    except FileNotFoundError:
        return None
    return Config(**{**known, "directory": directory})


def set_password(config: Config, name: str, password: str) -> None:
    """Let `name` in with `password`; the running server sees it at once."""
    database = config.directory / "sasldb2"
    subprocess.run(
        [SASLPASSWD, "-p", "-c", "-f", database, "-u", config.servername, name],
        input=password.encode(),
        check=True,
        capture_output=True,
    )
    give(database)
