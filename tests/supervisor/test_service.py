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
