"""The whole worker as a process, under a platform like RunPod: nothing is lost, doubled or misrouted."""

import random
import time

from tests.serverless.edits import is_own, job, picture
from tests.serverless.job_server import JobServer
from tests.serverless.painting import LOST, NOISE, POISON
from tests.serverless.worker_bench import Worker, leave, scenario


def test_a_backlog_is_worked_off_in_full_batches_and_every_job_gets_its_own_picture() -> None:
    """The main promise. The sizes differ but share a canvas; other canvases divide the slots."""
    dice = random.Random(7)
    jobs = [
        job(
            f"job-{number}",
            f"picture {number}",
            width=dice.choice((50, 64)),
            height=dice.choice((49, 60, 64)),
            num_inference_steps=dice.choice((2, 4, 8, 16)),
        )
        for number in range(64)
    ]
    times: dict[str, float] = {}

    async def script(server: JobServer, worker: Worker) -> None:
        times["start"] = time.monotonic()
        server.add(jobs)
        await server.until(lambda: not server.queued)
        times["no backlog"] = time.monotonic()
        await server.until(lambda: len(server.results) == 64)
        await leave(worker)

    server, worker = scenario(script, step_seconds=0.025)
    assert all(is_own(one, server.answer(one["id"])["output"]) for one in jobs)
    assert worker.counts["succeeded"] == 64
    rows = [rows for when, rows in worker.forwards if times["start"] < when < times["no backlog"]]
    full = sum(rows) / len(rows) / 4
    print(f"{len(rows)} forwards under backlog, {full:.0%} full")
    assert len(rows) > 50
    assert full >= 0.9
    assert max(server.asked) == 8, "two batches' worth of slots"
    assert any("job-" in ping.get("job_id", "") for ping in server.pings), "heartbeats name the jobs"


def test_jobs_of_several_canvases_all_get_their_own_picture() -> None:
    """Rows of different canvases cannot share a forward, so they take turns; none may be mixed up."""
    dice = random.Random(8)
    jobs = [
        job(
            f"job-{number}",
            f"picture {number}",
            width=dice.choice((48, 64, 96)),
            height=dice.choice((48, 80)),
            num_inference_steps=dice.choice((1, 3, 6)),
        )
        for number in range(64)
    ]

    async def script(server: JobServer, worker: Worker) -> None:
        server.add(jobs)
        await server.until(lambda: len(server.results) == 64)
        await leave(worker)

    server, worker = scenario(script, step_seconds=0.005)
    assert all(is_own(one, server.answer(one["id"])["output"]) for one in jobs)
    assert worker.counts["succeeded"] == 64


def test_one_poison_job_in_every_batch_fails_alone() -> None:
    """Its neighbours answer as if it had never been there."""
    jobs = [job(f"job-{number}", POISON if number % 4 == 1 else f"fine {number}") for number in range(32)]

    async def script(server: JobServer, worker: Worker) -> None:
        server.add(jobs)
        await server.until(lambda: len(server.results) == 32)
        await leave(worker)

    server, worker = scenario(script)
    for one in jobs:
        answer = server.answer(one["id"])
        if one["input"]["prompt"] == POISON:
            assert answer["output"]["code"] == "pipeline_error"
            assert isinstance(answer["error"], str)
        else:
            assert is_own(one, answer["output"])
    assert (worker.counts["succeeded"], worker.counts["failed"]) == (24, 8)


def test_an_idle_worker_ends_within_two_seconds() -> None:
    """Scaling down must not cost 90 s of GPU, nor end in SIGKILL."""

    async def script(server: JobServer, worker: Worker) -> None:
        started = time.monotonic()
        worker.terminate()
        assert await worker.ended() == 0
        print(f"idle exit after {time.monotonic() - started:.2f} s")
        assert time.monotonic() - started < 2.0

    scenario(script)


def test_a_leaving_worker_finishes_and_posts_what_it_has_and_takes_nothing_more() -> None:
    """Results are posted although the first posts meet a 500, and the late job waits for another worker."""
    jobs = [job(f"job-{number}", f"slow {number}", num_inference_steps=20) for number in range(4)]

    async def script(server: JobServer, worker: Worker) -> None:
        server.refuse_posts = 2
        server.add(jobs)
        await server.until(lambda: len(server.taken) == 4 and server.polls)
        worker.terminate()
        await server.until(lambda: not server.polls)
        await worker.says("leaving: no new jobs, 4 to finish")
        server.add([job("late")])
        assert await worker.ended() == 0

    server, _ = scenario(script, step_seconds=0.05)
    assert all(is_own(one, server.answer(one["id"])["output"]) for one in jobs)
    assert len(server.refused) == 2
    assert [one["id"] for one in server.queued] == ["late"]
    assert "late" not in server.taken


def test_what_is_unfinished_at_the_limit_is_answered() -> None:
    """The platform kills a worker that stays too long; an answer that says why is better."""

    async def script(server: JobServer, worker: Worker) -> None:
        server.add([job("endless", num_inference_steps=100)])
        await server.until(lambda: server.taken)
        await leave(worker)

    server, _ = scenario(script, step_seconds=0.2, DRAIN_SECONDS="0.3")
    assert server.answer("endless")["output"]["code"] == "shutting_down"


