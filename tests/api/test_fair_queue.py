"""Who is next: classes by weight, keys in turn, nobody for ever."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kodolly.api.admission.fair_queue import STRIDES, FairQueue, class_of

KEYS = st.sampled_from(["a", "b", "c"])
CLASSES = st.sampled_from(sorted(STRIDES))


def filled(*lines: tuple[str, str, int]) -> FairQueue[tuple[str, str, int]]:
    """A queue with so many items of a key in a class, line after line."""
    queue: FairQueue[tuple[str, str, int]] = FairQueue()
    for key, priority, count in lines:
        for number in range(count):
            queue.push((key, priority, number), key, priority)
    return queue


def test_a_key_with_a_thousand_waiting_delays_another_by_one_turn() -> None:
    """Keys take turns, however long their lines are and however late one comes."""
    queue = filled(("hog", "default", 1000), ("late", "default", 3))
    order = [queue.pop()[0] for _ in range(6)]
    assert order == ["hog", "late"] * 3
    queue.push(("new", "default", 0), "new", "default")
    assert [queue.pop()[0] for _ in range(2)] == ["hog", "new"]


def test_a_key_is_served_in_the_order_it_asked() -> None:
    """Within a key the first comes first."""
    queue = filled(("a", "default", 50), ("b", "default", 50))
    order = [queue.pop() for _ in range(100)]
    assert [number for key, _, number in order if key == "a"] == list(range(50))


def test_classes_share_by_weight_and_flex_does_not_starve() -> None:
    """Of every 21 turns priority gets 16, default 4 and flex 1."""
    queue = filled(("p", "priority", 500), ("d", "default", 500), ("f", "flex", 500))
    turns = Counter(queue.pop()[1] for _ in range(210))
    assert turns == {"priority": 160, "default": 40, "flex": 10}


def test_an_absence_earns_no_turns() -> None:
    """A class that was empty for long does not then push the others aside."""
    queue = filled(("d", "default", 400))
    for _ in range(300):
        queue.pop()
    for number in range(100):
        queue.push(("f", "flex", number), "f", "flex")
    assert Counter(queue.pop()[1] for _ in range(50))["flex"] == 10


def test_a_class_that_waited_long_alone_is_not_punished() -> None:
    """What flex got while nobody else asked does not count against it later."""
    queue = filled(("f", "flex", 400))
    for _ in range(200):
        queue.pop()
    for number in range(100):
        queue.push(("p", "priority", number), "p", "priority")
    assert "flex" in [queue.pop()[1] for _ in range(18)]


def test_an_empty_queue_forgets() -> None:
    """Turns taken before nobody waited any more count for nobody."""
    queue = filled(("f", "flex", 400))
    for _ in range(400):
        queue.pop()
    for priority in ("priority", "flex"):
        for number in range(100):
            queue.push((priority, priority, number), priority, priority)
    assert "flex" in [queue.pop()[1] for _ in range(18)]


def test_the_longest_line_makes_room() -> None:
    """A full queue gives up the newest of whoever has most in it, never the only one of a key."""
    queue = filled(("hog", "default", 9), ("b", "default", 1))
    assert queue.crowded_out("c", "default") == ("hog", "default", 8)
    assert queue.crowded_out("hog", "default") is None
    assert filled(("a", "default", 1), ("b", "default", 1)).crowded_out("c", "priority") is None
    assert filled(("a", "priority", 4)).crowded_out("b", "default") is None


def test_only_openai_s_tiers_are_classes() -> None:
    """What else a client writes as service_tier is taken as default."""
    others: list[object] = ["auto", "default", "gold", None, 3, []]
    assert [class_of(tier) for tier in others] == ["default"] * len(others)
    assert [class_of(tier) for tier in ("priority", "flex")] == ["priority", "flex"]


class Queueing(RuleBasedStateMachine):
    """Any sequence of arrivals, turns and departures, beside plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.lines: dict[tuple[str, str], list[int]] = {}
        self.number = 0

    @rule(key=KEYS, priority=CLASSES)
    def push(self, key: str, priority: str) -> None:
        self.number += 1
        self.queue.push(self.number, key, priority)
        self.lines.setdefault((priority, key), []).append(self.number)

    @precondition(lambda self: len(self.queue) > 0)
    @rule()
    def pop(self) -> None:
        first = min(self.waiting(), key=self.queue.ahead)
        item = self.queue.pop()
        assert self.queue_of(item)[0] == item
        # Nobody who is told to be behind others is served before one of the same class.
        assert self.class_of(item) != self.class_of(first) or item == first
        self.queue_of(item).pop(0)

    @precondition(lambda self: len(self.queue) > 0)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting()))
        assert self.queue.remove(item)
        assert not self.queue.remove(item)
        self.queue_of(item).remove(item)

    @invariant()
    def holds_who_waits(self) -> None:
        waiting = self.waiting()
        assert len(self.queue) == len(waiting)
        assert all(item in self.queue for item in waiting)
        for priority in STRIDES:
            places = sorted(self.queue.ahead(i) for i in waiting if self.class_of(i) == priority)
            assert len(set(places)) == len(places)
            assert all(0 <= place < len(waiting) for place in places)

    def waiting(self) -> list[int]:
        return [item for line in self.lines.values() for item in line]

    def queue_of(self, item: int) -> list[int]:
        return next(line for line in self.lines.values() if item in line)

    def class_of(self, item: int) -> str:
        return next(priority for (priority, _), line in self.lines.items() if item in line)


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
