"""The tables of the store. What must never happen is forbidden here, by unique indexes, and not by care in the code."""

VERSION = 1

TABLES = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    recipe TEXT NOT NULL,
    arguments TEXT NOT NULL,
    run_dir TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    wanted TEXT NOT NULL DEFAULT '',
    crashes INTEGER NOT NULL DEFAULT 0,
    needs_free_bytes INTEGER NOT NULL DEFAULT 0,
    source TEXT NOT NULL,
    created REAL NOT NULL,
    changed REAL NOT NULL
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, priority DESC, id);
CREATE UNIQUE INDEX one_active_job_per_run ON jobs (run_dir) WHERE state IN ('queued', 'starting', 'running');

CREATE TABLE needs (
    job INTEGER NOT NULL REFERENCES jobs (id),
    needed INTEGER NOT NULL REFERENCES jobs (id),
    PRIMARY KEY (job, needed)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts (
    job INTEGER NOT NULL REFERENCES jobs (id),
    number INTEGER NOT NULL,
    slot TEXT NOT NULL,
    token TEXT NOT NULL,
    supervisor TEXT NOT NULL DEFAULT '',
    worker_pid INTEGER,
    beat REAL NOT NULL,
    started REAL NOT NULL,
    ended REAL,
    exit_code INTEGER,
    PRIMARY KEY (job, number)
) STRICT;
CREATE UNIQUE INDEX one_attempt_per_slot ON attempts (slot) WHERE ended IS NULL;
CREATE UNIQUE INDEX one_attempt_per_job ON attempts (job) WHERE ended IS NULL;

CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs (id),
    time REAL NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE INDEX history_by_job ON history (job, id);

CREATE TABLE arrivals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    recipe_sha256 TEXT NOT NULL,
    job INTEGER REFERENCES jobs (id),
    first INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    received REAL NOT NULL
) STRICT;
CREATE INDEX arrivals_by_content ON arrivals (sha256, recipe_sha256);
CREATE INDEX arrivals_by_state ON arrivals (state);
"""
