"""Which rows are held out.

Rows of `eval_data` are; without any, `eval_rows` of the others. Rows whose prompts are the same or nearly the same, and
rows of one conversation tree, are held out together or not at all, so that the split itself leaks nothing. Which ones
depends on the seed and on the rows' hashes alone, never on the order of rows or files: rows are taken in the order of
their keys, so that adding rows moves only as many others as it pushes over the edge.

With `stratify_by`, each value of that field has its share of the held-out rows.
"""

import numpy as np
from numpy.typing import NDArray

from tunewright.data.audit.columns import Values, members, smallest_rows
from tunewright.data.corpus import Corpus
from tunewright.data.groups import Groups, Unions, group_sizes
from tunewright.errors import UsageError
from tunewright.evidence import Evidence, fact
from tunewright.recipe import DataKeys

ONE_IN = 10
MOST = 200
NO_SALT = np.uint64(0)


def wanted_eval_rows(config: DataKeys, rows: int) -> int | None:
    """How many usable rows to hold out: what the recipe says, else one in ten, at most 200; None with `eval_data`.

    Raises:
        UsageError: no row would be left to train on.
    """
    if config.eval_data:
        return None
    wanted = min(MOST, rows // ONE_IN) if config.eval_rows is None else config.eval_rows
    if wanted >= rows:
        raise UsageError("eval_rows", f"found {wanted}", f"fewer than the {rows} usable rows", "Lower it.")
    return wanted


def check_held_out_rows(held_out: int, config: DataKeys, rows: int) -> Evidence:
    """Warns if fewer rows are held out than were wanted, or none because there are too few."""
    wanted = wanted_eval_rows(config, rows)
    if wanted is None or config.eval_rows == 0:
        return fact("held_out_rows", held_out, "From `eval_data`." if config.eval_data else "None, as the recipe says.")
    asked = max(wanted, 1)
    if held_out >= asked:
        return Evidence("held_out_rows", held_out, f">= {asked}", "pass", f"{held_out} of {rows} rows are held out.")
    cause = f"there are fewer than {ONE_IN}" if wanted == 0 else "the prompts of the others are too much alike to part"
    detail = f"{held_out} of {rows} rows are held out: {cause}. Name rows of your own in `eval_data`."
    return Evidence("held_out_rows", held_out, f">= {asked}", "warn", detail)


def split(corpus: Corpus, config: DataKeys) -> NDArray[np.bool_]:
    """Which rows are held out, bool [N].

    Raises:
        UsageError: no row would be left to train on.
    """
    wanted = wanted_eval_rows(config, corpus.size)
    if wanted is None:
        return corpus.column("held_out")[:].astype(np.bool_)
    held_out = np.zeros(corpus.size, dtype=np.bool_)
    if wanted:
        groups = inseparable(corpus)
        held_out[list(choose_groups(groups, corpus.column("key"), quotas(corpus, wanted)))] = True
        held_out = members(groups, held_out)
    return held_out


def inseparable(corpus: Corpus) -> Groups:
    """Groups of rows that have to be on one side, int32 [N]."""
    clusters = corpus.clusters()
    if corpus.most_frequent("tree") == (0, 0):
        return clusters
    groups = Unions(clusters.copy())
    groups.join_all(corpus.first_equal("tree"))
    return groups.roots()


Quotas = list[tuple[NDArray[np.int64] | None, int]]


def quotas(corpus: Corpus, wanted: int) -> Quotas:
    """Rows to choose from, and how many: per stratum by largest remainders (Hamilton's method), or of all rows."""
    if corpus.most_frequent("stratum") == (0, 0):
        return [(None, wanted)]
    strata = corpus.column("stratum")[:]
    values, counts = np.unique(strata, return_counts=True)
    if len(values) < 2:
        return [(None, wanted)]
    shares = counts * wanted / counts.sum()
    quota = np.floor(shares).astype(np.int64)
    remainders = np.argsort(quota - shares, kind="stable")
    quota[remainders[: wanted - quota.sum()]] += 1
    return [(np.flatnonzero(strata == value), int(count)) for value, count in zip(values, quota, strict=True)]


def choose_groups(groups: Groups, keys: Values, wanted: Quotas) -> set[int]:
    """Whole groups in the order of their smallest keys, while they fit into the number of rows that is wanted."""
    sizes = group_sizes(groups)
    chosen: set[int] = set()
    for rows, count in wanted:
        left = count
        own = keys if rows is None else keys[rows]
        # Enough of them that groups too large to fit can be passed over.
        for place in smallest_rows(own, NO_SALT, 100 * count + 1000):
            group = int(groups[place if rows is None else rows[place]])
            if group not in chosen and sizes[group] <= left:
                chosen.add(group)
                left -= int(sizes[group])
            if not left:
                break
    return chosen
