"""Tests of the test server: that each method and each quirk does what it says."""
