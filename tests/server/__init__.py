"""A small JMAP server in memory, for the demo and for tests (RFC 8620, RFC 8621, RFC 9404).

It knows nothing of jmapfs: what the two agree on is the protocol. Three ways to run it:

    async with running_server(MailServer(account)) as url:          in a nursery, on trio
    with server_process("sample") as server:                        in a process of its own
    python -m tests.server --account large:10000                    by hand

`Account` is what a test changes, `Quirks` how the server misbehaves, `Counts` what it was asked;
`ControlClient` reaches all three from another process.
"""

from __future__ import annotations

from .account import Account, NewEmail
from .app import MailServer
from .auth import Credentials
from .client import ControlClient, ControlError, Dump, DumpedEmail
from .counts import Counts
from .model import Email, Mailbox
from .process import ServerProcess, server_process
from .quirks import MethodFault, PageChange, Quirks, Status
from .running import running_server

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
