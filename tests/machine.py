"""A machine on which jmapfs is installed as by root, for scripts with the real system programs.

Each script runs in a mount namespace of its own, so nothing of the real machine changes.
"""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

from tests.mounts import Result, run
from tests.namespaces import new_namespace
from tests.server import ServerProcess
from tests.users import ALICE, UserHome, as_user

_PROGRAM = f"""#!/bin/sh
export PYTHONPATH="{os.environ.get("PYTHONPATH", "")}"
exec {sys.executable} -c 'from jmapfs.__main__ import FUNCTION; FUNCTION()' "$@"
"""

# Installs the programs, gives the other user a home, and opens the directories above the program.
_PREPARATION = """
set -e
mount -t tmpfs none "$SCRATCH"
changeable() {  # makes a directory changeable, in this namespace
    local layers="$SCRATCH/${1//\\//_}"
    mkdir -p "$layers/upper" "$layers/work"
    mount -t overlay none -o "lowerdir=$1,upperdir=$layers/upper,workdir=$layers/work" "$1"
}
sbin="$(realpath /sbin)"
changeable "$sbin"
changeable /usr/local/bin
printf '%s' "$HELPER" >"$sbin/mount.jmapfs"
printf '%s' "$COMMAND" >/usr/local/bin/jmapfs
chmod 755 "$sbin/mount.jmapfs" /usr/local/bin/jmapfs
ln -s mount.jmapfs "$sbin/mount.fuse.jmapfs"
for program in "$PYTHON" "$(realpath "$PYTHON")" "$REPOSITORY/x"; do
    while program="$(dirname "$program")"; [[ $program != / ]]; do
        if [[ ! $(stat --format %A "$program") == *[xt] ]]; then
            changeable "$program"
            chmod o+x "$program"
        fi
    done
done
while IFS=: read -r name fields; do
    if [[ $name == "$USER_NAME" ]]; then
        name="$name:${fields%:*:*}:$ALICE_HOME:/bin/sh"
    else
        name="$name:$fields"
    fi
    printf '%s\n' "$name"
done </etc/passwd >"$SCRATCH/passwd"
mount --bind "$SCRATCH/passwd" /etc/passwd
until_gone() { while jmapfs status "$DIR" 2>/dev/null; do sleep 0.1; done; }
trap 'umount --lazy "$DIR" 2>/dev/null || true' EXIT
set -x
"""


class Machine:
    """A machine on which `mount.jmapfs` is installed, and the account `home` is configured."""

    def __init__(self, alice: UserHome, server: ServerProcess) -> None:
        self.directory = alice.directory
        self._home = alice
        self.mountpoint = alice.mountpoint()
        for name in ("alices", "roots"):
            secret, config = self.directory / f"{name}.secret", self.directory / f"{name}.toml"
            secret.write_text("secret\n")
            secret.chmod(0o600)
            config.write_text(
                f'[home]\nserver = "{server.url}"\nuser = "alice@example.org"\n'
                f'password_file = "{secret}"\n'
            )
        os.chown(self.directory / "alices.secret", pwd.getpwnam(ALICE).pw_uid, -1)
        (self.directory / "scratch").mkdir()

    def run(self, script: str) -> Result:
        """Run a script as root; `$DIR` is an empty directory of Alice."""
        environment = self._home.environment | {
            "DIR": str(self.mountpoint),
            "SCRATCH": str(self.directory / "scratch"),
            "ROOTS": str(self.directory / "roots.toml"),
            "ALICES": str(self.directory / "alices.toml"),
            "ALICE": " ".join(as_user(ALICE)),
            "ALICE_HOME": str(self.directory),
            "USER_NAME": ALICE,
            "HELPER": _PROGRAM.replace("FUNCTION", "mount_helper"),
            "COMMAND": _PROGRAM.replace("FUNCTION", "main"),
            "PYTHON": sys.executable,
            "REPOSITORY": str(Path(__file__).parents[1]),
            "LC_ALL": "C.UTF-8",
        }
        for name in ("JMAPFS_USERNAME", "JMAPFS_PASSWORD"):
            environment.pop(name, None)
        shell = (*new_namespace(keep=self.directory), "bash", "-c", _PREPARATION + script)
        return run(*shell, environment=environment)

    def works(self, script: str) -> str:
        """Run a script that must succeed; return what it prints."""
        result = self.run(script)
        assert result.exit_code == 0, result.stderr
        return result.stdout
