"""Run the server: `python -m tests.server`. It prints its URL once it listens."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import trio

from .account import Account
from .app import MailServer, running_server
from .auth import Credentials
from .blobs import BlobScheme
from .process import TOKEN_VARIABLE


def main() -> None:
    options = _parser().parse_args()
    trio.run(_serve, options, _server(options))


def _parser() -> argparse.ArgumentParser:
    default = Credentials()
    parser = argparse.ArgumentParser(prog="python -m tests.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument(
        "--account",
        default="sample",
        metavar="KIND",
        help="sample, hostile, empty, large:N or mailbox:N",
    )
    parser.add_argument("--username", default=default.username)
    parser.add_argument("--password", default=default.password)
    parser.add_argument("--token", default=default.token, help="the token for Bearer")
    parser.add_argument("--blob-ids", choices=["plain", "cyrus"], default="plain")
    parser.add_argument("--load", type=Path, metavar="PATH", help="a file of a saved server")
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help="receives the URLs as JSON",
    )
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when stdin ends")
    return parser


def _server(options: argparse.Namespace) -> MailServer:
    token = os.environ.get(TOKEN_VARIABLE)
    if options.load is not None:
        return MailServer.load(options.load, control_token=token)
    return MailServer(
        _accounts(options.account, options.blob_ids),
        credentials=Credentials(options.username, options.password, options.token),
        control_token=token,
    )


def _accounts(kind: str, scheme: BlobScheme) -> list[Account]:
    # Imported here, so that an empty server starts at once.
    name, _, number = kind.partition(":")
    if name == "sample":
        from .sample import sample_account, shared_account

        return [sample_account(blob_scheme=scheme), shared_account(blob_scheme=scheme)]
    if name == "hostile":
        from .hostile import hostile_account

        return [hostile_account(blob_scheme=scheme)]
    if name in {"large", "mailbox"} and number.isdecimal():
        from .large import large_account

        mailboxes = 10 if name == "large" else 1
        return [large_account(int(number), blob_scheme=scheme, mailboxes=mailboxes)]
    if name == "empty":
        return [Account(blob_scheme=scheme)]
    sys.exit(f"--account {kind}: use sample, hostile, empty, large:N or mailbox:N")


async def _serve(options: argparse.Namespace, server: MailServer) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            running_server(server, host=options.host, port=options.port) as url,
            trio.open_nursery() as nursery,
        ):
            if options.ready_file is not None:
                ready = {"url": url, "control": f"{url}/control/{server.control_token}"}
                # Renamed into place: a waiting process must not read half a file.
                partial = options.ready_file.with_name(options.ready_file.name + ".partial")
                partial.write_text(json.dumps({**ready, "pid": os.getpid()}))
                partial.rename(options.ready_file)
            print(url, flush=True)
            if options.stop_with_stdin:
                nursery.start_soon(_stop_at_end_of_stdin, nursery.cancel_scope)
            async for _ in signals:
                nursery.cancel_scope.cancel()


async def _stop_at_end_of_stdin(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for _ in stdin:
            pass
    scope.cancel()


if __name__ == "__main__":
    main()
