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
from tunewright.evidence import Evidence, fact
from tunewright.recipe import DataKeys

ONE_IN = 10
MOST = 200


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


def plan_split(accounts: Sequence[Account], prompts: PromptIndex, wanted: int | None, seed: int) -> dict[str, str]:
    """`train` or `eval` for each row that was not rejected, by the row's id.

    Args:
        accounts: the rows that were not rejected.
        prompts: the index of their prompts, in the same order.
        wanted: how many to hold out; None if `eval_data` is held out.
    """
    if wanted is None:
        return {a.row.id: "eval" if a.row.source.held_out else "train" for a in accounts}
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
