"""Many threads, faults and changes of mind at once; and the two promises that need a crowd."""

import random
import threading
import time
from concurrent.futures import CancelledError, wait

from batching.job import JobState
from batching.mux import BatchMux, BatchPolicy
from core.errors import CapacityError, OutOfDeviceMemory, ServingError
from tests.batching.conftest import StartMux
from tests.fakes import WAIT, PaintingPipeline, Turnstile, assert_accounted, is_picture_of, make_request


class Weather:
    """A hook: some rows are always poison, some calls fail for no reason, some run out of memory."""

    def __init__(self) -> None:
        self.rng = random.Random(5)

    def __call__(self, stage: str, ids: list[str]) -> None:
        if any(id.endswith("7") for id in ids) and stage == "step":
            raise ValueError("poison")
        if stage == "decode" and len(ids) > 2 and self.rng.random() < 0.1:
            raise OutOfDeviceMemory


def test_a_storm_loses_nothing(start_mux: StartMux) -> None:
    """Each caller: his own picture, or an error that he had coming. The identity holds at any moment."""
    mux = start_mux(PaintingPipeline(Weather()), BatchPolicy(max_queue=40))
    problems: list[str] = []
    counts = dict.fromkeys(("done", "poison", "cancelled", "expired", "refused"), 0)
    lock = threading.Lock()
    over = threading.Event()

    def caller(index: int) -> None:
        rng = random.Random(index)
        for n in range(60):
            outcome = call(mux, rng, f"{index}-{n}")
            with lock:
                counts[outcome] = counts.get(outcome, 0) + 1
                if outcome not in {"done", "poison", "cancelled", "expired", "refused"}:
                    problems.append(outcome)

    def auditor() -> None:
        while not over.is_set():
            assert_accounted(mux)

    threads = [threading.Thread(target=caller, args=(index,)) for index in range(12)]
    watching = threading.Thread(target=auditor)
    for thread in (*threads, watching):
        thread.start()
    for thread in threads:
        thread.join(timeout=WAIT)
    over.set()
    watching.join()
    assert problems == []
    jobs = mux.stats().jobs
    assert counts["done"] == jobs[JobState.SUCCEEDED] > 0
    assert counts["poison"] == jobs[JobState.FAILED] > 0
    assert counts["cancelled"] == jobs[JobState.CANCELLED] > 0
    assert counts["expired"] == jobs[JobState.EXPIRED]
    assert sum(counts.values()) == 12 * 60


def call(mux: BatchMux, rng: random.Random, id: str) -> str:
    request = make_request(
        id,
        steps=rng.choice([1, 2, 9]),
        size=rng.choice([(16, 16), (32, 16)]),
        model=rng.choice(["one", "one", "two"]),
        timeout=rng.choice([None, None, 5.0, 1e-4]),
    )
    try:
        future = mux.submit(request)
    except CapacityError as error:
        return "refused" if error.code == "queue_full" else error.code
    change_of_mind = rng.random()
    if change_of_mind < 0.1:
        future.cancel()
    elif change_of_mind < 0.2:
        mux.cancel(id)
    try:
        result = future.result(timeout=WAIT)
    except CancelledError:
        return "cancelled"
    except ServingError as error:
        names = {"pipeline_error": "poison", "cancelled": "cancelled", "deadline_exceeded": "expired"}
        fair = error.code != "pipeline_error" or id.endswith("7")
        return names.get(error.code, error.code) if fair else f"{id} was blamed for another's fault"
    return "done" if is_picture_of(result, request) else f"{id} got another's picture"


def test_a_flood_does_not_hold_a_lone_request_of_another_key(start_mux: StartMux) -> None:
    """Two batch times, counted in steps that it is not in."""
    gate = Turnstile("step")
    pipeline = PaintingPipeline(gate)
    mux = start_mux(pipeline, BatchPolicy(max_queue=1000))
    flood = [mux.submit(make_request(f"f{n}", steps=4)) for n in range(200)]
    gate.waiting()
    lone = mux.submit(make_request("lone", steps=4, size=(32, 32)))
    gate.open()
    lone.result(timeout=WAIT)
    wait(flood, timeout=WAIT)
    steps = pipeline.stages("step")
    last = max(number for number, ids in enumerate(steps) if "lone" in ids)
    assert sum("lone" not in ids for ids in steps[:last]) <= 1 + 2 * 4 + 2


def test_overload_is_refused_early_and_costs_little(start_mux: StartMux) -> None:
    """Five times more than fits: refusals come at once, and the device keeps its batches full."""
    gate = Turnstile("step")
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(max_queue=16))
    accepted = [mux.submit(make_request("plug", steps=1))]
    gate.waiting()
    refused: list[float] = []
    for n in range(80):
        started = time.perf_counter()
        try:
            accepted.append(mux.submit(make_request(f"r{n}", steps=1)))
        except CapacityError:
            refused.append(time.perf_counter() - started)
    assert (len(accepted), len(refused)) == (17, 64)
    assert max(refused) < 0.050
    gate.open()
    wait(accepted, timeout=WAIT)
    assert mux.stats().batch_sizes == {1: 1, 4: 4}
