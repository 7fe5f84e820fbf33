r"""A real Cyrus IMAP server for the tests, and for use by hand (`scripts/cyrus`).

`running_cyrus` starts one, an `Account` of it is filled and changed over IMAP and raw JMAP. It
needs Debian's packages cyrus-imapd, cyrus-caldav and sasl2-bin; as root it runs as their user
`cyrus`, otherwise as whoever starts it. From start to readiness it takes 0.1 s.

What Debian's Cyrus 3.6.1 was seen to do, beyond the RFCs:

- Who has a password gets a session, but without a first login over IMAP `accountCapabilities` is
  null there and every call is answered by `accountNotFound`. The session's `state` is "0".
- It advertises `https://cyrusimap.org/ns/jmap/` blob, mail, quota, performance, debug,
  usercounters, contacts, calendars, backup and sieve, and of the standard ones core, mail,
  submission, vacationresponse and mdn; not `urn:ietf:params:jmap:blob`.
- Limits: maxObjectsInGet and InSet 4096, maxCallsInRequest 50, maxConcurrentRequests 5,
  maxSizeRequest 10485760, maxMailboxesPerEmail 20.
- A wrong password and an unknown user get the same: 401, an HTML page, and WWW-Authenticate with
  SCRAM, Digest, NTLM and Basic in fields of their own.
- A blob id is `G` and the SHA-1 of the message in hex, an email id `M` and the first 24 digits of
  it: the same message appended twice is one Email, in one mailbox or two.
- A message comes back byte for byte, 8-bit headers and a bare CR included (with `munge8bit: no`).
  Refused are NUL, a bare LF, the empty message, and one that begins with neither a header nor an
  empty line; a body may be missing.
- Mailbox names: `.`, `..`, `-rf`, `~root`, `$(id)`, bidi and C1 controls, a space at either end
  are taken, over IMAP and JMAP alike. C0 controls, DEL and `! " % ; < > \ ` { | }` are not, and in
  JMAP no `/`. A path has some 470 bytes in modified UTF-7: 300 `x` will do, 300 `é` will not.
  JMAP refuses siblings that are equal under NFC, IMAP makes them. A lone surrogate, which IMAP
  takes, is U+FFFD in JMAP. `Other Users` is refused by IMAP and taken by JMAP.
- An unknown `sinceState` gets `invalidArguments`, a lost anchor `anchorNotFound`, an unknown blob
  or account in a download URL 404, the event source 204, a capability that it lacks 400.
"""

from tests.cyrus.account import Account, RefusedError
from tests.cyrus.config import missing
from tests.cyrus.fill import Message
from tests.cyrus.server import Cyrus, running, running_cyrus

__all__ = ["Account", "Cyrus", "Message", "RefusedError", "missing", "running", "running_cyrus"]
