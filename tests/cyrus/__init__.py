r"""A real Cyrus IMAP server for tests and for manual use (`scripts/cyrus`).

`running_cyrus` starts a server; tests fill and change an `Account` over IMAP and plain JMAP. It
needs Debian's packages cyrus-imapd, cyrus-caldav and sasl2-bin. Root runs it as their user `cyrus`,
other users run it as themselves. It is ready after 0.1 s.

Observed behaviour of Debian's Cyrus 3.6.1, beyond the RFCs:

- A user with a password gets a session, but until the first login over IMAP,
  `accountCapabilities` is null and every call returns `accountNotFound`. The session's `state` is
  "0".
- It advertises `https://cyrusimap.org/ns/jmap/` blob, mail, quota, performance, debug,
  usercounters, contacts, calendars, backup and sieve, and the standard capabilities core, mail,
  submission, vacationresponse and mdn, but not `urn:ietf:params:jmap:blob`.
- Limits: maxObjectsInGet and InSet 4096, maxCallsInRequest 50, maxConcurrentRequests 5,
  maxSizeRequest 10485760, maxMailboxesPerEmail 20.
- A wrong password and an unknown user get the same response: 401, an HTML page, and a
  WWW-Authenticate field each for SCRAM, Digest, NTLM and Basic.
- A blob id is `G` and the SHA-1 of the message in hex, an email id `M` and its first 24 digits: a
  message that is appended twice is one Email, in one mailbox or two.
- Messages are returned byte for byte, also 8-bit headers and bare CR (with `munge8bit: no`). Cyrus
  refuses NUL, bare LF, an empty message, and one that begins with neither a header nor an empty
  line. The body may be missing.
- Mailbox names: IMAP and JMAP accept `.`, `..`, `-rf`, `~root`, `$(id)`, bidi and C1 controls, and
  spaces at both ends. They refuse C0 controls, DEL and `! " % ; < > \ ` { | }`; JMAP also refuses
  `/`. A path has at most about 470 bytes in modified UTF-7: 300 `x` fit, 300 `é` do not. JMAP
  refuses siblings that are equal under NFC, IMAP accepts them. IMAP accepts a lone surrogate, which
  is U+FFFD in JMAP. IMAP refuses `Other Users`, JMAP accepts it.
- An unknown `sinceState` gets `invalidArguments`, a missing anchor `anchorNotFound`, an unknown
  blob or account in a download URL 404, the event source 204, an unknown capability 400.
"""

from tests.cyrus.account import Account
from tests.cyrus.config import missing
from tests.cyrus.server import Cyrus, running_cyrus
from tests.mail_server.account import RefusedError
from tests.mail_server.append import Message

__all__ = ["Account", "Cyrus", "Message", "RefusedError", "missing", "running_cyrus"]