def test_an_oversize_result_leaves_smaller_or_as_an_error() -> None:
    """The platform drops what is over 20 MB without a word; the limit is set low here."""

    async def script(server: JobServer, worker: Worker) -> None:
        server.add([job("smaller", NOISE, width=256, height=256), job("error", NOISE, width=512, height=512)])
        await server.until(lambda: len(server.results) == 2)
        await leave(worker)

    server, _ = scenario(script, MAX_OUTPUT_MB="0.2")
    smaller = server.answer("smaller")["output"]
    assert smaller["output_format"] in ("jpeg", "webp")
    assert picture(smaller).size == (256, 256)
    assert server.answer("error")["output"]["code"] == "output_too_large"


def test_a_stopped_job_leaves_its_batch_and_the_others_stay() -> None:
    """The caller cancelled it; its time on the device goes to the others."""

    async def script(server: JobServer, worker: Worker) -> None:
        server.add([job("stopped", num_inference_steps=100), job("kept", num_inference_steps=30)])
        await server.until(lambda: server.updates.get("stopped"))
        server.stop("stopped")
        await server.until(lambda: "kept" in server.results)
        await leave(worker)

    server, worker = scenario(script, step_seconds=0.1)
    assert "stopped" not in server.results
    assert worker.counts["cancelled"] == 1
    assert len(worker.forwards) < 60, "100 steps were not run"
    updates = server.updates["kept"]
    assert [update["status"] for update in updates] == ["IN_PROGRESS"] * len(updates)
    assert updates[-1]["output"]["steps"] == 30
    assert len(updates) <= 4, "at most one a second"


def test_a_job_delivered_twice_runs_once_and_malformed_ones_are_answered() -> None:
    """The platform delivers again when it has lost sight of a worker; and callers send what they like."""

    async def script(server: JobServer, worker: Worker) -> None:
        server.add([job("twice"), {"id": "empty", "input": {}}, {"id": "none"}, job("twice")])
        server.add([{"id": "text", "input": "x"}])
        await server.until(lambda: len(server.results) == 4 and len(server.results["twice"]) == 2)
        await leave(worker)

    server, worker = scenario(script)
    first, second = server.results["twice"]
    assert first == second
    assert is_own(job("twice"), first["output"])
    assert worker.counts["succeeded"] == 1
    for malformed in ("empty", "none", "text"):
        assert server.answer(malformed)["output"]["code"] == "invalid_parameter"


def test_a_model_that_cannot_load_answers_every_job_with_the_remedy() -> None:
    """A worker that ends is started again, at the operator's cost, and nobody reads why."""

    async def script(server: JobServer, worker: Worker) -> None:
        server.add([job("a"), job("b")])
        await server.until(lambda: len(server.results) == 2)
        await leave(worker)

    server, _ = scenario(script, fault="cannot-load")
    for job_id in ("a", "b"):
        answer = server.answer(job_id)
        assert answer["error"] == "painting needs a brush; set DEFAULT_MODEL=pocket-edit"
        assert answer["output"]["code"] == "not_ready"


def test_a_lost_device_answers_everyone_and_ends_the_process() -> None:
    """The platform then starts another one, with luck on another card."""

    async def script(server: JobServer, worker: Worker) -> None:
        server.add([job("victim", num_inference_steps=50), job("lost", LOST), job("other")])
        await server.until(lambda: len(server.results) == 3)
        assert await worker.ended() == 1

    server, _ = scenario(script, step_seconds=0.05)
    codes = {job_id: server.answer(job_id)["output"]["code"] for job_id in ("victim", "lost", "other")}
    assert codes["victim"] == codes["lost"] == "device_lost"
    assert codes["other"] in ("device_lost", "not_ready")  # the latter when it was read after the loss


def test_a_device_lost_in_the_warm_up_ends_the_process_before_any_job() -> None:
    """A sound machine can take the jobs; here each of them would be answered with an error."""

    async def script(server: JobServer, worker: Worker) -> None:
        server.add([job("a")])
        assert await worker.ended() == 1

    server, _ = scenario(script, fault="lost-at-once", polls=False)
    assert server.taken == []


def test_a_worker_that_is_still_loading_ends_at_once() -> None:
    """It has taken nothing; and process 1 of a container ignores SIGTERM unless it handles it."""

    async def script(server: JobServer, worker: Worker) -> None:
        await worker.says("fitness check(s)")
        started = time.monotonic()
        await leave(worker)
        assert time.monotonic() - started < 2.0

    scenario(script, fault="never-loads", polls=False)


def test_fitness_runs_before_anything_is_taken_or_told() -> None:
    """The order that this worker relies on, from the SDK itself."""

    async def script(server: JobServer, worker: Worker) -> None:
        await server.until(lambda: server.pings)
        await leave(worker)

    _, worker = scenario(script, RUNPOD_LOG_LEVEL="DEBUG")
    order = [
        next(at for at, line in enumerate(worker.lines) if words in line)
        for words in (
            "Executing fitness check: weights_are_loaded",
            "Executing fitness check: warm_up_succeeds",
            "All fitness checks passed",
            "rp_job | get_job",
        )
    ]
    assert order == sorted(order)
    told = next(at for at, line in enumerate(worker.lines) if "Heartbeat Sent" in line)
    assert told > order[2]


def test_another_sdk_release_still_works() -> None:
    """Leaving then takes as long as that release takes, and the log says so."""

    async def script(server: JobServer, worker: Worker) -> None:
        server.add([job("a")])
        await server.until(lambda: server.results)
        await worker.says("this runpod release is not the expected one")
        worker.kill()
        await worker.ended()

    server, _ = scenario(script, fault="other-sdk")
    assert "image" in server.answer("a")["output"]
