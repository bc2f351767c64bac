"""A throw-away Slurm cluster on this machine: real daemons, two virtual nodes with fake GPUs.

Needs Slurm's packages, munge and, for accounting, MariaDB; neither systemd nor a configured
system. Everything it writes lies in one folder, and it ends only processes that it started.

    python tests/support/cluster.py up [--folder .slurm] [--no-accounting]
    python tests/support/cluster.py down [--folder .slurm]
"""

import argparse
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).parent / "slurm_templates"
DAEMONS = ("munged", "slurmctld", "slurmd")
ACCOUNTING_DAEMONS = ("slurmdbd", "mariadbd", "mariadb-install-db")
CLIENTS = (
    "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sshare",
)  # fmt: skip
NODES = ("n0", "n1")
GPUS = 2  # per node
_JOB = "SLURM_JOB_ID="
READY = 120  # seconds until a daemon answers, on a busy machine
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where distributions keep daemons


def missing(accounting: bool = True) -> list[str]:
    """The programs that a cluster needs and this machine lacks."""
    needed = (*DAEMONS, *CLIENTS, *(ACCOUNTING_DAEMONS if accounting else ()))
    return [name for name in needed if shutil.which(name, path=PATH) is None]


@dataclass(frozen=True)
class Daemon:
    """A process of the cluster's, known by its recorded id and start."""

    name: str
    folder: Path

    @property
    def _record(self) -> Path:
        return self.folder / "run" / f"{self.name}.pid"

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Start it in a session of its own, unless it runs already."""
        if self.pid() is not None:
            return
        with (self.folder / "log" / f"{self.name}.out").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._record.write_text(f"{process.pid} {_born(process.pid)}")

    def pid(self) -> int | None:
        """Its process id; None if it doesn't run, whoever has that id now."""
        if not self._record.exists():
            return None
        pid, born = self._record.read_text().split()
        return int(pid) if _born(int(pid)) == born else None

    def stop(self, patience: float = 10) -> None:
        """End it, by force when it doesn't end by itself."""
        if (pid := self.pid()) is not None:
            os.kill(pid, signal.SIGTERM)
            if not within(patience, lambda: self.pid() is None):
                self.kill()
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if (pid := self.pid()) is not None:
            os.kill(pid, signal.SIGKILL)
            within(10, lambda: self.pid() is None)


