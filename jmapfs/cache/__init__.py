"""Blobs in memory and on disk, bounded in bytes."""
