"""Jobs: runs that wait, run one after the other as processes of their own, and survive whatever starts them.

Knows no machine learning: it starts `tunewright run` and keeps book. `store` is the book, `supervisor` the small
process that stands over one run, `scheduler` starts supervisors and notices their death, `inbox` makes jobs of files
that arrive.
"""
