"""A thousand busy workers in one process: each has its own connection and a new queue every second.

    python -m benchmarks.control.workers CONTROLLER_URL WORKERS

Prints "ready" once all are registered. At SIGTERM it stops changing the queues, sends everybody's
last heartbeat, prints the sum of all queues and the heartbeats it sent a second, and ends.
"""

import asyncio
import json
import random
import signal
import sys
import time
from typing import Any
from urllib.parse import urlsplit

INTERVAL = 1.0  # seconds between two heartbeats of one worker
START = 0.005  # seconds between one worker's registration and the next one's
LONGEST_QUEUE = 64
# What a worker of ours says of itself: nine stop strings and guards, as a Korean Dolly model has.
EXTENSION = {
    "state": "ready",
    "engine_key": "k" * 32,
    "heart_beat_interval": INTERVAL,
    "context_length": 8192,
    "template": "dolly-ko",
    "stop": ["### 끝", "### 질문:"],
    "guard": [f"### 구분 {n}:" for n in range(5)] + ["<|endoftext|>", "<|sep|>"],
    "parents": {},
    "version": "0.0.0",
}


class SimulatedWorker:
    """One worker: a connection that carries its heartbeats, and its queue."""

    def __init__(self, number: int, url: str, rng: random.Random) -> None:
        self.name = f"http://10.0.{number // 250}.{number % 250 + 1}:21002"
        self.queue = self.beats = 0
        self._rng = rng
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._extension = {**EXTENSION, "engine_url": f"{self.name[:-5]}22002"}
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def register(self) -> None:
        """Joins the controller."""
        status = {"model_names": ["demo"], "speed": 1, "queue_length": 0}
        await self._post("/register_worker", {"worker_status": status, "check_heart_beat": True})

    async def beat(self) -> None:
        """One heartbeat with the queue as it is now."""
        answer = await self._post("/receive_heart_beat", {"queue_length": self.queue})
        if not json.loads(answer)["exist"]:
            raise RuntimeError(f"the controller has lost {self.name}")
        self.beats += 1

    def change(self) -> None:
        """Another queue than before: the busiest a worker can be for its controller."""
        self.queue = (self.queue + self._rng.randrange(1, LONGEST_QUEUE)) % LONGEST_QUEUE

    async def _post(self, path: str, fields: dict[str, Any]) -> bytes:
        body = json.dumps(
            {"worker_name": self.name, "kodolly": self._extension, **fields}, ensure_ascii=False
        ).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        if self._stream is None:
            self._stream = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._stream
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path} answered {answer[:200]!r}")
        fields_of = dict(line.split(b": ", 1) for line in answer.split(b"\r\n")[1:] if line)
        length = {name.lower(): value for name, value in fields_of.items()}[b"content-length"]
        return await reader.readexactly(int(length))


async def main(url: str, count: int) -> None:
    """Registers everybody, and lets them send heartbeats until SIGTERM."""
    rng = random.Random(1)
    workers = [SimulatedWorker(number, url, rng) for number in range(count)]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def live(worker: SimulatedWorker, offset: float) -> None:
        await asyncio.sleep(offset)
        await worker.register()
        while not stop.is_set():
            worker.change()
            await worker.beat()
            await asyncio.sleep(INTERVAL)

    lives = [asyncio.create_task(live(w, n * START)) for n, w in enumerate(workers)]
    await asyncio.sleep(count * START + INTERVAL)
    print("ready", flush=True)
    began, before = time.monotonic(), sum(worker.beats for worker in workers)
    await stop.wait()
    rate = (sum(worker.beats for worker in workers) - before) / (time.monotonic() - began)
    await asyncio.gather(*lives)
    for worker in workers:
        await worker.beat()
    queues = sum(worker.queue for worker in workers)
    print(json.dumps({"queues": queues, "beats_a_second": round(rate)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
