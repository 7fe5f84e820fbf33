"""Keeps the index equal to the server."""
