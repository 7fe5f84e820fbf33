"""Directories that only the user can change, and files in them, opened without surprises.

Another user of the machine may have put anything in a place that both can write: a directory of
their own, a symbolic link, or a FIFO that blocks whoever opens it. So each directory that jmapfs
makes has the mode 0700 whatever the umask is, and an existing one is checked: no symbolic link, not
of another user, and not writable by others. The directory that the user named is the user's choice.
Only those below it are checked, each by its name in an open directory, so that none can be replaced
meanwhile.

A directory belongs to the user if its owner is the user or root. Some file systems give all files
one owner or one mode (vfat, CIFS, NFS with squashing). There, a new file shows which these are.

All functions raise OSError. An `UnsafePathError` says in its `strerror` what to do.
"""

import contextlib
import errno
import grp
import io
import os
import pwd
import secrets
import stat
from pathlib import Path
from typing import Final, NoReturn

_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_OPEN: Final = os.O_NONBLOCK | os.O_CLOEXEC
# Opens nothing but a name, so it neither blocks nor needs a permission for the directory itself.
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH
_DATABASE_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")
_TYPES: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFREG: "a file",
}


class UnsafePathError(OSError):
    """A file or directory is not what it must be, or others may have written it."""

    def __init__(self, path: Path | str, reason: str, number: int = errno.EINVAL) -> None:
        super().__init__(number, reason, os.fspath(path))


def describe_type(mode: int) -> str:
    """Return the type of a file, as text."""
    return _TYPES.get(stat.S_IFMT(mode), "a device")


def make_directory(path: Path) -> None:
    """Create a directory of the mode 0700 whatever the umask is. Its parent must be private."""
    path.mkdir(mode=_MODE)
    if path.lstat().st_mode & _MODE != _MODE:
        path.chmod(_MODE)


def private_directory(path: Path, *, named: Path | None = None, shared: bool = False) -> None:
    """Create a directory, or check the existing one, and all directories between `named` and it.

    `named` is the directory that the user named, by default the parent. It is created if it does
    not exist, and not checked. With `shared`, directories may also belong to the owner of `named`,
    who could replace them anyway.
    """
    path = path.absolute()
    named = path.parent if named is None else named.absolute()
    _make_parents(named)
    _walk(path, named, shared=shared, create=True)


def require_private(path: Path, *, named: Path | None = None, shared: bool = False) -> None:
    """Check existing directories as `private_directory` does, and create none."""
    path = path.absolute()
    named = path.parent if named is None else named.absolute()
    _walk(path, named, shared=shared, create=False)


def _walk(path: Path, named: Path, *, shared: bool, create: bool) -> None:
    current = os.open(named, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owners = {os.geteuid(), 0}
        if shared:
            owners.add(os.fstat(current).st_uid)
        walked = named
        for name in path.relative_to(named).parts:
            walked /= name
            child = _enter(current, name, walked, owners, create=create)
            os.close(current)
            current = child
    finally:
        os.close(current)


def _make_parents(path: Path) -> None:
    if path.is_dir():
        return
    if path != path.parent:
        _make_parents(path.parent)
    with contextlib.suppress(FileExistsError):
        make_directory(path)


def _enter(parent: int, name: str, path: Path, owners: set[int], *, create: bool) -> int:
    """Create or check a directory in an open one. Return a descriptor of it."""
    created = False
    try:
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, _MODE, dir_fd=parent)
                created = True
        child = os.open(name, _LOOK, dir_fd=parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    try:
        status = os.fstat(child)
        if not stat.S_ISDIR(status.st_mode):
            what = describe_type(status.st_mode)
            _refuse(path, f"it is {what}: replace it by a directory", errno.ENOTDIR)
        # The file system is that of the parent, unless the directory is a mount point.
        place = parent if os.fstat(parent).st_dev == status.st_dev else child
        if status.st_uid not in owners and not _gives_owner(place, status.st_uid):
            owner = _user_name(status.st_uid)
            _refuse(path, f"it belongs to {owner}: move it away, or make it yours with chown")
        if created:
            _restore_mode(child)
        elif _others_write(status) and not _gives_mode(place):
            _refuse(
                path,
                "others can write in it: remove what is not yours in it, and run:"
                f" chmod go-w {path}",
            )
    except BaseException:
        os.close(child)
        raise
    return child


def _refuse(path: Path, reason: str, number: int = errno.EPERM) -> NoReturn:
    raise UnsafePathError(path, reason, number)


def _restore_mode(directory: int) -> None:
    """Add the permissions that the umask has removed."""
    if os.fstat(directory).st_mode & _MODE != _MODE:
        # fchmod(2) does not accept a descriptor of O_PATH.
        os.chmod(f"/proc/self/fd/{directory}", _MODE)  # noqa: PTH101


def _others_write(status: os.stat_result) -> bool:
    """Return whether others can write. The group of the user's own name contains nobody else."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status.st_gid)


def _is_own_group(gid: int) -> bool:
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (
        user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    )


def _gives_owner(directory: int, owner: int) -> bool:
    """Return whether new files in a directory get this owner, whoever makes them."""
    status = _probe(directory)
    return status is not None and status.st_uid == owner


def _gives_mode(directory: int) -> bool:
    """Return whether new files in a directory are writable by others, whatever their mode."""
    status = _probe(directory)
    return status is not None and bool(status.st_mode & _WRITABLE)


def _probe(directory: int) -> os.stat_result | None:
    name = f".jmapfs-{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN
        descriptor = os.open(name, flags, _FILE_MODE, dir_fd=directory)
    except OSError:
        return None
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def create_file(path: Path | str, mode: int = 0o400, flags: int = os.O_WRONLY) -> int:
    """Create a file that must not exist yet, of this mode whatever the umask is. Return it open."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    if mode & ~os.fstat(descriptor).st_mode:
        os.fchmod(descriptor, mode)
    return descriptor


def open_regular(path: Path | str, *, follow: bool = False) -> int:
    """Open a regular file for reading. A symbolic link is an error, unless `follow`.

    Use `follow` for files that the user names, such as the configuration.
    """
    return _open_regular(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW))


