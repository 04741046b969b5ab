"""The name a worker registers under: replicas of one service must not share it."""

import socket
from pathlib import Path
from typing import Any

import pytest

from kodolly.errors import SettingsError
from kodolly.settings import WorkerSettings
from kodolly.worker import app
from kodolly.worker.app import Worker, advertised_host, own_address

SHARED: dict[str, Any] = {
    "host": "0.0.0.0",
    "token": "s3cret",
    "controller": "http://localhost:21001",
}


def test_a_worker_on_all_addresses_must_say_which_is_its_own() -> None:
    """0.0.0.0 means nothing to others, so the worker does not start with it as its name."""
    with pytest.raises(SettingsError, match="--advertise"):
        advertised_host(WorkerSettings(**SHARED))
    assert advertised_host(WorkerSettings(**SHARED, advertise="gpu-box")) == "gpu-box"
    assert advertised_host(WorkerSettings(host="10.1.2.3", token="s3cret")) == "10.1.2.3"


def test_its_own_address_is_the_one_on_the_way_to_the_controller() -> None:
    """Loopback for a controller there; an address, not the name that all replicas share."""
    assert own_address("localhost") in ("127.0.0.1", "::1")
    assert advertised_host(WorkerSettings(**SHARED, advertise="auto")) in ("127.0.0.1", "::1")


def test_replicas_of_one_service_have_names_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same settings in containers of different addresses give workers of different names."""
    names = set()
    for address in ("172.18.0.5", "172.18.0.6"):
        monkeypatch.setattr(app, "own_address", lambda _, address=address: address)
        worker = Worker(WorkerSettings(**SHARED, advertise="auto"), tmp_path)
        assert address in worker.engine_url
        names.add(worker.name)
    assert len(names) == 2


def test_no_way_to_the_controller_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name nobody knows is a fault of the settings, named by the flag."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SettingsError, match="--advertise auto: no route to nowhere"):
        own_address("nowhere")
