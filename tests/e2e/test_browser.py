"""The chat page as a person uses it, in a real Chromium. `make test-browser`."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("playwright")

from e2e.browser import CHROMIUM, SLOW, Hands, Stack, Worker, chromium
from playwright.sync_api import Browser, expect
from support.processes import wait_until

from kodolly.web.texts import EN, KO

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason=f"no {CHROMIUM}: install chromium or set KODOLLY_CHROMIUM"
    ),
]

QUESTION = "한국의 수도는 어디인가요?"
Open = Callable[..., Hands]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("logs")) as stack:
        yield stack


@pytest.fixture(scope="module")
def running(stack: Stack) -> Iterator[Worker]:
    worker = Worker(stack.url("controller"))
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def worker(running: Worker) -> Worker:
    running.script(
        length=None, token_delay=0.0, first_delay=0.0, fail_status=None, die_after=None, tokens=[]
    )
    running.script(tokens=["안녕", "하세요", ". ", "무엇을", " 도와", "드릴까요", "?"])
    return running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, stack: Stack) -> Iterator[Open]:
    """Opens the page; at the end no script of it may have failed."""
    hands: list[Hands] = []

    def open_page(locale: str = "ko-KR", width: int = 1280, height: int = 800) -> Hands:
        viewport = {"width": width, "height": height}
        page = browser.new_page(locale=locale, viewport=viewport)  # type: ignore[arg-type]
        hands.append(Hands(page, stack.url("web")))
        hands[-1].open()
        return hands[-1]

    yield open_page
    for hand in hands:
        hand.page.close()
        assert hand.errors == [], hand.failed


def slow(worker: Worker) -> None:
    """An answer that goes on until it is stopped."""
    worker.script(length=5000, token_delay=0.05)


def test_tokens_stream_and_stop_ends_the_engine(opened: Open, worker: Worker) -> None:
    """A Korean question's answer grows on the page; Stop ends it in the engine at once."""
    slow(worker)
    aborted = worker.seen()["aborted"]
    page = opened()
    page.ask(QUESTION)
    states: list[str] = []
    while len(states) < 4:
        wait_until(lambda: grown(page, states), SLOW, what="a longer answer")
        states.append(page.answers.last.inner_text())
    assert all(states[i + 1].startswith(states[i][:-2]) for i in range(3))
    page.stop.click()
    wait_until(lambda: worker.seen()["aborted"] == aborted + 1, SLOW, what="the engine aborts")
    assert worker.seen()["running"] == 0
    page.idle()
    assert states[-1] in page.answers.last.inner_text()


def grown(page: Hands, states: list[str]) -> bool:
    now = page.answers.last.inner_text() if page.answers.count() else ""
    return len(now) > len(states[-1] if states else "")


def test_retry_edit_undo_and_clear(opened: Open, worker: Worker) -> None:
    """Each changes the conversation as its button says, and the engine is asked accordingly."""
    page = opened()
    page.ask_and_wait("첫 질문")
    answer = page.answers.last.inner_text().strip()
    page.ask_and_wait("둘째 질문")
    assert worker.asked() == ["첫 질문", answer, "둘째 질문"]

    before = len(worker.seen()["requests"])
    page.button("다시 시도").last.click()
    wait_until(lambda: len(worker.seen()["requests"]) == before + 1, SLOW)
    assert worker.asked() == ["첫 질문", answer, "둘째 질문"]
    page.idle()

    page.button("편집").first.click()
    page.page.locator("#kd-chat .user-row textarea").first.fill("고친 질문")
    page.button("제출").first.click()
    wait_until(lambda: worker.asked() == ["고친 질문"], SLOW, what="the edited question")
    expect(page.questions).to_have_count(1)
    page.idle()

    page.button("실행 취소").last.click()
    expect(page.input).to_have_value("고친 질문")
    expect(page.questions).to_have_count(0)

    page.ask_and_wait("고친 질문")
    page.button("대화 지우기").click()
    expect(page.questions).to_have_count(0)


def test_empty_input_is_ignored(opened: Open, worker: Worker) -> None:
    """Enter and Send with an empty box ask nothing, and the question after them is not lost."""
    page = opened()
    before = len(worker.seen()["requests"])
    page.ask("   ")
    page.send.click()
    page.ask_and_wait("진짜 질문")
    assert len(worker.seen()["requests"]) == before + 1
    assert sum("queue/join" in url for url in page.requests) == 1


