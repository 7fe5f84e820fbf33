"""Dated copies of an account on disk."""
