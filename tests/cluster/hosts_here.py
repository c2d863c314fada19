"""Several hosts on this machine: network namespaces on one switch, each with a cable that can be pulled."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

NETWORK = "10.77.0"


@dataclass(frozen=True)
class Hosts:
    prefix: str

    def address(self, i: int) -> str:
        return f"{NETWORK}.{10 + i}"

    def space(self, i: int) -> str:
        """Name of the namespace of host i."""
        return f"{self.prefix}{i}"

    def inside(self, i: int) -> list[str]:
        """What a command begins with that runs on host i. (`ip netns exec` would mount /sys anew, which daemons dislike.)"""
        return ["nsenter", f"--net=/run/netns/{self.space(i)}"]

    def cable(self, i: int, plugged: bool) -> None:
        _ip("-n", f"{self.prefix}sw", "link", "set", f"v{i}", "up" if plugged else "down")


def lacking() -> str:
    """Why there can be no such hosts; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install iproute2 util-linux)"
    probe = f"probe{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


@contextmanager
def hosts(n: int) -> Iterator[Hosts]:
    """Hosts 0 to n - 1, until the context ends."""
    made = Hosts(f"sm{os.getpid()}-")
    switch = f"{made.prefix}sw"
    spaces = [switch, *(f"{made.prefix}{i}" for i in range(n))]
    try:
        for space in spaces:
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for i, space in enumerate(spaces[1:]):
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", f"v{i}", "netns", switch)
            _ip("-n", switch, "link", "set", f"v{i}", "master", "br0", "up")
            _ip("-n", space, "addr", "add", f"{made.address(i)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
        yield made
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


def _ip(*arguments: str) -> None:
    done: subprocess.CompletedProcess[str] = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def stop(processes: Sequence["subprocess.Popen[str]"]) -> None:
    """End processes and those that they started."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, 15)
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
