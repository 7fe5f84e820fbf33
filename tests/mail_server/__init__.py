"""What the real mail servers of the tests have in common: Cyrus (tests/cyrus), James (tests/james).

`server` says what a server can do, and `account` has the operations on an account. A test that uses
only these runs against both servers, with the fixture `mail_server`.
"""
