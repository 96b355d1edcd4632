"""A PostgreSQL server on the loopback interface, with a role that owns only its schema."""

from __future__ import annotations

__all__ = ["PostgresServer", "find_postgres"]

import contextlib
import dataclasses
import os
import pwd
import secrets
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psutil
from lsst.daf.butler import Butler, Config

from spark_butler.demo.s3server import find_free_ports
from spark_butler.signals_and_locks import dying_with_parent

_USER = "postgres"


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, if they are installed."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@dataclasses.dataclass
class PostgresServer:
    """A running server with one database, ``lsst``."""

    folder: Path
    programs: Path
    port: int
    # As awkward as a password may be.
    password: str = dataclasses.field(default_factory=lambda: f"p/w@{secrets.token_hex(8)}:%", repr=False)
    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def serve(cls, folder: Path, programs: Path) -> Iterator[PostgresServer]:
        """Start a server; its end is certain."""
        folder.mkdir(parents=True, exist_ok=True)
        (port,) = find_free_ports(1)
        server = cls(folder, programs, port)
        if os.getuid() == 0:
            # It refuses to run as root.
            os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
            for parent in folder.parents:
                if parent.stat().st_uid == 0 and parent != Path("/"):
                    parent.chmod(parent.stat().st_mode | 0o011)
        server.call("initdb", "-D", folder / "data", "-U", "admin", "-A", "trust", "-E", "UTF8", "-N")
        rules = ("host all admin 127.0.0.1/32 trust", "host all all 127.0.0.1/32 scram-sha-256")
        (folder / "data" / "pg_hba.conf").write_text("\n".join(rules) + "\n")
        try:
            server.start()
            server.ask("CREATE DATABASE lsst", database="postgres")
            server.ask("CREATE EXTENSION btree_gist")
            server.ask("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            yield server
        finally:
            server.kill()

    def call(self, program: str, *arguments: str | Path) -> None:
        """Run a program of PostgreSQL to its end."""
        subprocess.run(
            [str(self.programs / program), *map(str, arguments)],
            check=True,
            capture_output=True,
            cwd=self.folder,
            user=_USER if os.getuid() == 0 else None,
        )

    def start(self) -> None:
        """Start the server unless it runs, and wait until it answers."""
        if self._process is not None:
            return
        options = ["-F", "-p", str(self.port), "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1"]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.folder / "data"), *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=_USER if os.getuid() == 0 else None,
                preexec_fn=dying_with_parent(),
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.CalledProcessError):
                return self.call("pg_isready", "-h", "127.0.0.1", "-p", str(self.port))
            time.sleep(0.1)
        raise TimeoutError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        """Kill the server at once, as a machine that fails does."""
        if self._process is not None:
            # Its children end by themselves when they miss it.
            self._process.send_signal(3)
            self._process.wait()
            self._process = None

    def cpu_seconds(self) -> float:
        """Return the processor time of the server's processes that run now, in seconds."""
        assert self._process is not None
        root = psutil.Process(self._process.pid)
        times = [each.cpu_times() for each in (root, *root.children())]
        return float(sum(each.user + each.system for each in times))

    def ask(self, sql: str, *, database: str = "lsst") -> str:
        """Run SQL as the administrator, and return what it prints."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "admin", "-d", database]
        command = [str(self.programs / "psql"), *where, "-X", "-A", "-t", "-q", "-c", sql]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def add_schema(self, name: str) -> str:
        """Add a schema and a role of the same name that owns only that; return the role's address."""
        quoted = self.password.replace("'", "''")
        self.ask(f"CREATE ROLE {name} LOGIN PASSWORD '{quoted}'")
        self.ask(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        self.ask("GRANT USAGE ON SCHEMA public TO PUBLIC")
        return f"postgresql+psycopg://{name}@127.0.0.1:{self.port}/lsst"

    def write_credentials(self, file: Path, name: str, *, database: str = "lsst") -> None:
        """Write a file for ``LSST_DB_AUTH``, as a user would."""
        file.write_text(
            f"- url: postgresql://127.0.0.1:{self.port}/{database}\n  username: {name}\n"
            f"  password: {self.password!r}\n"
        )
        file.chmod(0o600)

    def make_repo(self, root: Path, name: str, datastore: str | None = None) -> Path:
        """Make a repository with its registry in a schema of its own."""
        address = self.add_schema(name)
        config = Config({"registry": {"db": address, "namespace": name}})
        if datastore is not None:
            config["datastore", "root"] = datastore
        Butler.makeRepo(root, config, forceConfigRoot=datastore is None)
        return root

    @property
    def quoted_password(self) -> str:
        """The password as it stands in an address."""
        return urllib.parse.quote(self.password, safe="")
