"""Home: what needs a person, what is at work, what waits, what ended, and how the machine is."""

import re
import time
from collections.abc import Sequence

from fastapi import APIRouter, Response

from tunewright.jobs.job import ENDED, Job
from tunewright.jobs.store import Store
from tunewright.web.pages.frame import Center, View, page, part
from tunewright.web.progress import progress_of
from tunewright.web.runs import IS_NAME

SHOWN = 8
SECONDS_THAT_TROUBLE_IS_NEW = 7 * 24 * 3600


def home_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/")
    def home() -> Response:
        return page("home.html.j2", "Home", "/", **home_view(center))

    @router.get("/parts/home")
    def home_now() -> Response:
        return part("home_now.html.j2", **home_view(center))

    return router


def home_view(center: Center) -> View:
    store, facts = center.store, center.board.facts
    waiting = store.jobs("WHERE state = 'queued'", limit=SHOWN + 1)
    at_work = store.jobs("WHERE state IN ('starting', 'running')")
    return {
        "troubles": troubles(store),
        "problems": facts.get("problems", []),
        "at_work": [
            {**job_view(job, store), "progress": progress_of(center.runs, run_name(job, store))} for job in at_work
        ],
        "waiting": [{**job_view(job, store), "needs": needs_of(job, store)} for job in waiting[:SHOWN]],
        "more_waiting": facts.get("jobs", {}).get("queued", 0) - SHOWN,
        "ended": lately(center),
        "machine": facts.get("machine", {}),
        "disk_free_bytes": facts.get("disk_free_bytes"),
        "disk_bytes": facts.get("disk_bytes"),
        "slots": facts.get("slots", []),
    }


def lately(center: Center) -> list[View]:
    """The jobs that ended last; in a store without any, the runs that were made without one."""
    marks = ", ".join("?" * len(ENDED))
    jobs = center.store.jobs(f"WHERE state IN ({marks})", ENDED, SHOWN)
    if jobs or center.store.newest_change():
        return [job_view(job, center.store) for job in jobs]
    runs = center.runs.all()[:SHOWN]
    return [{"name": run.name, "run": run.name, "state": run.verdict, "changed": run.changed} for run in runs]


def run_name(job: Job, store: Store) -> str:
    """The name of the job's run where it is one of the store's, else nothing."""
    is_here = job.run_dir.parent == store.root and IS_NAME.fullmatch(job.run_dir.name)
    return job.run_dir.name if is_here else ""


def job_view(job: Job, store: Store) -> View:
    return {
        "id": job.id,
        "name": job.name,
        "run": run_name(job, store),
        "state": job.state,
        "reason": job.reason,
        "wanted": job.wanted,
        "priority": job.priority,
        "changed": job.changed,
        "accept": gates_in(job.reason) if job.state == "gate" else [],
    }


def gates_in(reason: str) -> list[str]:
    """The names that the message of a gate says one may accept."""
    return list(dict.fromkeys(re.findall(r"--accept ([a-z0-9_]+)", reason)))


def troubles(store: Store) -> list[View]:
    """Jobs that wait for a person: the last of their run, stopped at a gate or failed, and not long ago."""
    since = time.time() - SECONDS_THAT_TROUBLE_IS_NEW
    where = (
        "WHERE state IN ('gate', 'failed') AND changed > ?"
        " AND NOT EXISTS (SELECT 1 FROM jobs AS later WHERE later.run_dir = jobs.run_dir AND later.id > jobs.id)"
    )
    return [job_view(job, store) for job in store.jobs(where, [since], SHOWN)]


def needs_of(job: Job, store: Store) -> Sequence[int]:
    """The jobs that it waits for still."""
    return [number for number in job.needs if store.job(number).state != "done"]
