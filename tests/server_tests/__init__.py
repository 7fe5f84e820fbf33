"""Tests of the test server: its methods and its quirks."""
