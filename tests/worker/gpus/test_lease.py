"""No two engines get the same GPU, and a GPU is free again when its engine is gone."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.processes import eventually

from kodolly.errors import SettingsError
from kodolly.processes.leashed_process import LeashedProcess
from kodolly.worker.gpus.devices import Gpu, visible
from kodolly.worker.gpus.lease import Lease, Leases
from kodolly.worker.gpus.request import GpuRequest, number_of_gpus, parallel_size, vllm_flags

GIB = 2**30
# A worker that leases one of two GPUs, and says which, until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from kodolly.worker.gpus.devices import Gpu
from kodolly.worker.gpus.lease import Lease, Leases
leases = Leases(Path(sys.argv[1]), lambda: [Gpu("GPU-0", 0, 9), Gpu("GPU-1", 0, 9)])
while not isinstance(lease := leases.take(1), Lease):
    time.sleep(0.02)
print(lease.uuids[0], flush=True)
time.sleep(600)
"""


def machine(number: int, used: int = 0) -> list[Gpu]:
    """GPUs of 80 GiB each."""
    return [Gpu(f"GPU-{index}", used, 80 * GIB) for index in range(number)]


def leases(directory: Path, gpus: Sequence[Gpu], slots: int = 1) -> Leases:
    """What one worker sees."""
    return Leases(directory, lambda: gpus, slots)


def take(from_: Leases, count: int = 1) -> Lease:
    """A lease that must succeed."""
    lease = from_.take(count)
    assert isinstance(lease, Lease), lease
    return lease


def test_each_worker_gets_a_gpu_of_its_own_and_one_too_many_waits(tmp_path: Path) -> None:
    """Three workers have three GPUs; the fourth gets the one that is given back."""
    held = [take(leases(tmp_path, machine(3))) for _ in range(3)]
    assert len({lease.uuids for lease in held}) == 3

    assert leases(tmp_path, machine(3)).take(1) == "0 of 3 GPUs are free, 1 wanted"

    held[1].close()
    assert take(leases(tmp_path, machine(3))).uuids == held[1].uuids


def test_a_pair_is_leased_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """A worker that wants two of three GPUs, where one is free, leaves that one to others."""
    take(leases(tmp_path, machine(3)), 2)
    assert leases(tmp_path, machine(3)).take(2) == "1 of 3 GPUs are free, 2 wanted"
    take(leases(tmp_path, machine(3)))


def test_half_a_gpu_is_leased_twice_and_never_beside_another_share(tmp_path: Path) -> None:
    """Two halves fit; a third, a whole and a quarter do not."""
    first = take(leases(tmp_path, machine(1), 2))
    assert isinstance(leases(tmp_path, machine(1), 4).take(1), str)
    assert isinstance(leases(tmp_path, machine(1)).take(1), str)
    second = take(leases(tmp_path, machine(1), 2))
    assert isinstance(leases(tmp_path, machine(1), 2).take(1), str)
    first.close()
    second.close()
    take(leases(tmp_path, machine(1), 4))


def test_a_gpu_that_other_programs_fill_is_not_free(tmp_path: Path) -> None:
    """The reason names the GPU; half a GPU still fits where half is free."""
    gpus = machine(1, used=40 * GIB)
    assert "the memory of GPU-0 is in use" in str(leases(tmp_path, gpus).take(1))
    take(leases(tmp_path, gpus, 2))


def test_more_gpus_than_there_are_is_an_error(tmp_path: Path) -> None:
    """Nobody waits for what can never come."""
    with pytest.raises(SettingsError, match="--gpus 2: only 1 GPUs"):
        leases(tmp_path, machine(1)).take(2)


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", "", "65", "9" * 5000])
def test_a_wrong_number_of_gpus_names_the_flag(wrong: str) -> None:
    """And says what to write instead."""
    with pytest.raises(SettingsError, match=r"--gpus .*write a number"):
        number_of_gpus(wrong, uses_cuda=True)


