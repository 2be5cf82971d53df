"""Machines on this machine: network namespaces with an address each, in which the launcher's own folders can't be seen."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

BRIDGE = "eidetic0"
HOST = "10.77.0.1"
"""Under which all of them find the launcher, its servers, and each other."""


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """What the machines will be plugged into, with the launcher's address on it. Needs root."""
    _ip("link", "del", BRIDGE, check=False)  # of a run that was killed
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        _ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield
    finally:
        _ip("link", "del", BRIDGE, check=False)


@contextlib.contextmanager
def network(machines: int) -> Iterator[list[Machine]]:
    """So many machines on the bridge; they are gone at the end, with what ran in them."""
    names = [f"eidetic{number}" for number in range(1, machines + 1)]
    _remove(names)
    try:
        for number, name in enumerate(names, start=1):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
            _ip("link", "set", f"{name}a", "master", BRIDGE, "up")
            _ip("link", "set", f"{name}b", "netns", name)
            for words in (
                ("addr", "add", f"10.77.0.{10 + number}/24", "dev", f"{name}b"),
                ("link", "set", f"{name}b", "up"),
                ("link", "set", "lo", "up"),
                ("route", "add", "default", "via", HOST),
            ):
                _ip("-n", name, *words)
        yield [Machine(name, f"10.77.0.{10 + number}") for number, name in enumerate(names, start=1)]
    finally:
        _remove(names)


def _remove(names: Sequence[str]) -> None:
    for name in names:
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        for pid in found.stdout.split():
            subprocess.run(["kill", "-9", pid], check=False)
        _ip("netns", "del", name, check=False)
        _ip("link", "del", f"{name}a", check=False)


class Machine:
    """One of them.

    Attributes:
        name: of its namespace.
        address: its own.
    """

    def __init__(self, name: str, address: str):
        self.name, self.address = name, address

    def words(self, command: Sequence[str], hidden: Path) -> list[str]:
        """What runs a command there, where the folder ``hidden`` is empty."""
        script = 'mount -t tmpfs none "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-c", script, str(hidden), *command]
