"""What an API process does about the controller, and nothing else: its table, kept up to date.

    python -m benchmarks.control.follower CONTROLLER_URL

Prints "ready" with the first table. At SIGTERM it prints how many workers its table has and the sum
of their queues, and ends.
"""

import asyncio
import json
import signal
import sys

from kodolly.api.routing.follower import Follower
from kodolly.api.routing.table import WorkerTable
from kodolly.http.client import new_client


async def main(url: str) -> None:
    """Follows the controller until SIGTERM."""
    table = WorkerTable()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with new_client() as client:
        following = asyncio.create_task(Follower(table, url, None, client).run())
        await table.loaded.wait()
        print("ready", flush=True)
        await stop.wait()
        following.cancel()
    workers = table.all()
    queues = sum(worker.row.queue_length for worker in workers)
    print(json.dumps({"workers": len(workers), "queues": queues}), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1]))
