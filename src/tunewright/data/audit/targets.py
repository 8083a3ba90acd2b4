"""Checks of what the rows teach: targets cut short, copied, doubled, bare, always the same or off the schema.

A target is a trained turn of the assistant. Of a target that is a JSON object or array the strings are looked at one by
one.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from tunewright.data.audit.findings import Example, Finding, ending, excerpt, share_finding
from tunewright.data.audit.rows import AuditRow, Corpus, Exchange
from tunewright.evidence import Evidence

ELLIPSES = ("...", "…")
PREFIX_AT_LEAST = 40
NEAR_COPY_SHARE = 0.8
CONTAINED_CHARACTERS = 100
BARE_SCALAR = re.compile(r"\s*(?:[-+]?\d+(?:[.,]\d+)*(?:[eE][-+]?\d+)?|true|false|null|none)\s*", re.IGNORECASE)
LABEL_CHARACTERS = 40
DOMINATING_SHARE = 0.5
LABELS_SHARE = 0.95
WORDS = re.compile(r"\w+")


def check_ellipsis_targets(corpus: Corpus) -> Finding:
    """Targets, or strings in JSON targets, that end in an ellipsis, as text cut to a length does."""
    found = [
        Example(row.id, ending(text))
        for row in corpus.rows
        if (text := next((t for t in texts_of(row) if t.rstrip().endswith(ELLIPSES)), None)) is not None
    ]
    return share_finding(
        "ellipsis_targets",
        found,
        len(corpus.rows),
        0.01,
        'have a target that ends in "..."',
        "The model would learn to break off: write these targets in full, or leave the rows out.",
    )


def texts_of(row: AuditRow) -> Iterator[str]:
    for exchange in row.exchanges:
        yield from exchange.texts


def check_copied_prefix_targets(corpus: Corpus) -> Finding:
    """Targets, or strings in JSON targets, that are only the beginning of what the user wrote."""
    found = [
        Example(row.id, excerpt(text))
        for row in corpus.rows
        if (text := next((t for e in row.exchanges for t in e.texts if is_copied_prefix(t, e.user)), None)) is not None
    ]
    return share_finding(
        "copied_prefix_targets",
        found,
        len(corpus.rows),
        0.01,
        "have a target that is only the beginning of the user's text",
        "Nothing but copying can be learned from them: have these targets written, not cut from the input.",
    )


def is_copied_prefix(text: str, user: str) -> bool:
    """A text of at least 40 characters with which the user's begins, an ellipsis at its end left aside.

    A text that is the whole of the user's, as in proofreading, is no prefix; with an ellipsis it is.
    """
    body = text.strip()
    ellipsis = next((mark for mark in ELLIPSES if body.endswith(mark)), "")
    body = body.removesuffix(ellipsis).rstrip()
    user = user.strip()
    return len(body) >= PREFIX_AT_LEAST and user.startswith(body) and (bool(ellipsis) or len(body) < len(user))


def check_near_copy_fields(corpus: Corpus) -> Finding:
    """JSON targets in which two fields of one object say nearly the same."""
    pairs: Counter[str] = Counter()
    found = []
    for row in corpus.rows:
        names = next((names for e in row.exchanges for item in e.objects if (names := near_copies(item))), None)
        if names:
            pairs[" and ".join(names)] += 1
            found.append(Example(row.id, " and ".join(names)))
    which = ", ".join(f"{count} × {names}" for names, count in pairs.most_common(3))
    return share_finding(
        "near_copy_fields",
        found,
        len(corpus.rows),
        0.05,
        "have a JSON target with two fields that nearly copy one another" + (f" ({which})" if which else ""),
        "Have the fields written anew so that each says what it is for.",
    )


def near_copies(item: dict[str, Any]) -> tuple[str, str] | None:
    """The first two fields of an object that are near copies; strings of fewer than 40 characters are not compared."""
    texts = [(key, value) for key, value in item.items() if isinstance(value, str) and len(value) >= PREFIX_AT_LEAST]
    near = (pair for pair in combinations(texts, 2) if are_near_copies(pair[0][1], pair[1][1]))
    return next(((left, right) for (left, _), (right, _) in near), None)


def are_near_copies(left: str, right: str) -> bool:
    """One has the other's first 100 characters in it, or the Jaccard similarity of their words is at least 0.8."""
    for one, other in ((left, right), (right, left)):
        if len(one) >= CONTAINED_CHARACTERS and one[:CONTAINED_CHARACTERS] in other:
            return True
    words, others = set(WORDS.findall(left.casefold())), set(WORDS.findall(right.casefold()))
    return len(words & others) >= NEAR_COPY_SHARE * len(words | others) > 0


