"""A PostgreSQL server for tests, in a folder of its own and as a user without privileges."""

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

import pytest


def _binaries() -> Path | None:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if installed:
        return installed[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class PostgreSQL:
    """One server on 127.0.0.1; ``start`` and ``stop`` may be called again and again."""

    def __init__(self, folder: Path) -> None:
        self._bin = _binaries()
        if self._bin is None:
            pytest.skip("PostgreSQL is not installed (no initdb)")
        self._options = {"cwd": "/", "capture_output": True, "text": True, "timeout": 60}
        if os.geteuid() == 0:  # the server refuses to run as root
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
            self._options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, user.pw_gid)
            # That user must get there: pytest's folders are for one's own.
            for part in (folder, *folder.parents[:3]):
                part.chmod(part.stat().st_mode | 0o055)
        self.folder = folder
        self._data = folder / "data"
        self._call("initdb", "-D", self._data, "-U", "pmray", "-A", "trust", "--no-sync", "-E", "UTF8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()
        self.url = f"postgresql://pmray@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        flags = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder}"
        self._call("pg_ctl", "-D", self._data, "-w", "-l", self.folder / "log", "-o", flags, "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-D", self._data, "-w", "-m", "fast", "stop")

    def kill(self) -> None:
        """As a power cut would end it, but that the disk keeps what was written."""
        self._call("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def _call(self, program: str, *arguments: object) -> None:
        command = [str(self._bin / program), *map(str, arguments)]
        try:
            # The server inherits these, and a pipe would then never end.
            options = {**self._options, "capture_output": False, "stdout": subprocess.DEVNULL}
            subprocess.run(command, **options, stderr=subprocess.DEVNULL, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"PostgreSQL cannot be started here: {error}")
