"""A real Slurm in a folder: controller and two nodes on this machine, three partitions, for as long as a test wants them.

Jobs of high take the nodes of those of low, which are told half a minute before, and of brute, which are not.

Needs root and Debian's packages `slurmctld slurmd slurm-client` (`prove.py --install` fetches them). Nothing outside of the
folder is written, and it listens on 127.0.0.1 only. No accounting, no cgroups, no authentication: for a machine of one's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
_NODES = {"n1": 16818, "n2": 16819}
# cred_expire also is the time after which a requeued job may start; config_overrides lets a node have more CPUs than there are.
_CONFIGURATION = """\
ClusterName=proof
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=16817
SrunPortRange=16900-16999
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MinJobAge=3600
MessageTimeout=30
{nodes}
PartitionName=low  Nodes=n[1-2] Default=YES MaxTime=60 DefaultTime=10 PriorityTier=1  PreemptMode=REQUEUE GraceTime=30 State=UP
PartitionName=high Nodes=n[1-2] Default=NO  MaxTime=60 DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=brute Nodes=n[1-2] Default=NO MaxTime=60 DefaultTime=10 PriorityTier=1  PreemptMode=REQUEUE GraceTime=0 State=UP
"""


class Cluster:
    """Started by `with`; its clients find it by SLURM_CONF, which is set meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def __enter__(self) -> Cluster:
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise SystemExit(f"{', '.join(missing)} not found: install Slurm, or let --install do it (Debian, root).")
        host = socket.gethostname().partition(".")[0]
        try:
            socket.gethostbyname(host)
        except OSError:
            raise SystemExit(f"Slurm needs this machine's name to resolve: add '127.0.0.1 {host}' to /etc/hosts.") from None
        for name in ("run", "log", "state", *(f"spool/{node}" for node in _NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 State=UNKNOWN"
            for name, port in _NODES.items()
        )
        file = self.folder / "slurm.conf"
        file.write_text(_CONFIGURATION.format(host=host, folder=self.folder, nodes=nodes))
        os.environ["SLURM_CONF"] = str(file)
        try:
            self._start(["slurmctld", "-i"])
            for name in _NODES:
                self._start(["slurmd", "-N", name])
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, command: list[str]) -> None:
        with open(self.folder / "log" / "started", "ab") as log:  # they go into the background by themselves
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)

    def _wait_until_idle(self) -> None:
        limit = time.monotonic() + 30
        while True:
            answer = subprocess.run(["sinfo", "-h", "-N", "-p", "low", "-o", "%T"], capture_output=True, text=True, timeout=20)
            if answer.stdout.split() == ["idle"] * len(_NODES):
                return
            if time.monotonic() > limit:
                raise SystemExit(f"Slurm did not come up: {answer.stdout} {answer.stderr}; see {self.folder / 'log'}")
            time.sleep(0.25)

    def __exit__(self, *_: object) -> None:
        """Cancel everything and stop the three daemons, by the ids that they wrote down."""
        subprocess.run(["scancel", "--me"], capture_output=True, timeout=60)
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            if not subprocess.run(["squeue", "-h", "--me"], capture_output=True, text=True, timeout=60).stdout.strip():
                break
            time.sleep(0.5)
        for name, program in (*((node, "slurmd") for node in _NODES), ("slurmctld", "slurmctld")):
            file = self.folder / "run" / f"{name}.pid"
            number = int(file.read_text()) if file.exists() and file.read_text().strip() else 0
            if number and _program(number) == program:
                os.kill(number, signal.SIGTERM)
                while _program(number) == program and time.monotonic() < limit + 10:
                    time.sleep(0.1)
        os.environ.pop("SLURM_CONF", None)


def _program(number: int) -> str | None:
    """Name of a running process; None: it is gone, or only its parent has not noticed."""
    try:
        status = Path(f"/proc/{number}/status").read_text()
    except FileNotFoundError:
        return None
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return None if lines["State"].startswith("Z") else lines["Name"]