def check_bare_scalar_targets(corpus: Corpus) -> Finding:
    """Targets that are only a number, a truth value or null. Labels, short and recurring, are only warned about."""
    found = [Example(row.id, excerpt(row.last.target)) for row in corpus.rows if BARE_SCALAR.fullmatch(row.last.target)]
    finding = share_finding(
        "bare_scalar_targets",
        found,
        len(corpus.rows),
        0.01,
        "have a target that is only a number, true, false or null",
        "Say in the target what the figure is, in the form that the other rows have.",
    )
    is_softened = finding.evidence.verdict == "fail" and is_classification([row.last.target for row in corpus.rows])
    return finding.with_verdict("warn") if is_softened else finding


def is_classification(targets: Sequence[str]) -> bool:
    """Whether nearly all targets are one short line each, and most of them recur."""
    labels = [target for target in targets if len(target.strip()) <= LABEL_CHARACTERS and "\n" not in target.strip()]
    return len(labels) >= LABELS_SHARE * len(targets) and 2 * len(set(labels)) <= len(labels)


def check_dominating_target(corpus: Corpus) -> Finding:
    """One target that is that of more than half of the rows (a warning), or of all."""
    counts = Counter(row.last.target for row in corpus.rows)
    target, count = counts.most_common(1)[0]
    share = count / len(corpus.rows)
    found = [Example(row.id, excerpt(target)) for row in corpus.rows if row.last.target == target]
    finding = share_finding(
        "dominating_target",
        found if count > 1 and share > DOMINATING_SHARE else [],
        len(corpus.rows),
        DOMINATING_SHARE,
        "have one and the same target",
        "The model would learn to say it whatever is asked: even the targets out.",
    )
    return finding.with_verdict("warn") if finding.evidence.verdict == "fail" and share < 1 else finding


def check_schema_outliers(corpus: Corpus) -> Finding:
    """Where most targets are JSON objects: the targets that are not, or have other keys than most."""
    schemas = {row.id: schema_of(row.last) for row in corpus.rows}
    counts = Counter(schema for schema in schemas.values() if schema is not None)
    if counts.total() * 2 < len(corpus.rows):
        detail = f"{counts.total()} of {len(corpus.rows)} targets are JSON objects: there is no schema to hold to."
        return Finding(Evidence("schema_outliers", 0.0, "<= 0.01", "pass", detail))
    usual, count = counts.most_common(1)[0]
    found = [Example(id_, describe_schema(schema, usual)) for id_, schema in schemas.items() if schema != usual]
    finding = share_finding(
        "schema_outliers",
        found,
        len(corpus.rows),
        0.01,
        f"have a target without the keys of most, {', '.join(sorted(usual)) or 'none'}",
        "Bring these targets into the form of the others, or leave the rows out.",
    )
    return (
        finding.with_verdict("warn") if finding.evidence.verdict == "fail" and count * 2 < counts.total() else finding
    )


def schema_of(exchange: Exchange) -> frozenset[str] | None:
    """The keys of a JSON object; None if the target is none."""
    return frozenset(exchange.value) if isinstance(exchange.value, dict) else None


def describe_schema(schema: frozenset[str] | None, usual: frozenset[str]) -> str:
    if schema is None:
        return "no JSON object"
    missing, further = sorted(usual - schema), sorted(schema - usual)
    return "; ".join(f"{what} {', '.join(keys)}" for what, keys in (("without", missing), ("with", further)) if keys)
