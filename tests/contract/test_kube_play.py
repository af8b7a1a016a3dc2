"""The player of rendered pods, with a fake podman that records its commands."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.kube.__main__ import K8S
from tools.kube.render import render
from tools.kube.run_local import NETWORK, LocalPods, podman


@pytest.fixture
def player(tmp_path: Path) -> LocalPods:
    return LocalPods(render(K8S / "overlays" / "local"), tmp_path, {}, images={})


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's default handling of Ctrl-C. Background processes of a shell would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File of podman's commands, one per line. `rm` fails, `kill` takes 0.3 s, and `inspect` prints the file `states`."""
    folder, notes = tmp_path / "bin", tmp_path / "commands"
    folder.mkdir()
    (folder / "podman").write_text(
        "#!/bin/sh\n"
        f'case $1 in inspect) cat {tmp_path}/states;; rm) echo "$@" >> {notes}; exit 1;; kill) sleep 0.3;; esac\n'
        f'echo "$@" >> {notes}\n'
    )
    (folder / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return notes


def test_each_pod_has_its_own_addresses_and_the_names_of_its_services(player: LocalPods) -> None:
    pods = (*player.pods, *player.jobs)
    assert len({pod.ip for pod in pods}) == len({pod.mac for pod in pods}) == len(pods)
    nats = next(pod for pod in player.pods if pod.name == "nats-1")
    assert nats.aliases == ("nats-1", "nats", "nats-1.nats")
    assert nats.mac == f"02:74:6d:00:00:{int(nats.ip.split('.')[3]):02x}"


def test_only_pods_that_ended_by_themselves_are_reported(player: LocalPods, commands: Path, tmp_path: Path) -> None:
    states = tmp_path / "states"
    states.write_text(
        "nats-0 true code 0, out of memory: false\nregistry-0 false code 1, out of memory: false\n"
        "nats-1 true code 0, out of memory: false\n"
    )
    assert player.ended() == {"registry-0": "code 1, out of memory: false"}

    player.kill("nats-1")
    player.ended()
    assert "nats-1" not in commands.read_text().splitlines()[-1].split()

    player.start(next(pod for pod in player.pods if pod.name == "nats-1"))
    player.ended()
    assert "nats-1" in commands.read_text().splitlines()[-1].split()


def test_the_network_is_removed_even_if_pods_cannot_be_removed(player: LocalPods, commands: Path) -> None:
    with pytest.raises(RuntimeError, match="podman rm"):
        player.down()
    first, second = commands.read_text().splitlines()
    assert first.endswith("streams-0 migrations-0")
    assert second == f"network rm --force {NETWORK}"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_end_of_a_command(commands: Path) -> None:
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        podman("kill", "nats-1")
    timer.join()
    assert commands.read_text() == "kill nats-1\n"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_until_everything_is_removed(player: LocalPods, commands: Path) -> None:
    (commands.parent / "bin" / "podman").write_text(f'#!/bin/sh\nsleep 0.3\necho "$@" >> {commands}\n')
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        player.down()
    timer.join()
    assert [line.split()[0] for line in commands.read_text().splitlines()] == ["rm", "network"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