def test_a_composed_syllable_is_sent_once_and_whole(opened: Open, worker: Worker) -> None:
    """Enter in the middle of a Hangul composition sends the whole sentence exactly once."""
    page = opened()
    before = len(worker.seen()["requests"])
    page.input.focus()
    keys = page.page.context.new_cdp_session(page.page)
    for text in ("안녕하세", "안녕하세ㅇ", "안녕하세요"):
        place = {"text": text, "selectionStart": len(text), "selectionEnd": len(text)}
        keys.send("Input.imeSetComposition", place)
    # A Korean IME keeps the first Enter to itself (229), commits, and passes Enter on.
    process = {"windowsVirtualKeyCode": 229, "key": "Process", "code": "Enter"}
    keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **process})
    assert len(worker.seen()["requests"]) == before
    keys.send("Input.insertText", {"text": "안녕하세요"})
    page.input.press("Enter")
    expect(page.questions).to_have_count(1)
    page.idle()
    expect(page.input).to_have_value("")
    page.ask_and_wait("다음")
    assert len(worker.seen()["requests"]) == before + 2
    assert worker.asked()[0] == "안녕하세요"


def test_a_phone_shows_all_of_it(opened: Open, worker: Worker) -> None:
    """At 360 px nothing is wider than the window, the input is in reach, settings are folded."""
    page = opened(width=360, height=740)
    worker.script(
        tokens=["```python\n", "x = '" + "가" * 200 + "'\n", "```\n", "|a|b|\n|-|-|\n|1|2|"]
    )
    page.ask_and_wait(QUESTION)
    assert page.overflow() <= 0
    for target in (page.input, page.send, page.page.locator("#kd-settings .toggle-button")):
        box = target.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["y"] + box["height"] <= 740
    tappable = page.send.bounding_box()
    assert tappable is not None
    assert min(tappable["width"], tappable["height"]) >= 40
    assert not page.page.get_by_label(KO["system"]).is_visible() or settings_are_outside(page)
    page.page.locator("#kd-settings .toggle-button").click()
    page.page.get_by_label(KO["system"]).fill("반말로 답해 줘.")
    page.page.locator("#kd-settings .toggle-button").click()
    page.ask_and_wait("하나 더")
    assert worker.asked()[0] == "반말로 답해 줘."
    assert page.overflow() <= 0


def settings_are_outside(page: Hands) -> bool:
    box = page.page.locator("#kd-settings").bounding_box()
    return box is None or box["x"] >= 360


def test_markdown_code_and_hostile_html(opened: Open, stack: Stack, worker: Worker) -> None:
    """Code is a block with a copy button; what a model writes in HTML neither runs nor loads."""
    hostile = (
        "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
        "[link](javascript:alert(1)) ![](http://203.0.113.1/leak.png)"
    )
    worker.script(tokens=["**굵게**\n\n```python\nprint(1)\n```\n\n$$x^2$$\n\n", hostile])
    page = opened()
    page.ask_and_wait(QUESTION)
    answer = page.answers.last
    expect(answer.locator("strong")).to_have_text("굵게")
    expect(answer.locator("pre code")).to_contain_text("print(1)")
    expect(answer.locator("pre").locator("..").locator("button").first).to_be_attached()
    expect(answer.locator(".katex").first).to_be_attached()
    assert answer.locator("script").count() == 0
    assert answer.locator("a[href^=javascript]").count() == 0
    assert page.page.evaluate("window.hacked") is None
    assert answer.locator("img[src*='203.0.113.1']").evaluate_all(
        "images => images.every(image => image.naturalWidth === 0)"
    )


def test_nothing_is_asked_of_other_hosts(opened: Open, stack: Stack, worker: Worker) -> None:
    """From opening to an answer the browser talks to the page's own server only."""
    page = opened()
    page.ask_and_wait(QUESTION)
    own = (stack.url("web"), "data:", "blob:")
    assert [url for url in page.requests if not url.startswith(own)] == []


def test_a_korean_page_has_no_english_words(opened: Open, worker: Worker) -> None:
    """Text, labels and placeholders are Korean, but for names and Top-p."""
    page = opened()
    page.ask_and_wait("질문")

    def english() -> set[str]:
        words = page.page.evaluate(
            """() => [document.body.innerText, ...[...document.querySelectorAll(
            '[aria-label],[title],[placeholder]')].flatMap(element => ['aria-label', 'title',
            'placeholder'].map(name => element.getAttribute(name) ?? ''))].join(' ')"""
        )
        return set(re.findall(r"[A-Za-z]{2,}", words)) - {"KoDolly", "demo", "Top"}

    # The page puts Gradio's fixed words into Korean a moment after they appear.
    wait_until(lambda: not english(), what="a page without English words")
    assert english() == set()


