"""Controls a James for manual use: `scripts/james start`, `fill`, `status`, `stop`, `resolve`.

The server keeps running after the command. It has its mail in memory, and loses it when it is
stopped. It listens on loopback only.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from tests.james import jars
from tests.james.config import load
from tests.james.server import James, start_new
from tests.mail_server.manual import fill, print_usage


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/james", description=__doc__)
    parser.add_argument("--directory", type=Path, default=jars.cache_directory() / "server")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("start", "start it without mail, and create the user"),
        ("fill", "add mail to the user's account"),
        ("status", "show whether it runs, and how to mount it"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--user", default="alice", help="the name without its domain")
        if name == "fill":
            command.add_argument("--mails", type=int, default=1000)
    commands.add_parser("stop", help="stop it; its mail is lost")
    commands.add_parser("resolve", help="only download its jars, if they are missing").add_argument(
        "--lock", action="store_true", help="accept the jars that Maven finds: write the lock file"
    )
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except (jars.JarsError, OSError, RuntimeError) as error:
        sys.exit(f"scripts/james: {str(error).strip().splitlines()[-1]}")


def _run(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory.absolute()
    if arguments.command == "resolve":
        if arguments.lock:
            jars.write_lock()
        jars.resolve()
        return
    config = load(directory)
    james = James.existing(config) if config else None
    if arguments.command == "start":
        _start(james, directory, arguments.user)
    elif arguments.command == "stop":
        if james:
            james.stop()
        shutil.rmtree(directory, ignore_errors=True)
    elif james is None or james.group is None:
        sys.exit("James is not running. Start it with: scripts/james start")
    elif arguments.command == "fill":
        fill(james.add_user(arguments.user), arguments.mails)
    else:
        print_usage(james.account(arguments.user))


def _start(james: James | None, directory: Path, user: str) -> None:
    if james is None or james.group is None:
        jars.resolve()
        if reason := jars.missing():
            sys.exit(reason)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        james = start_new(directory, relay=False)
    print_usage(james.add_user(user))


main()