def test_cuda_visible_devices_restricts_the_choice() -> None:
    """By index, whole UUID and beginning; a word that names none or several is an error."""
    gpus = [Gpu("GPU-aa1", 0, 1), Gpu("GPU-aa2", 0, 1), Gpu("GPU-b", 0, 1)]
    assert visible(gpus, None) == gpus
    assert visible(gpus, "2,GPU-aa1") == [gpus[2], gpus[0]]
    assert visible(gpus, "") == []
    for wrong in ("3", "GPU-aa", "0,,1"):
        with pytest.raises(SettingsError, match="CUDA_VISIBLE_DEVICES"):
            visible(gpus, wrong)


def test_vllm_is_told_its_gpus_unless_the_operator_did() -> None:
    """Tensor parallelism by the number, memory by the share."""
    assert vllm_flags(2, 1.0, ()) == ("--tensor-parallel-size", "2")
    assert vllm_flags(2, 1.0, ("--tensor_parallel_size=1",)) == ()
    assert vllm_flags(1, 0.5, ()) == ("--gpu-memory-utilization", "0.450")
    assert vllm_flags(1, 1.0, ()) == ()


def test_arguments_that_spread_a_model_say_how_many_gpus_it_needs() -> None:
    """Sizes are multiplied, in both spellings; a size that is no number is an error."""
    assert parallel_size(("--seed", "3")) == 1
    assert parallel_size(("--tensor-parallel-size=2", "-pp", "3")) == 6
    with pytest.raises(SettingsError, match="-tp: 'x'"):
        parallel_size(("-tp", "x"))


async def test_a_worker_that_waits_says_why_and_starts_when_a_gpu_comes_free(
    tmp_path: Path,
) -> None:
    """The reason comes once; None when it has its GPU, which it keeps for its next engine."""
    held = take(leases(tmp_path, machine(1)))
    request = GpuRequest(1, leases(tmp_path, machine(1)), lambda: machine(1))
    reasons: list[str | None] = []

    def waits(reason: str | None) -> None:
        reasons.append(reason)
        held.close() if reason else None

    lease = await request.lease(waits)

    assert reasons == ["0 of 1 GPUs are free, 1 wanted", None]
    assert await request.lease(waits) is lease
    request.close()


async def test_a_lease_lasts_as_long_as_the_engine(tmp_path: Path) -> None:
    """The worker's own descriptor is closed, as if it had been killed: the engine still has the GPU."""
    lease = take(leases(tmp_path, machine(1)))
    engine = await LeashedProcess.start(["sleep", "600"], descriptors=lease.descriptors)
    (descriptor,) = lease.descriptors
    assert Path(
        f"/proc/{engine.pid}/fd/{descriptor}"
    ).exists()  # the program's too, not only the leash's
    lease.close()
    other = leases(tmp_path, machine(1))
    assert isinstance(other.take(1), str)

    os.kill(engine.pid, signal.SIGKILL)

    await engine.wait()
    await eventually(lambda: isinstance(other.take(1), Lease))


def test_workers_killed_at_random_leave_no_gpu_behind(tmp_path: Path) -> None:
    """Four workers, two GPUs: two have one each, and each kill hands its GPU on within 5 s."""
    workers = [_holder(tmp_path) for _ in range(4)]
    holds: dict[subprocess.Popen[str], str] = {}
    choose = random.Random(7)
    try:
        _until_leased(workers, holds, 30)
        for _ in range(6):
            victim = choose.choice(list(holds))
            _kill(victim)
            workers.remove(victim)
            del holds[victim]
            _until_leased(workers, holds, 5)
            workers.append(_holder(tmp_path))
    finally:
        for worker in workers:
            _kill(worker)


def _holder(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdout=subprocess.PIPE, text=True
    )


def _kill(worker: subprocess.Popen[str]) -> None:
    with worker:
        worker.kill()


def _until_leased(
    workers: list[subprocess.Popen[str]], holds: dict[subprocess.Popen[str], str], seconds: float
) -> None:
    """Reads which GPUs were leased until both are; fails if one is leased twice."""
    deadline = time.monotonic() + seconds
    while len(holds) < 2:
        waiting = [w.stdout for w in workers if w not in holds and w.stdout is not None]
        ready, _, _ = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"a GPU stayed leased for {seconds} s"
        for worker in workers:
            if worker.stdout in ready and worker.stdout is not None:
                holds[worker] = worker.stdout.readline().strip()
    assert sorted(holds.values()) == ["GPU-0", "GPU-1"]
