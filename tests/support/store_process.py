"""A process with a store, for tests that kill or stop it.

python -m support.store_process URL RESPONSE_ID...: creates these responses (none: only watches) and appends an
event to each every 50 ms. Prints a line for whatever happens.
"""

import asyncio
import os
import sys

from support.stores import record

from kodolly.store.store import Store


def say(*words: object) -> None:
    """One line, at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def run(url: str, response_ids: list[str]) -> None:
    """Until it is killed."""
    store = Store(url, retry_time=60)
    store.leases.on_takeover = lambda ids: say("takeover", *ids)
    store.leases.on_fenced = lambda: say("fenced")
    await store.open()
    say("open", os.getpid())
    for response_id in response_ids:
        await store.responses.create(record(id=response_id), [])
    say("created")
    seq = 0
    refused: set[str] = set()
    while True:
        for response_id in response_ids:

            def committed(error: Exception | None, _: int, response_id: str = response_id) -> None:
                if error is not None and response_id not in refused:
                    refused.add(response_id)
                    say("refused", response_id, type(error).__name__)

            if response_id not in refused:
                store.flusher.append(response_id, seq, [f"d{seq}"], [seq], committed)
        seq += 1
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2:]))
