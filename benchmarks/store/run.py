"""What storing a token costs: 32 streams through one flusher, at several gaps between commits.

    python -m benchmarks.store.run                     a SQLite file
    python -m benchmarks.store.run --store URL         a PostgreSQL database, which is written to

Prints microseconds of this process's CPU a token, beside the same loop without a store, and the delay between
handing an event over and its delivery. An event is one token here. SQLite's work is in the figure,
PostgreSQL's server is not.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path

from kodolly.store.records import ResponseRecord
from kodolly.store.store import Store

STREAMS, RATE = 32, 25  # tokens a second of each
GAPS = (0.02, 0.04, 0.08)


async def measure(url: str, gap: float | None, seconds: float) -> tuple[float, list[float]]:
    """CPU seconds a token, and the delays in seconds. `gap` None: nothing is stored."""
    async with Store(url, gap=gap or 1.0) as store:
        ids = [f"resp_{time.monotonic_ns()}_{number}" for number in range(STREAMS)]
        for each in ids:
            record = ResponseRecord(each, "owner", "m", "in_progress", {}, time.time())
            await store.responses.create(record, [])
        delays: list[float] = []
        tokens = 0

        async def stream(response_id: str, offset: float) -> None:
            nonlocal tokens
            await asyncio.sleep(offset)
            waiting: deque[float] = deque()  # when each uncommitted event was handed over

            def delivered(_: object, count: int) -> None:
                now = time.perf_counter()
                delays.extend(now - waiting.popleft() for _ in range(count))

            for seq in range(int(seconds * RATE)):
                waiting.append(time.perf_counter())
                delta = {"type": "response.output_text.delta", "delta": "한국"}
                if gap is None:
                    delivered(None, 1)
                else:
                    store.flusher.append(response_id, seq, [delta], [seq], delivered)
                tokens += 1
                await asyncio.sleep(1 / RATE)

        cpu = time.process_time()
        await asyncio.gather(*(stream(each, n / STREAMS / RATE) for n, each in enumerate(ids)))
        cpu = time.process_time() - cpu
        for each in ids:
            await store.responses.delete(each, "owner")
    return cpu / tokens, delays


async def run(url: str, seconds: float) -> None:
    """One row a gap."""
    base, _ = await measure(url, None, seconds)
    print(f"no store      {base * 1e6:5.1f} us a token")
    for gap in GAPS:
        cost, delays = await measure(url, gap, seconds)
        p50, p99 = (statistics.quantiles(delays, n=100)[n] * 1000 for n in (49, 98))
        print(
            f"gap {gap * 1000:3.0f} ms    {cost * 1e6:5.1f} us a token"
            f"    delay p50 {p50:5.1f} ms  p99 {p99:5.1f} ms"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", help="the database's URL (default: a SQLite file)")
    parser.add_argument("--quick", action="store_true", help="3 s a row instead of 20")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.store or f"sqlite:///{Path(folder) / 'store.sqlite3'}"
        asyncio.run(run(url, 3.0 if options.quick else 20.0))


if __name__ == "__main__":
    main()
