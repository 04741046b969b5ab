"""A supervised process comes back."""

import sys
from pathlib import Path

import pytest
from support.processes import eventually

from kodolly.supervisor.log_file import LogFile
from kodolly.supervisor.service import Service, ServiceSpec


async def test_what_cannot_be_started_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An OSError at the start is told and waited out, as an early end is; restarts go on."""
    argv = [sys.executable, "x" * 2**18]  # longer than the kernel takes
    service = Service(
        ServiceSpec("big", argv, "http://127.0.0.1:1/"), LogFile(tmp_path / "big.log", 4096)
    )
    service.start()

    await eventually(lambda: service.restarts >= 2)
    assert "big cannot be started (Argument list too long); starting it again" in caplog.text
    argv[:] = ["sleep", "60"]
    await eventually(lambda: service.pid)

    await service.stop()
    assert service.pid == 0


async def test_what_never_was_ready_is_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends again and again before it ever served would end the next time too."""
    monkeypatch.setattr("kodolly.supervisor.service.STARTS", 2)
    argv = [sys.executable, "-c", "raise SystemExit('kodolly worker: bad model')"]
    log = LogFile(tmp_path / "worker.log", 4096)
    service = Service(ServiceSpec("worker", argv, "http://127.0.0.1:1/"), log)
    service.start()

    await eventually(service.gave_up.is_set)
    assert service.restarts == 1
    assert log.last_line() == "kodolly worker: bad model"
    await service.stop()
