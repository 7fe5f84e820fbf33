r"""A real Apache James for tests and for manual use (`scripts/james`).

`running_james` starts the in-memory server of James 3.8.1, whose jars `scripts/james resolve`
downloads once. It needs Java, and Maven for the download. It is ready after 3 to 25 s and needs
300 MB of memory.

Observed behaviour of James 3.8.1, beyond the RFCs:

- The account id is the SHA-256 of the user's name. Ids of mailboxes, emails and blobs are "1", "2",
  …, and begin again after each start. A user's account is created by the first request.
- Email/query refuses `anchor`, a negative `position` and `limit: 0`, has no `total`, and returns at
  most 256 ids. It then names its `limit`, otherwise not. It accepts unknown arguments.
- Email/changes and Mailbox/changes return `invalidArguments` for a state that is no UUID, and
  `cannotCalculateChanges` for an unknown one.
- Email/get returns each id once, in any order, and leaves out properties that are null. More than
  `maxObjectsInGet` ids and more than `maxCallsInRequest` calls are accepted.
- A wrong password and an unknown user get 401 with problem JSON, and `Basic realm="simple"`.
- Another account gets `accountNotFound` from a method and 403 from the download URL. An unknown
  blob gets 404.
- An update by Email/set gets no answer once the server has more than about 256 messages in all
  accounts together (250 work, 300 do not), and a client waits for ever. Creating and destroying
  work, and so do COPY, MOVE and STORE over IMAP. Tests change mail over IMAP.
- A copy over IMAP is the same email, in both mailboxes.
- A mail flagged `\Deleted` is in `totalEmails`, Email/get and Email/changes, not in Email/query.
- A mailbox that another user shares over IMAP is not in Mailbox/get unless `using` contains
  `urn:apache:james:params:jmap:mail:shares`. A delegated account is in the session.
- The event source sends each ping as `{"interval":SECONDS}`, and a change as event `state`.
- Over JMAP, names of mailboxes may contain `/`, but not `.`, `*` or `%`, a first `#` or more than
  200 characters.
- IMAP separates names by `.`; there is no MULTIAPPEND.
"""

from tests.james.account import Account
from tests.james.jars import missing
from tests.james.server import James, running_james

__all__ = ["Account", "James", "missing", "running_james"]
