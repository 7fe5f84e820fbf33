"""The JMAP client (RFC 8620, RFC 8621, RFC 9404). This package has no code about files."""
