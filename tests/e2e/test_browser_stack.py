"""`kodolly up` with a model of real size, used by a person in a real Chromium. `make test-browser`.

SmolLM2, because its answers are long enough to be stopped; the embedded model's are one sentence.

Screenshots go where KODOLLY_SCREENSHOTS points.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from e2e.browser import CHROMIUM, Hands, chromium
from support.processes import free_port, start, wait_http, wait_until

from kodolly.web.texts import KO

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".kodolly" / "models" / "smollm2-135m-instruct"
START = 300.0  # seconds for a real model on a busy machine
QUESTION = "한국의 수도 서울을 길고 자세하게 소개해 주세요."

pytestmark = [
    pytest.mark.browser,
    pytest.mark.model,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}"),
    pytest.mark.skipif(not (MODEL / "model_card.json").exists(), reason="no model: `make model`"),
]


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """A whole stack on free ports; `engine` is the worker's port + 1000."""
    home = tmp_path_factory.mktemp("home")
    ports = {name: free_port() for name in ("web", "api", "controller", "worker")}
    options = [part for name, port in ports.items() for part in (f"--{name}-port", str(port))]
    command = [sys.executable, "-m", "kodolly", "up", "--home", str(home), "--model", str(MODEL)]
    with start([*command, *options], log=home / "up.log") as stack:
        models = f"http://127.0.0.1:{ports['api']}/v1/models"
        wait_until(lambda: "smollm2" in read(models), START, what="a model", process=stack)
        wait_http(f"http://127.0.0.1:{ports['web']}/", timeout=START, process=stack)
        yield ports | {"engine": ports["worker"] + 1000}


def read(url: str, key: str = "") -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def engine_key(ports: dict[str, int]) -> str:
    """The key of the engine, as the controller tells the API."""
    watch = f"http://127.0.0.1:{ports['controller']}/watch"
    with urllib.request.urlopen(watch, timeout=10) as lines:
        snapshot = next(line for line in lines if line.strip())
    return str(json.loads(snapshot)["workers"][0]["kodolly"]["engine_key"])


def metric(ports: dict[str, int], name: str) -> float:
    """A number out of the engine's own metrics."""
    text = read(f"http://127.0.0.1:{ports['engine']}/metrics", engine_key(ports))
    found = re.search(rf"^kodolly_engine_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize(("name", "width", "height"), [("desktop", 1280, 800), ("360", 360, 740)])
def test_a_question_streams_and_stop_ends_the_engine(
    ports: dict[str, int], name: str, width: int, height: int
) -> None:
    """Tokens of the real model stream in; after Stop the engine's own metrics show the end."""
    with chromium() as browser:
        page = browser.new_page(locale="ko-KR", viewport={"width": width, "height": height})
        hands = Hands(page, f"http://127.0.0.1:{ports['web']}")
        hands.open()
        if width > 640:
            hands.see(KO["ready"])
        aborted = metric(ports, "aborted_total")
        hands.ask(QUESTION)
        lengths: set[int] = set()
        wait_until(lambda: growing(hands, lengths), START, what="a growing answer")
        assert metric(ports, "requests_running") == 1
        screenshot(hands, f"{name}-streaming")
        hands.stop.click()
        wait_until(lambda: metric(ports, "aborted_total") == aborted + 1, START, what="an abort")
        assert metric(ports, "requests_running") == 0
        hands.idle()
        assert hands.overflow() <= 0
        assert hands.errors == []
        screenshot(hands, f"{name}-stopped")


def growing(hands: Hands, lengths: set[int]) -> bool:
    if hands.answers.count():
        lengths.add(len(hands.answers.last.inner_text()))
    return len(lengths) >= 4


def screenshot(hands: Hands, name: str) -> None:
    directory = os.environ.get("KODOLLY_SCREENSHOTS")
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        hands.page.screenshot(path=Path(directory) / f"{name}.png")
