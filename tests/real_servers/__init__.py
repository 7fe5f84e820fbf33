"""Everything that a user does, on each real server: `mail_server` is Cyrus, then James.

Tests that only one of them can show are in `test_cyrus.py`, `test_live.py` (Cyrus) and
`test_james.py`. Tests of the servers themselves, without jmapfs, are in tests/mail_server_tests,
tests/cyrus_tests and tests/james_tests.
"""
