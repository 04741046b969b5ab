"""Which worker a call goes to, on simulated workers whose heartbeats come late."""

import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fleet import MODEL, Fleet, chat, completion

from kodolly.api.routing.policies import (
    POLICIES,
    Affinity,
    Lottery,
    Policy,
    PrefixMemory,
    RoundRobin,
    ShortestQueue,
)
from kodolly.api.routing.prefix import prefixes
from kodolly.api.routing.table import QUEUE_NEWS_LIFETIME_S, Worker
from kodolly.errors import ModelNotFound, NoWorker
from kodolly.protocol.wire import WorkerRow, WorkerState
from kodolly.settings import ApiSettings


def seeded(policy: type[ShortestQueue] | type[Lottery]) -> Callable[[], Policy]:
    """A policy whose lots are the same in every run; each replica has others."""
    seeds = iter(range(100))
    return lambda: policy(random.Random(next(seeds)))


BY_LOAD = [
    pytest.param(seeded(ShortestQueue), id="shortest_queue"),
    pytest.param(Affinity, id="affinity"),
]


def traffic(
    fleet: Fleet, *, rate: float, hold: float, seconds: float, seed: int = 1
) -> list[float]:
    """New chats at random times through random replicas; worst load by mean, at each of them."""
    rng = random.Random(seed)
    ratios: list[float] = []
    end = fleet.now + seconds
    while fleet.now < end:
        call = chat(f"question {rng.random()}")
        fleet.open(call, rng.expovariate(1 / hold), replica=rng.randrange(len(fleet.replicas)))
        ratios.append(max(fleet.loads) / statistics.mean(fleet.loads))
        fleet.advance(rng.expovariate(rate))
    return ratios[len(ratios) // 4 :]


class TestConversations:
    """Turns of a chat find the KV cache of the turns before."""

    def test_every_turn_goes_where_the_last_one_went(self) -> None:
        """Forty chats of eight turns each stay where they began, spread over all workers."""
        fleet = Fleet([1] * 4, Affinity)
        homes: dict[int, str] = {}
        for turn in range(8):
            for number in range(40):
                texts = [f"text {number} {part}" for part in range(2 * turn + 1)]
                worker = fleet.open(chat(*texts, system="the same for all"), 1.0)
                assert homes.setdefault(number, worker.row.name) == worker.row.name
            fleet.advance(5.0)
        assert all(9 <= count <= 11 for count in Counter(homes.values()).values())

    def test_an_edited_question_goes_where_the_chat_was(self) -> None:
        """The longest prefix that is known decides, not the whole."""
        fleet = Fleet([1] * 4, Affinity)
        texts = ["q1", "a1", "q2", "a2", "q3"]
        homes = [fleet.open(chat(*texts[: n + 1]), 0.1).row.name for n in (0, 2, 4)]
        for number in range(7):
            fleet.open(chat(f"other {number}"), 0.5)
        fleet.advance(1.0)
        assert fleet.open(chat("q1", "a1", "q2", "a2", "edited"), 0.1).row.name == homes[0]

    def test_a_growing_completion_comes_back(self) -> None:
        """A plain prompt that goes on from an earlier one is known by its first part."""
        fleet = Fleet([1] * 4, Affinity)
        rng = random.Random(2)
        prompts = ["".join(rng.choices("가나다라마바사 ", k=300)) for _ in range(20)]
        homes = [fleet.open(completion(p), 1.0).row.name for p in prompts]
        fleet.advance(2.0)
        longer = [fleet.open(completion(p + "더 길게" * 40), 1.0).row.name for p in prompts]
        assert longer == homes
        assert len(set(homes)) == 4

    @pytest.mark.parametrize("prompt", [[5] * 200, [[5] * 200, [6]], ["x" * 200, "y"], "", []])
    def test_every_shape_of_prompt_is_routed(self, prompt: object) -> None:
        """Texts, token ids and lists of either, empty ones too, come back to their worker."""
        fleet = Fleet([1] * 4, Affinity)
        first = fleet.open(completion(prompt), 0.1).row.name
        for number in range(3):
            fleet.open(chat(f"other {number}"), 2.0)
        fleet.advance(0.5)
        assert fleet.open(completion(prompt), 0.1).row.name == first

    def test_a_full_worker_gives_its_chat_away_for_good(self) -> None:
        """A chat that had to move stays where it moved to, for the cache moved with it."""
        fleet = Fleet([1, 1], Affinity)
        home = fleet.open(chat("q1"), 0.5).row.name
        busy = fleet.replicas[0].table.trusted(MODEL)
        full = next(w for w in busy if w.row.name == home)
        full.book(20)
        moved = fleet.open(chat("q1", "a1", "q2"), 0.5).row.name
        full.release(20)
        fleet.advance(1.0)
        assert moved != home
        assert fleet.open(chat("q1", "a1", "q2", "a2", "q3"), 0.5).row.name == moved

    def test_another_replica_finds_an_idle_fleet_s_chats(self) -> None:
        """By the chat's root alone: replicas share nothing, and a restart forgets everything."""
        fleet = Fleet([1] * 4, Affinity, replicas=2)
        for number in range(30):
            texts = [f"text {number} {part}" for part in range(3)]
            first = fleet.open(chat(texts[0]), 1.0, replica=0).row.name
            fleet.advance(3.0)
            assert fleet.open(chat(*texts), 1.0, replica=1).row.name == first
            fleet.advance(3.0)

    def test_memory_is_bounded(self) -> None:
        """Of very many chats the newest are remembered."""
        policy = Affinity(remembered=100)
        fleet = Fleet([1] * 4, lambda: policy)
        for number in range(1000):
            fleet.open(chat(f"q{number}"), 0.0)
            fleet.advance(0.01)
        assert 50 <= len(policy._last) <= 100
        for number in range(950, 1000):
            assert len(policy._homes(prefixes(chat(f"q{number}")).hashes)) == 1
        assert not policy._homes(prefixes(chat("q899")).hashes)

    def test_a_chat_that_goes_on_is_not_forgotten(self) -> None:
        """Whoever comes back often enough is among the newest, however many come once."""
        memory = PrefixMemory(100)
        for number in range(1000):
            memory.put(number, "once")
            if number % 40 == 0:
                memory.put(-1, "often")
            assert memory.get(-1) == "often"
            assert len(memory) <= 100

    def test_memory_takes_the_same_room_for_ever(self) -> None:
        """Its tables are as large when it is full for the hundredth time as for the first, and between."""
        memory, sizes = PrefixMemory(2048), []
        for number in range(200 * 1024):
            memory.put(number, "worker")
            if number >= 2047 and number % 32 == 31:
                sizes.append(sum(map(sys.getsizeof, memory._tables)))
        assert max(sizes) == sizes[0]
        assert min(sizes) > 0.9 * max(sizes)


class TestBounds:
    """No worker becomes a hot spot, whatever clients send."""

    @pytest.mark.parametrize("workers", [2, 4, 8])
    def test_one_prefix_for_all_does_not_make_a_hot_spot(self, workers: int) -> None:
        """Traffic that looks like one conversation is spread like any other."""
        fleet = Fleet([1] * workers, Affinity)
        for number in range(50 * workers):
            call = chat("the same question", "the same answer", "again")
            fleet.open(call, 1000.0)
            mean = (number + 1) / workers
            assert max(fleet.loads) <= math.ceil(1.25 * mean + 1)
        assert min(fleet.loads) >= 0.5 * mean

    def test_dead_calls_do_not_weigh_for_ever(self) -> None:
        """A worker whose calls fail is as free afterwards as before."""
        fleet = Fleet([1] * 2, Affinity)
        replica = fleet.replicas[0]
        for number in range(100):
            with pytest.raises(ConnectionError), replica.router.book(chat(f"q{number}")):
                raise ConnectionError
        assert [w.load for w in replica.table.ready(MODEL)] == [0, 0]

    @given(
        st.lists(
            st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.5, 1, 2, 8])),
            min_size=1,
            max_size=12,
        ),
        st.integers(0, 9),
        st.booleans(),
    )
    def test_the_bound_holds_for_every_load(
        self, loads: list[tuple[int, int, float]], chosen: int, continued: bool
    ) -> None:
        """Nobody is chosen beyond a quarter and one over its share, rounded up."""
        policy = Affinity()
        workers = [
            Worker(row(f"http://w{number}", speed), inflight=own, foreign=others)
            for number, (own, others, speed) in enumerate(loads)
        ]
        turns = ["q", "a", "q2"] if continued else ["q"]
        policy.choose(chat("q"), workers[chosen % len(workers) :])
        worker = policy.choose(chat(*turns), workers)
        share = (sum(w.load for w in workers) + 1) / sum(w.row.speed for w in workers)
        share *= worker.row.speed
        assert worker.load + 1 <= math.ceil(1.25 * share + 1)

    @pytest.mark.parametrize("policy", BY_LOAD)
    def test_chats_of_many_turns_stay_balanced(self, policy: Callable[[], Policy]) -> None:
        """Sixty people who talk on and on load all workers alike, at every moment and in sum."""
        fleet = Fleet([1] * 4, policy)
        rng = random.Random(5)
        moments: list[list[int]] = []

        def talk(number: int, turn: int) -> None:
            texts = [f"text {number} {part}" for part in range(2 * turn + 1)]
            seconds = rng.expovariate(1 / 4)
            worker = fleet.open(chat(*texts), seconds)
            moments.append(fleet.loads)
            assert worker.load <= math.ceil(1.25 * statistics.mean(fleet.loads) + 1)
            fleet.at(fleet.now + seconds + rng.expovariate(1 / 4), lambda: talk(number, turn + 1))

        for number in range(60):
            fleet.at(rng.random() * 8, lambda number=number: talk(number, 0))  # type: ignore[misc]
        fleet.advance(120.0)
        sums = [sum(worker) for worker in zip(*moments, strict=True)]
        assert max(sums) <= 1.1 * statistics.mean(sums)


