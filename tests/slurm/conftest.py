"""A Slurm cluster of one node on this machine, with a controller of its own."""

import contextlib
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

SWITCH = "MEDSEGMAMBA_TEST_SLURM"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "scancel", "sinfo")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=UsePss,OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MpiDefault=none
SlurmdTimeout=30
ReturnToService=2
KillWait=10
MinJobAge=3600
MaxArraySize=101
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=work Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def pytest_collection_modifyitems(items):
    """Leave these tests out unless they are asked for: they take minutes."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    reason = ""
    if not os.environ.get(SWITCH):
        reason = f"set {SWITCH}=1 to run a Slurm cluster here, for some minutes"
    elif missing:
        reason = f"Slurm is not installed: no {', '.join(missing)}"
    elif os.geteuid():
        reason = "the cluster's processes need root"
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


class Cluster:
    """A controller and a node; ``environment`` is what its commands and jobs need."""

    def __init__(self, root):
        self.root, self.processes = root, {}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
            "SLURM_CONF": str(root / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "LOGNAME": "root",
        }
        for name in ("state", "spool"):
            (root / name).mkdir()
        (root / "munge.key").write_bytes(secrets.token_bytes(1024))
        (root / "munge.key").chmod(0o400)
        host = platform.node().split(".")[0]
        (root / "slurm.conf").write_text(CONFIG.format(host=host, ports=free_ports(2), root=root))
        self.host = host

    def start(self):
        files = {name: f"--{name}-file={self.root}/munge.{name}" for name in ("key", "pid", "log", "seed")}
        self._start("munged", "--foreground", "--force", f"--socket={self.root}/munge.socket", *files.values())
        wait(lambda: (self.root / "munge.socket").exists(), "munge")
        self._start("slurmctld", "-D", "-i")
        self.start_node()

    def start_node(self):
        self._start("slurmd", "-D")
        wait(self.node_is_up, "the node")

    def _start(self, name, *arguments):
        log = (self.root / f"{name}.out").open("ab")
        command = [name, *arguments]
        self.processes[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def kill_node(self):
        """End the node's daemon and all that runs on it at once, as a cut of its power does."""
        if node := self.processes.pop("slurmd", None):
            node.kill()
            node.wait()
        spare = {process.pid for process in self.processes.values()}
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}\0".encode()
        for _ in range(3):  # they may start others
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if mark in (folder / "environ").read_bytes() and int(folder.name) not in spare:
                        os.kill(int(folder.name), signal.SIGKILL)

    def close(self):
        self.kill_node()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()

    def run(self, *command, check=True):
        """Standard output of a command of Slurm."""
        ended = subprocess.run(
            [str(part) for part in command], env=self.environment, capture_output=True, text=True, check=False
        )
        assert not check or ended.returncode == 0, ended.stderr
        return ended.stdout

    def node_is_up(self):
        """Whether the controller hears of the node; a star behind its state says that it does not."""
        text = self.run("sinfo", "--noheader", "--format=%T", check=False).strip()
        return text in ("idle", "mixed", "allocated")

    def states(self, job):
        """State of each task of an array that has one, by its number."""
        text = self.run("scontrol", "--oneliner", "show", "job", job, check=False)
        found = re.findall(r"ArrayTaskId=(\d+) .*?JobState=(\w+)", text)
        return {int(number): state for number, state in found}

    def is_over(self, job):
        return self.run("squeue", "--noheader", "--jobs", job, "--format=%T", check=False).strip() == ""


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait(condition, what, patience=60, pause=0.5):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience} s for {what}"
        time.sleep(pause)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
