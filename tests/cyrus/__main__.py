"""Controls a Cyrus for manual use: `scripts/cyrus start`, `fill`, `status` and `stop`.

The server keeps running after the command. It has its mail in one directory and listens on
loopback only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from tests.cyrus.config import load, missing
from tests.cyrus.server import Cyrus, start_new
from tests.mail_server.account import PASSWORD
from tests.mail_server.manual import fill, print_usage


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/cyrus", description=__doc__)
    parser.add_argument("--directory", type=Path, default=_default_directory())
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("start", "start it with its mail, and create the user"),
        ("fill", "add mail to the user's account"),
        ("status", "show whether it runs, and how to mount it"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--user", default="alice")
        if name == "fill":
            command.add_argument("--mails", type=int, default=1000)
    commands.add_parser("stop", help="stop it").add_argument(
        "--remove", action="store_true", help="remove its mail too"
    )
    arguments = parser.parse_args()
    directory: Path = arguments.directory.absolute()
    if arguments.command == "start":
        _start(directory, arguments.user)
        return
    cyrus = _known(directory)
    if arguments.command == "stop":
        if cyrus:
            cyrus.stop()
        if arguments.remove:
            shutil.rmtree(directory, ignore_errors=True)
    elif cyrus is None or cyrus.group is None:
        sys.exit("Cyrus is not running. Start it with: scripts/cyrus start")
    elif arguments.command == "fill":
        account = cyrus.add_user(arguments.user, PASSWORD)
        fill(account, arguments.mails)
    else:
        print_usage(cyrus.account(arguments.user, PASSWORD))


def _start(directory: Path, user: str) -> None:
    if reason := missing():
        sys.exit(reason)
    cyrus = _known(directory)
    if cyrus is None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        cyrus = start_new(directory)
    else:
        cyrus.start()
    print_usage(cyrus.add_user(user, PASSWORD))


def _known(directory: Path) -> Cyrus | None:
    config = load(directory)
    return Cyrus.existing(config) if config else None


def _default_directory() -> Path:
    # The user of Cyrus cannot access the home directory of root.
    return Path("/var/lib" if os.geteuid() == 0 else Path.home() / ".cache") / "jmapfs-cyrus"


main()