class TestReplicas:
    """Several routers that know of each other by late heartbeats only."""

    @pytest.mark.parametrize("policy", BY_LOAD)
    @pytest.mark.parametrize("replicas", [1, 2, 8])
    def test_replicas_do_not_herd(self, policy: Callable[[], Policy], replicas: int) -> None:
        """With heartbeats a second old the worst worker stays near the mean."""
        fleet = Fleet([1] * 4, policy, replicas=replicas)
        assert statistics.mean(traffic(fleet, rate=40, hold=2, seconds=40)) <= 1.25

    def test_a_greedy_policy_would_herd(self) -> None:
        """The simulation shows what it is for: told queues taken at their word turn over."""

        class Greedy:
            """Least load as told."""

            def choose(self, call: object, workers: list[Worker]) -> Worker:
                """The worker for a call."""
                return min(workers, key=lambda w: w.load)

        fleet = Fleet([1] * 4, Greedy, replicas=8)  # type: ignore[arg-type]
        assert statistics.mean(traffic(fleet, rate=40, hold=2, seconds=40)) > 1.25

    def test_a_new_replica_sees_who_is_busy(self) -> None:
        """Without a call of its own it goes by what the workers told."""
        fleet = Fleet([1] * 4, Affinity, replicas=2)
        for number, worker in enumerate(fleet.replicas[0].table.ready(MODEL)):
            for _ in range(0 if number == 2 else 12):
                worker.book()
                fleet.engines[worker.row.name].running += 1
        fleet.advance(2.0)
        assert fleet.open(chat("q"), 1.0, replica=1).row.name == "http://w2"


