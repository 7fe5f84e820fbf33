"""Tests of the JMAP client, against servers that are functions: no network, no real clock."""