def test_an_english_browser_reads_english(opened: Open, worker: Worker) -> None:
    """Labels, status, examples and notices follow the browser's language."""
    page = opened(locale="en-US")
    page.see(EN["ready"])
    page.see(EN["example_1"])
    expect(page.input).to_have_attribute("placeholder", EN["placeholder"])
    worker.script(fail_status=500)
    page.ask_and_wait("Hello")
    page.see(EN["retry"])
    assert not re.search(r"[가-힣]", page.text())


def test_model_picker_follows_the_live_list(opened: Open, stack: Stack, worker: Worker) -> None:
    """A model that comes appears without a reload; the choice stays while its model lives."""
    page = opened()
    picked = page.page.locator("#kd-model input")
    expect(picked).to_have_value("demo", timeout=SLOW * 1000)
    other = Worker(stack.url("controller"), model="another")
    other.start()
    try:
        wait_until(lambda: in_menu(page, "another"), SLOW, what="the new model in the menu")
        page.page.get_by_role("option", name="another").click()
        expect(picked).to_have_value("another")
        page.ask_and_wait("누구니")
        assert other.asked() == ["누구니"]
    finally:
        other.stop()
    expect(picked).to_have_value("demo", timeout=SLOW * 1000)


def in_menu(page: Hands, name: str) -> bool:
    page.choose_model()
    found = page.page.get_by_role("option", name=name).count() > 0
    if not found:
        page.page.keyboard.press("Escape")
        page.input.focus()
    return found


def test_no_worker_then_one_comes(opened: Open, stack: Stack, worker: Worker) -> None:
    """With nobody there the page says so in Korean, and recovers without a reload."""
    worker.stop()
    try:
        page = opened()
        page.page.evaluate("window.same = true")
        page.see(KO["status_no_worker"])
        page.ask(QUESTION)
        page.see(KO["no_worker"])
    finally:
        worker.start()
    worker.script(tokens=["이제", " 있어요"])
    page.see(KO["ready"])
    page.button("다시 시도").last.click()
    page.see("이제 있어요")
    assert KO["no_worker"] not in page.text()
    assert page.page.evaluate("window.same") is True


def test_a_worker_lost_in_the_middle(opened: Open, stack: Stack, worker: Worker) -> None:
    """The part that was said stays, a Korean sentence follows, and its button asks again."""
    slow(worker)
    page = opened()
    page.ask(QUESTION)
    page.see("안녕하세요")
    worker.stop()
    try:
        page.see(KO["lost"])
        assert "안녕하세요" in page.answers.first.inner_text()
    finally:
        worker.start()
    worker.script(tokens=["다시", " 왔어요"])
    page.see(KO["ready"])
    page.button("다시 시도").last.click()
    page.see("다시 왔어요")
    assert KO["lost"] not in page.text()


def test_a_reload_keeps_the_conversation(opened: Open, worker: Worker) -> None:
    """The tab remembers what was said."""
    page = opened()
    page.ask_and_wait("기억해 줘")
    page.page.reload()
    page.see("기억해 줘")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_page_outlives_its_server(
    opened: Open, stack: Stack, worker: Worker, number: signal.Signals
) -> None:
    """Its own process ended in the middle of an answer: no reload, the part kept, life goes on."""
    slow(worker)
    page = opened()
    page.page.evaluate("window.same = true")
    page.ask(QUESTION)
    page.see("안녕하세요")
    web = stack.processes["web"]
    web.popen.send_signal(number)
    code = web.popen.wait(SLOW)
    assert code == (0 if number == signal.SIGTERM else -number)
    page.see(KO["reconnecting"])
    wait_until(lambda: worker.seen()["running"] == 0, SLOW, what="the engine stops")
    stack.run("web", "--api", stack.url("api"))
    page.idle()
    assert "안녕하세요" in page.answers.first.inner_text()
    worker.script(length=None, tokens=["돌아왔어요"])
    page.ask("다시 왔니")
    page.see("돌아왔어요")
    assert page.page.evaluate("window.same") is True
