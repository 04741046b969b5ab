"""The faults: done, held, mended, and what was measured of each."""

import asyncio
import signal
import time
from dataclasses import dataclass, field

from benchmarks.chaos.clients import Crowd
from benchmarks.chaos.plan import WORKER_FAULTS, Plan
from benchmarks.chaos.stack import Service, Stack, Worker, wait_end
from benchmarks.chaos.watch import READY, Watch

DRAIN = 90.0  # seconds a process may take to end after SIGTERM


@dataclass(slots=True)
class Fault:
    """One fault. Wall-clock seconds; None for what did not happen or does not apply.

    `mended` is when its cause was taken away (a process started again counts from its start);
    `back` when the controller told the worker to be ready again.
    """

    kind: str
    target: str
    at: float
    url: str = ""
    mended: float | None = None
    back: float | None = None
    ended: float | None = None  # of a drained process: when it had ended
    killed_with: list[str] = field(default_factory=list)  # answers open at a killed API process


class Chaos:
    """Does one fault after the other to a stack under load."""

    def __init__(self, stack: Stack, crowd: Crowd, watch: Watch, plan: Plan) -> None:
        self.stack, self.crowd, self.watch, self.plan = stack, crowd, watch, plan
        self.faults: list[Fault] = []
        self._turn = self._door = 0

    async def run(self, kinds: list[str]) -> None:
        """Every kind in turn. A worker's next fault waits until it is in rotation again."""
        for kind in kinds:
            if kind in WORKER_FAULTS:
                fault = await self._worker_fault(kind)
            else:
                fault = await self._other_fault(kind)
            print(f"{_clock(fault.at)} {kind}: {fault.target}{_span(fault)}", flush=True)
            await asyncio.sleep(self.plan.settle)

    async def _worker_fault(self, kind: str) -> Fault:
        worker = await self._next_worker()
        fault = self._begin(kind, worker)
        match kind:
            case "worker killed":
                await asyncio.to_thread(worker.kill)
            case "engine killed":
                worker.send(signal.SIGKILL, worker.engine())
            case "engine stopped":
                worker.send(signal.SIGSTOP, worker.engine())
            case "worker stopped":
                worker.send(signal.SIGSTOP, worker.family())
            case "worker drained":
                worker.terminate()
                await asyncio.to_thread(wait_end, worker, DRAIN)
                fault.ended = time.time()
            case "worker cut off":
                await asyncio.to_thread(self.stack.network.cut, worker.number)
        await asyncio.sleep(self.plan.hold[kind])
        if kind != "engine killed":
            fault.mended = time.time()
        await self._mend(kind, worker)
        fault.back = await self._until_back(fault)
        return fault

    async def _mend(self, kind: str, worker: Worker) -> None:
        match kind:
            case "worker killed" | "worker drained":
                await asyncio.to_thread(worker.start)
            case "engine stopped" | "worker stopped":
                worker.send(signal.SIGCONT, worker.family())
            case "worker cut off":
                await asyncio.to_thread(self.stack.network.mend, worker.number)

    async def _other_fault(self, kind: str) -> Fault:
        service = self.stack.controller
        if kind != "controller killed":
            service = self.stack.apis[self._door % len(self.stack.apis)]
            self._door += 1
        fault, epoch = self._begin(kind, service), self.watch.epoch
        if kind == "API drained":
            service.terminate()
            await asyncio.to_thread(wait_end, service, DRAIN)
            fault.ended = time.time()
        else:
            if kind == "API killed":
                door = self.crowd.doors.index(service.url)
                fault.killed_with = [n for n, (at, _) in self.crowd.open.items() if at == door]
            await asyncio.to_thread(service.kill)
            await asyncio.sleep(self.plan.hold[kind])
        fault.mended = time.time()
        service.start()
        await asyncio.to_thread(service.wait)
        fault.back = time.time()
        if kind == "controller killed":
            fault.back = await self._all_back(epoch)
        return fault

    def _begin(self, kind: str, service: Service) -> Fault:
        fault = Fault(kind, service.name, time.time(), service.url)
        self.faults.append(fault)
        return fault

    async def _next_worker(self) -> Worker:
        """The next in turn that is in rotation."""
        workers = self.stack.workers
        end = time.monotonic() + self.plan.back
        while time.monotonic() < end:
            for step in range(len(workers)):
                worker = workers[(self._turn + step) % len(workers)]
                if self.watch.now.get(worker.url) == READY:
                    self._turn += step + 1
                    return worker
            await asyncio.sleep(0.1)
        raise RuntimeError("no worker came back into rotation")

    async def _until_back(self, fault: Fault) -> float | None:
        """When the worker was ready again after it had been out; None if it never was."""
        end = time.monotonic() + self.plan.back
        since = fault.mended or fault.at
        while time.monotonic() < end:
            out = self.watch.first(fault.url, fault.at, ready=False)
            # One that nobody noticed has nothing to come back from.
            if out is None and fault.mended and time.time() > since + 2:
                return None
            if out and (back := self.watch.first(fault.url, max(since, out), ready=True)):
                return back
            await asyncio.sleep(0.1)
        return None

    async def _all_back(self, epoch: str) -> float | None:
        """When a controller of another epoch knew every worker to be ready."""
        end = time.monotonic() + self.plan.back
        urls = [worker.url for worker in self.stack.workers]
        while time.monotonic() < end:
            if self.watch.epoch != epoch and all(self.watch.now.get(url) == READY for url in urls):
                return time.time()
            await asyncio.sleep(0.1)
        return None


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _span(fault: Fault) -> str:
    if fault.back is None:
        return ", did not leave and come back"
    return f", back {fault.back - (fault.mended or fault.at):.1f} s after it was mended"
