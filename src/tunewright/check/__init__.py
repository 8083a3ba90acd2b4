"""The command `check`: everything that can be said of rows without training on them.

In: a recipe that names rows, and perhaps a base. Out: one `Outcome`, which the terminal, `--json` and the page show.
Always: kept + truncated + rejected = rows in; nothing is left behind but what was asked for; without a base neither
torch nor transformers is imported.
"""
