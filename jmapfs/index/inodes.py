"""Which inode a file gets, where two would get the same.

The number comes from time of receipt and blob (see `names.inode`). Two blobs of one second meet
about once in 2^24 pairs: the later one is given its next choice. A listing settles such meetings
in the order of the blob ids, so that every listing of the same account ends alike.
"""

from __future__ import annotations

import sqlite3

from jmapfs.names import email_inode, inode_slot


def allocate(connection: sqlite3.Connection, blob_id: str, received_at: int, size: int) -> int:
    """Insert a file and return its inode: the first of its choices that is free."""
    attempt = 0
    while True:
        inode = email_inode(blob_id, received_at, attempt=attempt)
        inserted = connection.execute(
            "INSERT INTO file (inode, blob_id, received_at, size, attempt) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (inode) DO NOTHING",
            (inode, blob_id, received_at, size, attempt),
        )
        if inserted.rowcount:
            return inode
        attempt += 1


def settle(connection: sqlite3.Connection) -> None:
    """Give the files of every second in which inodes met their numbers in order of the blob ids."""
    slots = {
        inode_slot(received_at)
        for (received_at,) in connection.execute("SELECT received_at FROM file WHERE attempt > 0")
    }
    for slot in slots:
        _settle_slot(connection, slot)


def _settle_slot(connection: sqlite3.Connection, slot: range) -> None:
    files = connection.execute(
        "SELECT inode, blob_id, received_at, size FROM file WHERE inode BETWEEN ? AND ?"
        " ORDER BY blob_id, received_at",
        (slot[0], slot[-1]),
    ).fetchall()
    connection.execute("DELETE FROM file WHERE inode BETWEEN ? AND ?", (slot[0], slot[-1]))
    moved = []
    for inode, blob_id, received_at, size in files:
        settled = allocate(connection, blob_id, received_at, size)
        if settled != inode:
            moved.append((settled, inode))
    for table in ("email", "membership"):
        # By way of negative numbers: one file's new number may be another's old one.
        statement = f"UPDATE {table} SET inode = ? WHERE inode = ?"  # noqa: S608
        connection.executemany(statement, [(-settled, inode) for settled, inode in moved])
        connection.executemany(statement, [(settled, -settled) for settled, _ in moved])
    # The rows of `file` are new, and no name came or went by which links would be counted.
    connection.execute(
        "UPDATE file SET links = (SELECT count(*) FROM membership AS m WHERE m.inode = file.inode)"
        " WHERE inode BETWEEN ? AND ?",
        (slot[0], slot[-1]),
    )
