"""The content of mail: single flight, batches, read-ahead, over the caches."""
