"""The API's copy of the controller's table, across a controller's restart."""

from kodolly.api.routing.table import WorkerTable
from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState


class Clock:
    """Time that a test moves by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def row(name: str, *, fastchat: bool = False, queue: int = 0, beat: float = 5) -> WorkerRow:
    return WorkerRow(
        name=name,
        model_names=["m"],
        speed=1,
        queue_length=queue,
        state=WorkerState.READY,
        kodolly=None if fastchat else Extension(heart_beat_interval=beat),
    )


def names(table: WorkerTable) -> set[str]:
    return {worker.row.name for worker in table.by_wait("m")}


def snapshot(epoch: str, *rows: WorkerRow) -> Snapshot:
    return Snapshot(epoch=epoch, version=1, workers=list(rows))


def test_a_new_controller_does_not_empty_the_table() -> None:
    """Workers a new controller has not heard of yet stay for two of their own beats."""
    clock = Clock()
    table = WorkerTable(clock)
    table.apply(snapshot("one", row("a"), row("b"), row("s", fastchat=True)))
    table.apply(snapshot("two"))
    assert names(table) == {"a", "b", "s"}

    table.apply(snapshot("two", row("a")))
    clock.now = 10.1  # no further snapshot comes: time alone must end the grace
    assert names(table) == {"a", "s"}
    clock.now = 100.1

    assert names(table) == {"a"}


def test_fast_beats_leave_time_to_register() -> None:
    """A worker that beats every second still gets a few of them, where machines are busy."""
    clock = Clock()
    table = WorkerTable(clock)
    table.apply(snapshot("one", row("a", beat=1)))
    table.apply(snapshot("two"))
    clock.now = 4.9
    assert names(table) == {"a"}
    clock.now = 5.1

    assert names(table) == set()


def test_who_says_goodbye_to_the_new_controller_is_gone() -> None:
    """A worker that registered anew and then left does not linger in the grace."""
    table = WorkerTable(Clock())
    table.apply(snapshot("one", row("a")))
    table.apply(snapshot("two", row("a")))
    table.apply(snapshot("two"))

    assert names(table) == set()


def test_running_requests_are_kept_across_a_restart() -> None:
    """What is in flight counts on when a worker registers at a new controller."""
    table = WorkerTable(Clock())
    table.apply(snapshot("one", row("a"), row("b")))
    table.by_wait("m")[0].inflight = 3
    busy = next(w.row.name for w in table.all() if w.inflight)
    table.apply(snapshot("two"))
    table.apply(snapshot("two", row("a"), row("b")))

    assert [w.row.name for w in table.by_wait("m") if w.inflight] == [busy]
    assert table.by_wait("m")[0].row.name != busy


def test_a_suspect_is_passed_over_for_a_moment_only() -> None:
    """A worker that refused is asked last, is back after two seconds, and used if it is all there is."""
    clock = Clock()
    table = WorkerTable(clock)
    table.apply(snapshot("one", row("a"), row("b", queue=5)))
    table.suspect(table.by_wait("m")[0])
    assert names(table) == {"b"}

    table.suspect(table.by_wait("m")[0])
    assert names(table) == {"a", "b"}
    clock.now = 2.1

    assert table.by_wait("m")[0].row.name == "a"