class TestSpeeds:
    """Workers of unequal speed get unequal shares."""

    @pytest.mark.parametrize("policy", [*BY_LOAD, seeded(Lottery), RoundRobin])
    def test_load_follows_speed(self, policy: Callable[[], Policy]) -> None:
        """A worker of twice the speed gets about twice the calls."""
        assert shares(policy, hold=4.0) == [pytest.approx(n, rel=0.35) for n in (50, 100, 200, 50)]

    @pytest.mark.parametrize("policy", [Affinity, seeded(Lottery), RoundRobin])
    def test_speed_counts_without_load_too(self, policy: Callable[[], Policy]) -> None:
        """Calls that never meet are shared by speed as well."""
        assert shares(policy, hold=0.01) == [pytest.approx(n, rel=0.35) for n in (50, 100, 200, 50)]

    def test_the_fastest_idle_worker_has_the_shortest_queue(self) -> None:
        """By expected wait alone, a call that meets no other goes to the fastest."""
        assert shares(seeded(ShortestQueue), hold=0.01) == [0, 0, 400, 0]

    def test_round_robin_is_even_at_any_time(self) -> None:
        """A fast worker's turns are spread, not in a row, and a newcomer gets no backlog."""
        fleet = Fleet([2, 1, 1], RoundRobin)
        order = [fleet.open(chat("q"), 1.0).row.name[-1] for _ in range(8)]
        assert Counter(order[:4]) == Counter(order[4:]) == {"0": 2, "1": 1, "2": 1}
        assert "00" not in "".join(order[:4])


