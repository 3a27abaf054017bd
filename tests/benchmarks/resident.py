"""Memory that a step takes, as Linux counts what a process has resident."""

import pathlib
import subprocess
import sys
from collections.abc import Callable


def now(name: str = "VmRSS") -> int:
    """A size from Linux's account of this process, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def peak(step: Callable[[], object]) -> int:
    """The most that this process has resident during a step, in bytes."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak.
    made = step()
    most = now("VmHWM")
    del made
    return most


def in_fresh_process(flag: str) -> float:
    """The number that this program prints last if it is given a flag more."""
    command = [sys.executable, *sys.argv, flag]
    finished = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(finished.stdout.split()[-1])