def open_reading(path: Path | str, *, buffering: int = io.DEFAULT_BUFFER_SIZE) -> io.BufferedReader:
    """Open a regular file as `open_regular` does, and return a file object."""
    return io.BufferedReader(io.FileIO(open_regular(path)), buffering)


def read_named_file(path: Path, *, secret: bool = False, own: bool = False) -> bytes:
    """Return the content of a regular file that the user named, or to which a link leads.

    With `secret`, no other user may have access. With `own`, no other user may be able to change
    the file: its owner is the user, root, or the user who called sudo.
    """
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        status = os.fstat(file.fileno())
        if secret and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UnsafePathError(
                path, f"other users can access it; run: chmod 600 {path}", errno.EPERM
            )
        if own and _others_write(status):
            raise UnsafePathError(
                path, f"other users can change it; run: chmod go-w {path}", errno.EPERM
            )
        if own and status.st_uid not in {os.geteuid(), 0, _sudo_user()}:
            owner = _user_name(status.st_uid)
            raise UnsafePathError(
                path,
                f"it belongs to {owner}, who can change it: make a copy of your own",
                errno.EPERM,
            )
        return file.read()


def _sudo_user() -> int | None:
    user = os.environ.get("SUDO_UID", "")
    return int(user) if os.geteuid() == 0 and user.isdecimal() else None


def open_private(path: Path, flags: int = os.O_RDWR, *, create: bool = True) -> int:
    """Open a regular file in a private directory. `create` makes it if it does not exist.

    Its owner must be the user, root, or the owner of the directory.
    """
    if create:
        with contextlib.suppress(FileExistsError):
            return create_file(path, _FILE_MODE, flags)
    descriptor = _open_regular(path, flags | os.O_NOFOLLOW)
    try:
        _require_own(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def require_own_database(path: Path) -> None:
    """Check the files of an SQLite database, which SQLite would follow or wait for.

    Files that do not exist are right. Nobody else can replace them in a private directory.
    """
    for suffix in _DATABASE_SUFFIXES:
        file = Path(f"{path}{suffix}")
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            raise UnsafePathError(file, f"it is {describe_type(status.st_mode)}, not a file")
        _require_own(file, status)


def _open_regular(path: Path | str, flags: int) -> int:
    try:
        # If the path is not a regular file: do not wait for a FIFO.
        descriptor = os.open(path, flags | _OPEN)
    except OSError as error:
        # ELOOP is a link, and ENXIO a socket or a FIFO without a reader.
        if error.errno not in {errno.ELOOP, errno.ENXIO, errno.EISDIR}:
            raise
        mode = _mode_of(path, follow=not flags & os.O_NOFOLLOW)
        if stat.S_ISREG(mode):
            raise
        raise _not_regular(path, mode, error.errno) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(path, mode)
    return descriptor


def _mode_of(path: Path | str, *, follow: bool) -> int:
    try:
        return Path(path).stat(follow_symlinks=follow).st_mode
    except OSError:
        # A loop of links.
        return Path(path).lstat().st_mode


def _not_regular(path: Path | str, mode: int, number: int = errno.EINVAL) -> UnsafePathError:
    return UnsafePathError(path, f"it is {describe_type(mode)}, not a file", number)


def _require_own(path: Path, status: os.stat_result) -> None:
    if status.st_uid in {os.geteuid(), 0} or status.st_uid == path.parent.stat().st_uid:
        return
    raise UnsafePathError(
        path, f"it belongs to {_user_name(status.st_uid)}: remove it", errno.EPERM
    )
