"""The review of answers: a person looks at the rows of a file, and accepts, edits or rejects each answer.

    STORE/.service/reviews/ID/    review.json, rows.jsonl, decisions.jsonl, finished.json

`rows` reads a file once, in a process of its own, into rows with the place of their answer (`answer`); `sheet` reads
them again; `journal` keeps every decision; `reviews` brings both together; `finish` makes a new file of what stays. An
ID stands for the content of the file and for how its rows are read, so that a decision never falls on other rows.
"""