def shares(policy: Callable[[], Policy], *, hold: float) -> list[int]:
    """How many of 400 calls, fifty a second, workers of the speeds 1, 2, 4 and 1 get."""
    fleet = Fleet([1, 2, 4, 1], policy)
    sent: Counter[str] = Counter()
    for number in range(400):
        sent[fleet.open(chat(f"q{number}"), hold).row.name] += 1
        fleet.advance(0.02)
    return [sent[name] for name in fleet.engines]


class TestDeath:
    """Workers that go, and come again."""

    def test_a_dead_worker_s_chats_spread_over_the_others(self) -> None:
        """They do not all move to one, and the worker is used again when it is back."""
        fleet = Fleet([1] * 4, Affinity)
        homes: dict[int, list[str]] = {number: [] for number in range(120)}

        def round_of_turns(turn: int) -> None:
            for number, visited in homes.items():
                texts = [f"text {number} {part}" for part in range(2 * turn + 1)]
                visited.append(fleet.open(chat(*texts), 1.5).row.name)
                fleet.advance(0.05)

        round_of_turns(0)
        dead = fleet.engines["http://w1"]
        dead.state = WorkerState.LOST
        fleet.tell()
        round_of_turns(1)
        assert sorted(Counter(v[1] for v in homes.values()).values()) == [
            pytest.approx(40, abs=6) for _ in range(3)
        ]
        stayed = [v for v in homes.values() if v[0] != dead.name]
        assert sum(v[0] == v[1] for v in stayed) >= 0.9 * len(stayed)
        dead.state = WorkerState.READY
        fleet.tell()
        for turn in range(2, 5):
            round_of_turns(turn)
            for number in range(10):
                homes[1000 * turn + number] = [
                    fleet.open(chat(f"new {turn} {number}"), 1.5).row.name
                ]
        last = Counter(v[-1] for v in homes.values())
        assert last[dead.name] >= 15

    def test_a_suspect_gets_calls_only_if_nobody_else_can(self) -> None:
        """A worker that refused is passed over, unless it is all there is."""
        fleet = Fleet([1, 1], Affinity)
        table, router = fleet.replicas[0].table, fleet.replicas[0].router
        first, second = table.ready(MODEL)
        table.suspect(first)
        for number in range(10):
            assert fleet.open(chat(f"q{number}"), 1.0).row.name == second.row.name
        with router.book(chat("q"), frozenset({second.row.name})) as worker:
            assert worker is first
        table.suspect(second)
        with router.book(chat("q"), frozenset()) as worker:
            assert worker in (first, second)

    def test_whoever_is_to_be_avoided_is(self) -> None:
        """A call is not sent again where it failed; with nobody else there is no worker."""
        fleet = Fleet([1, 1], Affinity)
        router = fleet.replicas[0].router
        names = frozenset(fleet.engines)
        for name in names:
            with router.book(chat("q"), names - {name}) as worker:
                assert worker.row.name == name
        with pytest.raises(NoWorker) as refusal, router.book(chat("q"), names):
            pass
        assert refusal.value.headers["Retry-After"]

    @pytest.mark.parametrize("state", sorted(set(WorkerState) - {WorkerState.READY}))
    def test_only_ready_workers_get_calls(self, state: WorkerState) -> None:
        """Starting, stalled, draining and lost workers are no candidates, not even the last."""
        fleet = Fleet([1, 1], Affinity)
        fleet.engines["http://w0"].state = state
        fleet.tell()
        for number in range(20):
            assert fleet.open(chat(f"q{number}"), 60.0).row.name == "http://w1"
        fleet.engines["http://w1"].state = state
        fleet.tell()
        with pytest.raises(NoWorker):
            fleet.open(chat("q"), 1.0)

    def test_an_unknown_model_is_404(self) -> None:
        """A model no worker has ever offered does not exist; the answer names those that do."""
        fleet = Fleet([1], Affinity)
        call = chat("q")
        call.body["model"] = "other"
        with pytest.raises(ModelNotFound, match=f"Available: {MODEL}"):
            fleet.open(call, 1.0)


