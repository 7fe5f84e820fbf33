"""Tests of the JMAP client, mostly against a fake server, without network and with a fake clock."""