class Cluster:
    """Slurm with all its state in one folder.

    Args:
        folder: Where its state is, or will be.
        accounting: Whether jobs are recorded in a database, so that ``sacct`` knows them.
    """

    def __init__(self, folder: Path, accounting: bool = True) -> None:
        self.folder = folder.resolve()
        self.accounting = accounting
        self.environment = os.environ | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(self._socket("mysql")),
            "PATH": f"{self.folder / 'bin'}:{PATH}",
        }

    def up(self) -> None:
        """Start what doesn't run yet, and wait until jobs can be submitted."""
        for name in ("run", "log", "state", "bin", "gpu", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._start_munge()
        self._write_configuration()
        if self.accounting:
            self._start_database()
            self._start_accounting()
        self._start("slurmctld", "-D", "-f", self.folder / "slurm.conf")
        self._await("slurmctld", lambda: "UP" in self.command("scontrol", "ping"))
        for node in NODES:
            self.start_node(node)
        self._await("nodes", lambda: self._idle() == len(NODES))

    def down(self) -> None:
        """End all jobs, then stop the daemons."""
        self.clear()
        for name in (*map(_slurmd, NODES), "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._daemon(name).stop()

    def clear(self) -> None:
        """End all jobs at once, with what became of their processes.

        Without cgroups, Slurm loses sight of a process whose parent has ended; but each process
        of a job has the job's id and this cluster's configuration in its environment.
        """
        if self._daemon("slurmctld").pid() is not None:
            self.command("scancel", "--full", "--signal=KILL", "--user", getpass.getuser())
            self.command("scancel", "--user", getpass.getuser())
            within(30, lambda: not self.queue())
        configuration = f"SLURM_CONF={self.folder}/slurm.conf"
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                variables = environment.read_bytes().decode(errors="replace").split("\0")
                if configuration in variables and any(v.startswith(_JOB) for v in variables):
                    os.kill(int(environment.parent.name), signal.SIGKILL)

    def command(self, *command: str) -> str:
        """What one of Slurm's commands prints; empty if it fails."""
        done = self._run(*command)
        return done.stdout.strip() if done.returncode == 0 else ""

    def queue(self, *options: str) -> list[list[str]]:
        """Jobs that haven't ended: id, state, node and, as Slurm's comment, rule and run.

        Raises:
            SubprocessError: Slurm doesn't answer, which doesn't mean that there is no job.
        """
        done = self._run("squeue", "--noheader", "--format=%A|%T|%N|%k", *options)
        done.check_returncode()
        return [line.split("|") for line in done.stdout.strip().splitlines()]

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        options = ("-D", "-N", node, "-f", self.folder / "slurm.conf")
        self._start("slurmd", *options, name=_slurmd(node))

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon, and leave its jobs' processes alone: Slurm thinks the node dead."""
        self._daemon(_slurmd(node)).kill()
        self.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def _start_munge(self) -> None:
        key, socket_ = self.folder / "munge.key", self._socket("munge")
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o600)
        if self._daemon("munged").pid() is None:
            socket_.unlink(missing_ok=True)
        files = {
            "key-file": key, "socket": socket_, "pid-file": self.folder / "run/munged.own",
            "log-file": self.folder / "log/munged.log",
            "seed-file": self.folder / "munge.seed",
        }  # fmt: skip
        # by force, since its socket may lie below a folder of the user's own
        options = ("--foreground", "--force", *(f"--{k}={path}" for k, path in files.items()))
        self._start("munged", *options)
        self._await("munged", lambda: self.command("munge", "-n", "-S", str(socket_)) != "")

    def _write_configuration(self) -> None:
        """All of Slurm's files; a cluster that exists keeps its ports."""
        ports = self.folder / "ports"
        if not ports.exists():
            ports.write_text(" ".join(map(str, _free_ports(4))))
        controller, database, *nodes = ports.read_text().split()
        values = {
            "folder": str(self.folder), "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(), "controller": controller, "database": database,
            "gpus": str(GPUS), **dict(zip(NODES, nodes, strict=True)),
        }  # fmt: skip
        kind = "accounting" if self.accounting else "no-accounting"
        for name in ("slurm.conf", "slurmdbd.conf", "cgroup.conf", "gres.conf", "plugstack.conf"):
            text = _filled((TEMPLATES / name).read_text(), values)
            if name == "slurm.conf":
                text += _filled((TEMPLATES / f"{kind}.conf").read_text(), values)
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o600 if name == "slurmdbd.conf" else 0o644)
        for node in NODES:
            for gpu in range(GPUS):  # Slurm insists on character devices
                _link(self.folder / "gpu" / f"{node}-{gpu}", Path("/dev/null"))
        self._write_wrappers()

    def _write_wrappers(self) -> None:
        """Commands that name the cluster: the step inside a job loses SLURM_CONF otherwise."""
        for name in CLIENTS:
            wrapper = self.folder / "bin" / name
            line = f'SLURM_CONF={self.folder}/slurm.conf exec {shutil.which(name, path=PATH)} "$@"'
            wrapper.write_text(f"#!/bin/sh\n{line}\n")
            wrapper.chmod(0o755)
        (self.folder / "env.sh").write_text(
            f"export SLURM_CONF={self.folder}/slurm.conf\nexport PATH={self.folder}/bin:$PATH\n"
        )

    def _start_database(self) -> None:
        data, socket_ = self.folder / "database", self._socket("mysql")
        user = f"--user={getpass.getuser()}"
        if not (data / "mysql").exists():
            install = ["mariadb-install-db", "--no-defaults", user, f"--datadir={data}"]
            install += ["--auth-root-authentication-method=normal", "--skip-test-db"]
            subprocess.run(install, env=self.environment, check=True, capture_output=True)
        self._start(
            "mariadbd", "--no-defaults", user, f"--datadir={data}", f"--socket={socket_}",
            "--skip-networking", f"--pid-file={self.folder / 'run/mariadbd.own'}",
            "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
        )  # fmt: skip
        sql = "create user if not exists slurm@localhost; grant all on slurm.* to slurm@localhost"
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={socket_}"]
        self._await("mariadbd", lambda: self._succeeds(*client, f"--execute={sql}"))

    def _start_accounting(self) -> None:
        self._start("slurmdbd", "-D")
        listed = ("sacctmgr", "--noheader", "--immediate", "list", "cluster")
        self._await("slurmdbd", lambda: self._succeeds(*listed))
        for entry in (("cluster", "toy"), ("account", "lab"), ("user", getpass.getuser())):
            extra = ("account=lab",) if entry[0] == "user" else ()
            self.command("sacctmgr", "--immediate", "add", *entry, *extra)

    def _idle(self) -> int:
        return len(self.command("sinfo", "-h", "-N", "-t", "idle,mix,alloc", "-o", "%N").split())

    def _run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30
        )

    def _start(self, program: str, *options: str | Path, name: str = "") -> None:
        found = shutil.which(program, path=PATH)
        command = [found or program, *map(str, options)]
        self._daemon(name or program).start(command, self.environment)

    def _daemon(self, name: str) -> Daemon:
        return Daemon(name, self.folder)

    def _socket(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.socket"

    def _succeeds(self, *command: str) -> bool:
        done = subprocess.run(command, env=self.environment, capture_output=True, timeout=30)
        return done.returncode == 0

    def _await(self, what: str, ready: Callable[[], bool]) -> None:
        if not within(READY, ready):
            raise TimeoutError(f"{what}: not ready after {READY} s; see {self.folder / 'log'}")


def _slurmd(node: str) -> str:
    return f"slurmd-{node}"


def _born(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time; a command that fails in it is tried again."""
    end = time.monotonic() + seconds
    while True:
        with suppress(subprocess.SubprocessError):
            if condition():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def _filled(template: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template


def _link(path: Path, target: Path) -> None:
    if not path.is_symlink():
        path.symlink_to(target)


def main() -> None:
    """Bring a cluster up or down."""
    parser = argparse.ArgumentParser(description="A throw-away Slurm cluster on this machine.")
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--folder", type=Path, default=Path(".slurm"))
    parser.add_argument("--no-accounting", action="store_true", help="without a database")
    options = parser.parse_args()
    if lacking := missing(accounting=not options.no_accounting):
        sys.exit(f"missing: {', '.join(lacking)}; docs/cluster.md names the packages")
    cluster = Cluster(options.folder, accounting=not options.no_accounting)
    if options.action == "down":
        cluster.down()
        return
    cluster.up()
    print(cluster.command("sinfo", "-N", "-o", "%N %P %T %c cores %m MB %G"))
    print(f"\n. {options.folder}/env.sh      # in each shell that shall use it, then for example:")
    print("snakemake --profile slurm toy_regression")


if __name__ == "__main__":
    main()
