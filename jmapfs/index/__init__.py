"""The index: what is known of an account, in SQLite."""
