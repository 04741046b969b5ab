"""What it costs to measure a request and to log it: CPU microseconds of `Measurement` and `AccessLog.write`.

    .venv/bin/python -m benchmarks.observe.cost

The lines go into a temporary file, one write each, as those of a process under `kodolly up`
go into a pipe. The best of seven rounds: other work on the machine only makes a round slower.
"""

import sys
import tempfile
import time

from kodolly.observe.access_log import AccessLog
from kodolly.observe.requests import Measurement, RequestMetrics

ROUNDS, REQUESTS = 7, 20_000
PATH, REQUEST_ID = "/v1/chat/completions", "35fe7db4657175c16cd27bfbad608925"


def request(metrics: RequestMetrics, log: AccessLog | None) -> None:
    """One whole answer, as the API measures it."""
    with Measurement().by(metrics) as measurement:
        measurement.model, measurement.worker = "m", "http://127.0.0.1:21002"
        measurement.admitted()
        measurement.tokens_in, measurement.tokens_out = 30, 8
    if log is not None:
        log.write("POST", PATH, 200, REQUEST_ID, measurement)


def microseconds(log: AccessLog | None) -> float:
    """CPU time of one request."""
    metrics, best = RequestMetrics(), float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(REQUESTS):
            request(metrics, log)
        best = min(best, time.process_time() - begin)
    return best / REQUESTS * 1e6


def main() -> None:
    """Prints a line for each way to log."""
    with tempfile.NamedTemporaryFile("w", buffering=1) as file:
        terminal, sys.stderr = sys.stderr, file
        try:
            kinds = {"none": None, "text": AccessLog("text"), "json": AccessLog("json")}
            results = {name: microseconds(log) for name, log in kinds.items()}
        finally:
            sys.stderr = terminal
    for name, value in results.items():
        print(f"access log {name}: {value:.1f} us a request")


if __name__ == "__main__":
    main()
