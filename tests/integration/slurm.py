"""A SLURM of our own on this machine: real daemons, several nodes, nothing shared with a SLURM that may run here."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "srun", "sbatch", "scancel", "setpriv")
START_SECONDS = 60.0
STOP_SECONDS = 20.0
_HOSTS = Path("/etc/hosts")


class SlurmError(Exception):
    """SLURM cannot be run here; the message says why."""


class Slurm:
    """A running cluster.

    Attributes
    ----------
    nodes : names of its nodes, which resolve to this machine
    environment : variables with which sbatch, srun, sinfo and scontrol talk to it
    """

    def __init__(self, nodes: Sequence[str], environment: dict[str, str]) -> None:
        self.nodes = list(nodes)
        self.environment = environment

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 60) -> str:
        """Run a command against this cluster, and return what it printed.

        Raises
        ------
        subprocess.CalledProcessError
            if it fails
        """
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=True
        )
        return done.stdout

    def wait_until_idle(self, seconds: float) -> None:
        """Wait until no job is queued or running.

        Raises
        ------
        SlurmError
            if jobs are left after that time
        """
        deadline = time.monotonic() + seconds
        while left := self.run("squeue", "--noheader").strip():
            if time.monotonic() > deadline:
                raise SlurmError(f"jobs are left after {seconds:.0f} s:\n{left}")
            time.sleep(0.5)


@contextmanager
def local_slurm(n_nodes: int = 2, cpus: int = 2) -> Iterator[Slurm]:
    """Run munged, slurmctld and one slurmd a node for as long as the context lasts.

    Parameters
    ----------
    n_nodes : nodes, all of them this machine
    cpus : that each node offers, whatever the machine has

    Raises
    ------
    SlurmError
        if a program is missing, this process is not root, or the nodes do not come up
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise SlurmError(f"not installed: {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        raise SlurmError("its daemons need root")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        nodes = [f"{folder.name.replace('_', 'x')}-{number}" for number in range(1, n_nodes + 1)]
        configuration = _configure(folder, nodes, cpus)
        # Also where these tests are themselves a job of another SLURM.
        elsewhere = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        slurm = Slurm(nodes, {**elsewhere, "SLURM_CONF": str(configuration)})
        stack.enter_context(_names_of_this_machine(nodes))
        _start_daemons(stack, folder, slurm)
        stack.callback(_cancel_all, slurm)
        yield slurm


def _configure(folder: Path, nodes: Sequence[str], cpus: int) -> Path:
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    controller, *ports = _free_ports(1 + len(nodes))
    # No cgroups and no task binding: containers have neither.
    settings = {
        "ClusterName": "tests",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": controller,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        # A requeued job waits for its old credentials to expire.
        "AuthInfo": f"socket={folder}/munge/socket,cred_expire=5",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool" / "%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "KillWait": 5,
        "MinJobAge": 300,
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    for node, port in zip(nodes, ports, strict=True):
        lines.append(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN")
    lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    path = folder / "slurm.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def _free_ports(n_ports: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n_ports)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def _names_of_this_machine(nodes: Sequence[str]) -> Iterator[None]:
    """Let the names of nodes resolve: distributed training finds its first process by the name of the first node."""
    line = f"127.0.0.1 {' '.join(nodes)}\n"
    alone = FileLock(Path(tempfile.gettempdir()) / "slurm-tests-hosts.lock")
    with alone:
        _HOSTS.write_text(_HOSTS.read_text() + line)
    try:
        yield
    finally:
        with alone:
            _HOSTS.write_text(_HOSTS.read_text().replace(line, ""))


def _start_daemons(stack: ExitStack, folder: Path, slurm: Slurm) -> None:
    munge = folder / "munge"
    files = [f"--{name}-file={munge / name}" for name in ("key", "log", "pid", "seed")]
    _start(stack, slurm, munge / "out", "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
    _wait(lambda: (munge / "socket").exists(), munge / "out")
    _start(stack, slurm, folder / "slurmctld.out", "slurmctld", "-D")
    for node in slurm.nodes:
        _start(stack, slurm, folder / f"{node}.out", "slurmd", "-D", "-N", node)
    _wait(lambda: _states(slurm) == ["idle"] * len(slurm.nodes), *sorted(folder.glob("*.out")))


def _start(stack: ExitStack, slurm: Slurm, log: Path, *command: str) -> None:
    # They end with this process, however that comes about.
    with_parent = ("setpriv", "--pdeathsig", "TERM", *command)
    with log.open("wb") as stream:
        process = subprocess.Popen(with_parent, env=slurm.environment, stdout=stream, stderr=stream)
    stack.callback(_stop, process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _states(slurm: Slurm) -> list[str]:
    done = subprocess.run(
        ["sinfo", "--Node", "--noheader", "--format=%T"],
        env=slurm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def _wait(came_up, *logs: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not came_up():
        if time.monotonic() > deadline:
            said = "\n".join(f"{log.name}: {log.read_text()[-500:]}" for log in logs)
            raise SlurmError(f"did not come up within {START_SECONDS:.0f} s:\n{said}")
        time.sleep(0.2)


def _cancel_all(slurm: Slurm) -> None:
    # slurmd leaves the processes of its jobs running.
    slurm.run("scancel", "--user=root")
    slurm.wait_until_idle(STOP_SECONDS)
