"""A real single-node SLURM from Debian's packages, for the tests: no systemd, no cgroups, loopback only.

    python tests/slurm/cluster.py up [--accounting]
    python tests/slurm/cluster.py down

``up`` installs missing packages, needs root and may be repeated; ``down`` leaves nothing behind but the packages. The
node has two placeholder GPUs and more CPUs and memory than the machine, so that GPUs are what jobs wait for. A SLURM
that somebody else configured on this machine is never touched.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HOME = Path("/tmp/mkdt-slurm")
# The compiled-in place: the executor plugin strips SLURM_CONF from the environment of a job step.
ETC = Path("/etc/slurm")
MARK = "# Written by tests/slurm/cluster.py\n"
GPUS = 2
PACKAGES = ["munge", "slurmctld", "slurmd", "slurm-client"]
ACCOUNTING_PACKAGES = ["slurmdbd", "mariadb-server"]
DAEMONS = ["slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged"]  # in the order in which they are stopped

SLURM_CONF = """\
ClusterName=mkdt
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire: a requeued job waits so many seconds before it starts again (SLURM's default: 120).
AuthInfo=socket={home}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=1
# Schedule at once: a test should wait for jobs, not for the scheduler.
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# Without cgroups memory is polled, and a job that exceeds it is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Believe what stands below about the node: it has fewer CPUs and less memory.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={node} NodeAddr=127.0.0.1 CPUs=64 RealMemory=262144 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes={node} Default=YES PriorityTier=2 MaxTime=1-0 State=UP
PartitionName=preemptible Nodes={node} PriorityTier=1 MaxTime=1-0 State=UP
"""
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none\n"
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass={home}/munge.socket
AccountingStorageTRES=gres/gpu
# The plugin notes the rule in a job's comment; its efficiency report reads it.
AccountingStoreFlags=job_comment
"""
SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
CommunicationParameters=NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
LogFile={home}/slurmdbd.log
PidFile={home}/slurmdbd.pid
"""


def obstacle() -> str | None:
    """Why no cluster can be brought up here; None where it can."""
    if not Path("/etc/debian_version").is_file() or shutil.which("apt-get") is None:
        return "needs Debian's packages of SLURM"
    if os.geteuid() != 0:
        return "needs root, to install packages and to start daemons"
    for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
        file = ETC / name
        if file.exists() and not file.read_text(encoding="utf-8").startswith(MARK):
            return f"{file} belongs to another SLURM, which is left alone"
    return None


def up(accounting: bool) -> None:
    """Bring the cluster up, with or without an accounting database; nothing to do where it runs like that.

    Raises:
        SystemExit: one sentence that says why it cannot.
    """
    if reason := obstacle():
        raise SystemExit(f"No SLURM here: {reason}.")
    mode = HOME / "accounting"
    if all(_pid(name) for name in ("slurmd", "slurmctld", "munged")) and mode.read_text() == str(accounting):
        return
    down()
    install(accounting)
    HOME.mkdir(mode=0o755)
    for name in ("state", "spool", "dev"):
        (HOME / name).mkdir()
    names = {"node": socket.gethostname().split(".")[0], "home": HOME, "gpus": GPUS}
    key = HOME / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    # A GPU of gres.conf needs a device file; nothing opens these, as no cgroup guards them.
    for gpu in range(GPUS):
        os.mknod(HOME / f"dev/gpu{gpu}", 0o666 | 0o020000, os.makedev(1, 3))
    ETC.mkdir(exist_ok=True)
    conf = SLURM_CONF + (ACCOUNTING if accounting else NO_ACCOUNTING)
    (ETC / "slurm.conf").write_text(MARK + conf.format(**names), encoding="utf-8")
    gres = f"AutoDetect=off\nNodeName={names['node']} Name=gpu File={HOME}/dev/gpu[0-{GPUS - 1}]\n"
    (ETC / "gres.conf").write_text(MARK + gres, encoding="utf-8")

    _call(
        "munged", "--force", f"--key-file={key}", f"--socket={HOME}/munge.socket", f"--pid-file={HOME}/munged.pid",
        f"--log-file={HOME}/munged.log", f"--seed-file={HOME}/munged.seed",
    )  # fmt: skip
    if accounting:
        _database(names)
    _call("slurmctld")
    _wait("slurmctld", lambda: _call("scontrol", "ping", quiet=True))
    _call("slurmd")
    _wait("the node", lambda: "idle" in _output("sinfo", "--noheader", "--format=%T"))
    mode.write_text(str(accounting))


def _database(names: dict[str, object]) -> None:
    data, server = HOME / "db", HOME / "mysqld.sock"
    data.mkdir()
    shutil.chown(data, "mysql", "mysql")
    _call(
        "mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db",
        "--auth-root-authentication-method=socket",
    )  # fmt: skip
    # As root, since the server cannot write its socket into a folder of root's otherwise; it listens to nothing else.
    with (HOME / "mariadbd.log").open("wb") as log:
        process = subprocess.Popen(
            ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={server}", "--skip-networking",
             "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    (HOME / "mariadbd.pid").write_text(str(process.pid))
    client = ["mariadb", "--no-defaults", f"--socket={server}"]
    _wait("mariadb", lambda: _call(*client, "-e", "SELECT 1", quiet=True))
    _call(*client, "-e", "CREATE DATABASE slurm_acct_db")
    conf = ETC / "slurmdbd.conf"
    conf.touch(mode=0o600)
    conf.write_text(MARK + SLURMDBD_CONF.format(**names), encoding="utf-8")
    _call("slurmdbd", environment={"MYSQL_UNIX_PORT": str(server)})
    _wait("slurmdbd", lambda: _call("sacctmgr", "--noheader", "list", "cluster", quiet=True))
    _call("sacctmgr", "--immediate", "add", "cluster", "mkdt")
    _call("sacctmgr", "--immediate", "add", "account", "lab", "Description=tests", "Organization=tests")
    _call("sacctmgr", "--immediate", "add", "user", "root", "Account=lab")


def down() -> None:
    """Cancel all jobs, stop the daemons that ``up`` started, and remove its files."""
    if _pid("slurmctld"):
        _call("scancel", "--user=root", quiet=True)
        _call("scancel", "--user=root", "--signal=KILL", "--full", quiet=True)
        _wait("the last jobs", lambda: not _output("squeue", "--noheader"))
    for name in DAEMONS:
        if pid := _pid(name):
            os.kill(pid, signal.SIGTERM)
            _wait(f"the end of {name}", lambda name=name: _pid(name) is None)  # type: ignore[misc]
    # Without cgroups a job's processes can outlive it: those of a node that was set down do.
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"\0SLURM_CLUSTER_NAME=mkdt\0" in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
        file = ETC / name
        if file.exists() and file.read_text(encoding="utf-8").startswith(MARK):
            file.unlink()
    shutil.rmtree(HOME, ignore_errors=True)


def _pid(daemon: str) -> int | None:
    """Process id of a running daemon that ``up`` started; a pid file that another process inherited does not count."""
    try:
        pid = int((HOME / f"{daemon}.pid").read_text())
        process = Path(f"/proc/{pid}")
        # A child that ended and was not waited for has its name still, but no command line.
        return pid if (process / "comm").read_text().strip() == daemon and (process / "cmdline").read_bytes() else None
    except (OSError, ValueError):
        return None


def install(accounting: bool) -> None:
    """Install the packages that are not there.

    Raises:
        SystemExit: what apt said.
    """

    def missing(package: str) -> bool:
        return "install ok installed" not in _output("dpkg-query", "--show", "--showformat=${Status}", package)

    wanted = [package for package in PACKAGES + ACCOUNTING_PACKAGES * accounting if missing(package)]
    if not wanted:
        return
    # Debian's packages would start their daemons with Debian's configuration.
    guard = Path("/usr/sbin/policy-rc.d")
    guarded = guard.exists()
    if not guarded:
        guard.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
        guard.chmod(0o755)
    try:
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        _call("apt-get", "update", environment=environment)
        _call("apt-get", "install", "--yes", "--no-install-recommends", *wanted, environment=environment)
    finally:
        if not guarded:
            guard.unlink()


def _call(*command: str, environment: dict[str, str] | None = None, quiet: bool = False) -> bool:
    done = subprocess.run(
        command, env=os.environ | (environment or {}), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode and not quiet:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.returncode == 0


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _wait(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in sorted(HOME.glob("*.log")))
            raise SystemExit(f"Waited {seconds:.0f} s in vain for {what}.\n{logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and mariadb")
    arguments = parser.parse_args()
    if arguments.action == "up":
        up(arguments.accounting)
        sys.stdout.write(_output("sinfo", "--format=%P %T %c %m %G"))
    else:
        down()
