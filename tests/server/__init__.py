"""A small JMAP server in memory, for the demo and for tests (RFC 8620, RFC 8621, RFC 9404).

It shares no code with jmapfs, only the protocol. There are three ways to run it:

    async with running_server(MailServer(account)) as url:          in a nursery, on trio
    with server_process("sample") as server:                        in a process of its own
    python -m tests.server --account large:10000                    by hand

Tests change an `Account`, set `Quirks` to make the server misbehave, and read `Counts` of its
requests. `ControlClient` does all three from another process.
"""

from __future__ import annotations

from .account import Account, NewEmail
from .app import MailServer, running_server
from .auth import Credentials
from .control_client import ControlClient, ControlError, Dump, DumpedEmail
from .counts import Counts
from .model import Email, Mailbox
from .process import ServerProcess, server_process
from .quirks import MethodFault, PageChange, Quirks, Status

__all__ = [
    "Account",
    "ControlClient",
    "ControlError",
    "Counts",
    "Credentials",
    "Dump",
    "DumpedEmail",
    "Email",
    "MailServer",
    "Mailbox",
    "MethodFault",
    "NewEmail",
    "PageChange",
    "Quirks",
    "ServerProcess",
    "Status",
    "running_server",
    "server_process",
]
