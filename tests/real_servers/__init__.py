"""Everything that a user does, on each real server: `mail_server` is Cyrus, then James.

A test that only one of them can show is in `test_cyrus.py` or `test_james.py`. Tests of the servers
themselves, without jmapfs, are in tests/mail_server_tests, tests/cyrus_tests and tests/james_tests.
"""
