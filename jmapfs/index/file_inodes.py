"""The files of emails in the index, and their inodes.

An inode is computed from the time of receipt and the blob id (`inodes.email_inode`). Two blobs of
the same second collide about once in 2^24 pairs. The later blob then gets the next of its
candidates. After a first listing, colliding files are assigned again in the order of their blob
ids, so that every listing of the same account gives the same inodes.
"""

import sqlite3

from jmapfs.inodes import email_inode, inode_range


def put_file(
    connection: sqlite3.Connection, blob_id: str, received: int, size: int, stated: int | None
) -> int:
    """Return the inode of the file of a blob and a time; insert the file if it is new."""
    row = connection.execute(
        "SELECT inode FROM file WHERE blob_id = ? AND received_at = ?", (blob_id, received)
    ).fetchone()
    return int(row[0]) if row else _insert_file(connection, blob_id, received, size, stated)


def remove_unused_file(connection: sqlite3.Connection, inode: int) -> None:
    """Remove a file that no email has any more."""
    connection.execute(
        "DELETE FROM file WHERE inode = :inode"
        " AND NOT EXISTS (SELECT 1 FROM email WHERE inode = :inode)",
        {"inode": inode},
    )


def reassign_colliding_inodes(connection: sqlite3.Connection) -> None:
    """Assign the inodes of each second with collisions again, in the order of the blob ids."""
    ranges = {
        inode_range(received)
        for (received,) in connection.execute("SELECT received_at FROM file WHERE attempt > 0")
    }
    for inodes in ranges:
        _reassign_inodes(connection, inodes)


def _reassign_inodes(connection: sqlite3.Connection, inodes: range) -> None:
    bounds = (inodes[0], inodes[-1])
    files = connection.execute(
        "SELECT inode, blob_id, received_at, size, stated FROM file WHERE inode BETWEEN ? AND ?"
        " ORDER BY blob_id, received_at",
        bounds,
    ).fetchall()
    connection.execute("DELETE FROM file WHERE inode BETWEEN ? AND ?", bounds)
    moved = []
    for old, *file in files:
        new = _insert_file(connection, *file)
        if new != old:
            moved.append((old, new))
    for table in ("email", "membership"):
        # The inodes are negative in between: a new inode may be the old inode of another file.
        statement = f"UPDATE {table} SET inode = ? WHERE inode = ?"  # noqa: S608
        connection.executemany(statement, [(-new, old) for old, new in moved])
        connection.executemany(statement, [(new, -new) for _, new in moved])
    # The rows of `file` are new, so the triggers that count links have not run for these rows.
    connection.execute(
        "UPDATE file SET links = (SELECT count(*) FROM membership AS m WHERE m.inode = file.inode)"
        " WHERE inode BETWEEN ? AND ?",
        bounds,
    )


def _insert_file(
    connection: sqlite3.Connection, blob_id: str, received: int, size: int, stated: int | None
) -> int:
    """Insert a file, and return its inode: the first candidate that is not in use."""
    attempt = 0
    while True:
        inode = email_inode(blob_id, received, attempt=attempt)
        inserted = connection.execute(
            "INSERT INTO file (inode, blob_id, received_at, size, stated, attempt)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (inode) DO NOTHING",
            (inode, blob_id, received, size, stated, attempt),
        )
        if inserted.rowcount:
            return inode
        attempt += 1
