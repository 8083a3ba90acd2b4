"""Which rows are held out.

Rows of `eval_data` are; without any, `eval_rows` of the others. Rows whose prompts are the same or nearly the same are
held out together or not at all, so that the split itself leaks nothing. Which ones depends on the seed and on the
rows' hashes alone, never on the order of rows or files.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from tunewright.data.ledger import Account
from tunewright.data.near import PromptIndex
from tunewright.errors import UsageError

ONE_IN = 10
MOST = 200


def default_eval_rows(rows: int) -> int:
    """One in ten, at most 200; none of fewer than ten."""
    return min(MOST, rows // ONE_IN)


def plan_split(
    accounts: Sequence[Account], prompts: PromptIndex, eval_rows: int | None, seed: int, has_eval_data: bool
) -> dict[str, str]:
    """`train` or `eval` for each row that was not rejected, by the row's id.

    Args:
        accounts: the rows that were not rejected.
        prompts: the index of their prompts, in the same order.
        eval_rows: how many to hold out; None for the default.

    Raises:
        UsageError: as many rows as there are, or more, are to be held out.
    """
    if has_eval_data:
        return {a.row.id: "eval" if a.row.source.held_out else "train" for a in accounts}
    wanted = default_eval_rows(len(accounts)) if eval_rows is None else eval_rows
    if wanted >= len(accounts):
        raise UsageError("eval_rows", f"found {wanted}", f"fewer than the {len(accounts)} usable rows", "Lower it.")
    held_out = choose_held_out(accounts, prompts, wanted, seed)
    return {a.row.id: "eval" if a.row.id in held_out else "train" for a in accounts}


def choose_held_out(accounts: Sequence[Account], prompts: PromptIndex, wanted: int, seed: int) -> set[str]:
    """The ids of at most `wanted` rows, whole clusters of alike prompts at a time, in the order of their keys."""
    members: dict[int, list[Account]] = defaultdict(list)
    for account, group in zip(accounts, prompts.groups, strict=True):
        members[prompts.clusters[group]].append(account)
    held_out: set[str] = set()
    for cluster in sorted(members.values(), key=lambda rows: min(_key(seed, row.row.sha256) for row in rows)):
        if len(held_out) + len(cluster) <= wanted:
            held_out.update(account.row.id for account in cluster)
    return held_out


def _key(seed: int, sha256: str) -> str:
    return hashlib.sha256(f"{seed}:{sha256}".encode()).hexdigest()
