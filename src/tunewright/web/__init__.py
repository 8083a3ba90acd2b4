"""The service: one port, over the jobs and the runs of one store.

`service` binds, holds the store and keeps the scheduler going; `guard` stands before every route; `api` has the routes,
`streams` what goes on for ever, `runs` what can be read of a run directory. Pages are to be thin: all they show is
here.
"""
