"""A worker's engine starts only on GPUs that are the worker's own."""

import asyncio
import contextlib
import sys
from pathlib import Path

from support.processes import eventually, free_port

from kodolly.engines.client import EngineClient
from kodolly.engines.command import EngineCommand
from kodolly.http.client import new_client
from kodolly.protocol.wire import Extension, WorkerState
from kodolly.worker.agent import Agent, Announcement
from kodolly.worker.gpus.devices import Gpu
from kodolly.worker.gpus.lease import Lease, Leases
from kodolly.worker.gpus.request import GpuRequest

TESTS = str(Path(__file__).parents[2])


async def test_the_engine_waits_for_a_gpu_and_gets_no_other(tmp_path: Path) -> None:
    """It says that it waits, starts when the GPU comes free, sees only that, and gives it back."""
    gpus = [Gpu("GPU-7", 0, 9)]
    leases = Leases(tmp_path, lambda: gpus)
    held = leases.take(1)
    assert isinstance(held, Lease)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = (sys.executable, "-m", "support.scripted_engine", "--port", str(port))
    async with new_client() as client:
        agent = Agent(
            Announcement("http://127.0.0.1:9", ("demo",), 1, Extension(engine_url=url)),
            EngineClient(url, None, client),
            [],
            EngineCommand(argv, {"PYTHONPATH": TESTS}),
            start_timeout=30,
            drain_timeout=1,
            gpus=GpuRequest(1, leases, lambda: gpus),
        )
        agent.start()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(agent.drain)
            await eventually(lambda: agent.gpu_wait == "0 of 1 GPUs are free, 1 wanted")
            await asyncio.sleep(0.1)
            assert agent.engine_pid == 0

            held.close()
            await eventually(lambda: agent.state is WorkerState.READY)
            environment = Path(f"/proc/{agent.engine_pid}/environ").read_bytes().split(b"\0")
            assert b"CUDA_VISIBLE_DEVICES=GPU-7" in environment
            assert agent.gpu_wait is None
            assert isinstance(leases.take(1), str)
    assert isinstance(leases.take(1), Lease)