class TestBooking:
    """What a call weighs, and what is known of other replicas' calls."""

    def test_every_answer_of_a_call_weighs(self) -> None:
        """Four answers to each of two prompts are eight requests for the engine."""
        fleet = Fleet([1], Affinity)
        (worker,) = fleet.replicas[0].table.ready(MODEL)
        with fleet.replicas[0].router.book(completion(["a", "b"], n=4)):
            assert worker.load == 8
        assert worker.load == 0

    def test_own_calls_are_not_counted_twice(self) -> None:
        """A heartbeat that tells of our own calls adds nothing, even when they have just ended."""
        fleet = Fleet([1, 1], Affinity, beat=1000)
        for number in range(10):
            fleet.open(chat(f"q{number}"), 1.0)
        workers = fleet.replicas[0].table.ready(MODEL)
        for engine in fleet.engines.values():
            engine.told = engine.running
        fleet.tell()
        assert [w.load for w in workers] == [5, 5]
        fleet.advance(2.0)  # all of them end while the next news is on its way
        for engine in fleet.engines.values():
            engine.told = 4
        fleet.tell()
        assert [w.load for w in workers] == [0, 0]
        fleet.tell()
        assert [w.load for w in workers] == [0, 0]

    def test_others_calls_are_counted_until_they_are_old_news(self) -> None:
        """What a worker told beyond our own calls counts, but not long after the last word."""
        fleet = Fleet([1], Affinity, beat=1000)
        (worker,) = fleet.replicas[0].table.ready(MODEL)
        worker.book(3)
        fleet.engines["http://w0"].told = 8
        fleet.tell()
        assert (worker.load, worker.foreign) == (8, 5)
        worker.release(3)
        fleet.tell()  # the same row again, because another worker's changed
        assert worker.load == 5
        fleet.advance(QUEUE_NEWS_LIFETIME_S + 1)
        fleet.replicas[0].table.ready(MODEL)
        assert worker.load == 0


def row(name: str, speed: float = 1.0) -> WorkerRow:
    return WorkerRow(
        name=name, model_names=[MODEL], speed=speed, queue_length=0, state=WorkerState.READY
    )


def test_every_policy_can_be_set() -> None:
    """--routing offers exactly the policies there are, affinity first."""
    field = ApiSettings.__dataclass_fields__["routing"]
    assert field.metadata["choices"] == tuple(POLICIES)
    assert ApiSettings().routing == next(iter(POLICIES))
    for name in POLICIES:
        assert Fleet([1], lambda name=name: name).open(chat("q"), 1.0)  # type: ignore[misc]
