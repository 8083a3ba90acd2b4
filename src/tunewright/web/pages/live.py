"""The live page of a run: its job, its stages, its curves as they grow, and what one can do about it.

What the server knows is fetched anew every two seconds; curves, answers and notes come by the stream of the run's
events, from its beginning, so that a page that is loaded again shows every point.
"""

from contextlib import suppress
from typing import Annotated

import psutil
from fastapi import APIRouter, Path, Response

from tunewright.errors import JobNotFoundError
from tunewright.jobs.job import Attempt, Job
from tunewright.web.pages.frame import Center, View, page, part
from tunewright.web.pages.home import job_view
from tunewright.web.progress import Progress, progress_of
from tunewright.web.runs import NAME, STAGES, RunSummary

RunName = Annotated[str, Path(pattern=NAME)]


def live_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/runs/{name}")
    def live(name: RunName) -> Response:
        view = live_view(center, name)
        return page("live.html.j2", name, "/runs", **view)

    @router.get("/runs/{name}/report")
    def report(name: RunName) -> Response:
        stages = center.runs.summary(name).stages
        if "report" not in stages:
            raise JobNotFoundError(f"run {name}", "it has no report yet", mend="It is written at the end of a run.")
        return page("report.html.j2", f"Report of {name}", "/runs", name=name, stages=stages)

    @router.get("/parts/runs/{name}")
    def live_now(name: RunName) -> Response:
        return part("live_now.html.j2", **live_view(center, name))

    return router


def live_view(center: Center, name: str) -> View:
    """What is known of a run and of the last job that works on it.

    Raises:
        JobNotFoundError: there is neither.
    """
    job = job_of_run(center, name)
    summary = None
    try:
        summary = center.runs.summary(name)
    except JobNotFoundError:
        if job is None:
            raise
    is_at_work = job is not None and job.state in {"starting", "running"}
    progress = progress_of(center.runs, name) if summary else None
    attempts = center.store.attempts(job.id) if job else []
    plan = center.runs.read_if_there(name, "plan.json") if summary else {}
    return {
        "name": name,
        "job": job_view(job, center.store) if job else None,
        "attempt": len(attempts),
        "state": job.state if job and (is_at_work or job.state != "done") else summary.verdict if summary else "queued",
        "at_work": is_at_work,
        "stages": stages_view(center, summary, progress if is_at_work else None),
        "progress": progress if is_at_work else None,
        "plan": plan,
        "memory_bytes": memory_of(center, attempts[-1]) if is_at_work and attempts else None,
        "memory_of": " on the GPU" if attempts and attempts[-1].slot.startswith("gpu") else " in the whole process",
        "done_stages": summary.stages if summary else (),
        "has_events": summary is not None,
    }


def job_of_run(center: Center, name: str) -> Job | None:
    """The last job of a run."""
    return next(iter(center.store.jobs("WHERE run_dir = ?", [str(center.store.root / name)], 1)), None)


def stages_view(center: Center, summary: RunSummary | None, progress: Progress | None) -> list[View]:
    """Each stage with its state: `done`, `at work` or `to come`."""
    done = summary.stages if summary else ()
    found = []
    for stage in STAGES:
        is_now = progress is not None and progress.stage == stage
        state = "at work" if is_now else "done" if stage in done else "to come"
        seconds = center.runs.facts(summary.name, stage).get("seconds") if summary and state == "done" else None
        found.append({"name": stage, "state": state, "seconds": seconds})
    return found


def memory_of(center: Center, attempt: Attempt) -> float | None:
    """Bytes in use now: of the attempt's GPU, or on a machine without one of its processes."""
    if attempt.slot.startswith("gpu"):
        index = attempt.slot.removeprefix("gpu")
        gpus = center.board.facts.get("machine", {}).get("gpus", [])
        return next((gpu["memory_used_mib"] * 2**20 for gpu in gpus if gpu["index"] == index), None)
    with suppress(psutil.Error, TypeError, ValueError):
        worker = psutil.Process(attempt.worker_pid)
        return float(sum(process.memory_info().rss for process in [worker, *worker.children(recursive=True)]))
    return None
