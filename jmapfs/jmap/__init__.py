"""The JMAP client (RFC 8620, RFC 8621): session, calls, mail types, blobs, push.

It knows nothing of files. `connect` opens a Client; everything else here is what goes into it or
comes out of it. What it raises is in `jmapfs.errors`, save for PushUnavailableError.
"""

from jmapfs.jmap.api import DEFAULT_DEADLINE, Api
from jmapfs.jmap.batch_limits import BatchLimits
from jmapfs.jmap.blobs import BlobStream
from jmapfs.jmap.calls import Call, Response
from jmapfs.jmap.changes import Changes, MailboxChanges
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.credentials import BasicCredentials, BearerCredentials, Credentials
from jmapfs.jmap.discovery import discover
from jmapfs.jmap.emails import EmailPage
from jmapfs.jmap.mail import Address, Email, Mailbox, MailboxRights
from jmapfs.jmap.push import (
    Connected,
    PushEvent,
    PushStream,
    PushUnavailableError,
    StateChange,
)
from jmapfs.jmap.service import Resolver, ServiceTarget
from jmapfs.jmap.session import Account, Limits, Session
from jmapfs.jmap.transport import Traffic, Transport, open_transport

__all__ = [
    "DEFAULT_DEADLINE",
    "Account",
    "Address",
    "Api",
    "BasicCredentials",
    "BatchLimits",
    "BearerCredentials",
    "BlobStream",
    "Call",
    "Changes",
    "Client",
    "Connected",
    "Credentials",
    "Email",
    "EmailPage",
    "Limits",
    "Mailbox",
    "MailboxChanges",
    "MailboxRights",
    "PushEvent",
    "PushStream",
    "PushUnavailableError",
    "Resolver",
    "Response",
    "ServiceTarget",
    "Session",
    "StateChange",
    "Traffic",
    "Transport",
    "connect",
    "discover",
    "open_transport",
]
