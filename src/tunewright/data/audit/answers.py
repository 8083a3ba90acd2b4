"""What all targets together teach: one answer for everything, a schema and its outliers, languages, how much is new.

In: the columns of a corpus; a row's text is read only where it is shown, or belongs to a sample.
"""

import json
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunewright.data.audit.columns import (
    Corpus,
    Mask,
    distinct,
    labels,
    members,
    offenders,
    smallest_rows,
    where,
)
from tunewright.data.audit.findings import Finding, Offenders, excerpt, finding_of
from tunewright.data.audit.language import LANGUAGES, name_of
from tunewright.data.groups import Groups, group_sizes, pieces
from tunewright.evidence import Evidence, Verdict
from tunewright.recipe import DataKeys

DOMINATING_SHARE = 0.5
SCHEMA_OUTLIERS_SHARE = 0.01
FOLLOWED_SHARE = 0.8
FURTHER_SCHEMA_SHARE = 0.05
SHAPES_READ = 10_000
KEYS_SHOWN = 8
FILLED_SHARE = 0.95
ONE_LANGUAGE_SHARE = 0.9
LANGUAGES_KNOWN_AT_LEAST = 20
LANGUAGE_OUTLIERS_SHARE = 0.01
PROMPTS_READ = 1000
TRANSLATION = re.compile("translat|übersetz|tradu|vertaal|przetłumacz|перев[ео]д|翻译|翻譯|翻訳|번역", re.IGNORECASE)
SAMPLE_ROWS = 2000
SAMPLE_BYTES = 1 << 20
NEW_SHARE = 0.05
DIVERSITY_ROWS = 20


def check_dominating_target(corpus: Corpus, config: DataKeys) -> Finding:
    """One target that is that of more than half of the rows (a warning), or of all."""
    value, count = corpus.most_frequent("target")
    is_over = count > max(1, DOMINATING_SHARE * corpus.size)
    mask = where(corpus.column("target"), lambda targets: targets == value)
    found = offenders(corpus, mask & is_over, lambda row: excerpt(corpus.row(row).target))
    return finding_of(
        "dominating_target",
        Offenders(count if count > 1 else 0, found.examples),
        corpus.size,
        DOMINATING_SHARE,
        "fail" if count == corpus.size else "warn",
        "have one and the same target",
        "The model would learn to say it whatever is asked: even the targets out.",
    )


@dataclass(frozen=True)
class Shape:
    """A shape that JSON targets have, see `rows.shape_text`.

    Attributes:
        first: the first row that has it.
        rows: how many have it.
    """

    first: int
    rows: int
    value: Any


@dataclass(frozen=True)
class Shapes:
    """The shapes of all JSON targets, the most frequent first.

    Attributes:
        groups: of rows with the same shape.
        has_shape: which rows' targets are JSON.
    """

    shapes: Sequence[Shape]
    groups: Groups
    has_shape: Mask

    @property
    def rows(self) -> int:
        return int(np.count_nonzero(self.has_shape))

    def rows_with(self, shapes: Sequence[Shape]) -> Mask:
        chosen = np.zeros(len(self.groups), dtype=np.bool_)
        chosen[[shape.first for shape in shapes]] = True
        return members(self.groups, chosen)


def shapes_of(corpus: Corpus) -> Shapes:
    """At most the 10,000 most frequent shapes."""
    has_shape = where(corpus.column("schema"), lambda shapes: shapes != 0)
    groups = corpus.first_equal("schema")
    counts = group_sizes(groups)
    counts[~has_shape] = 0
    firsts = np.flatnonzero(counts)
    if len(firsts) > SHAPES_READ:
        least = np.partition(counts[firsts], -SHAPES_READ)[-SHAPES_READ]
        firsts = firsts[counts[firsts] >= least][:SHAPES_READ]
    texts = {first: corpus.row(first).schema or "null" for first in firsts.tolist()}
    ordered = sorted(texts, key=lambda first: (-int(counts[first]), texts[first]))
    return Shapes([Shape(first, int(counts[first]), json.loads(texts[first])) for first in ordered], groups, has_shape)


def check_schema_outliers(corpus: Corpus, config: DataKeys) -> Finding:
    """Where most targets are JSON: the targets that are not, or are of another shape than most.

    A shape that one row in twenty has is a further schema of the data, such as that of a second task, and no outlier.
    """
    found = shapes_of(corpus)
    if 2 * found.rows < corpus.size:
        detail = f"{found.rows} of {corpus.size} targets are JSON: there is no schema to hold to."
        return Finding(Evidence("schema_outliers", 0.0, f"<= {SCHEMA_OUTLIERS_SHARE:g}", "pass", detail))
    usual = found.shapes[0].value
    others = {shape.first: said for shape in found.shapes if (said := "; ".join(differences(shape.value, usual)))}
    further = [s for s in found.shapes if s.first in others and s.rows >= max(2, FURTHER_SCHEMA_SHARE * found.rows)]
    follows = found.rows_with([s for s in found.shapes if s.first not in others] + further)
    is_common = np.count_nonzero(follows) >= FOLLOWED_SHARE * corpus.size

    def described(row: int) -> str:
        return others.get(int(found.groups[row]), "a rare shape") if found.has_shape[row] else "no JSON"

    return finding_of(
        "schema_outliers",
        offenders(corpus, ~follows, described),
        corpus.size,
        SCHEMA_OUTLIERS_SHARE,
        "fail" if is_common else "warn",
        f"have a target of another shape than most, which have {named_keys(usual)}"
        + (f", and than {len(further)} further shapes that many have" if further else ""),
        "Bring these targets into the form of the others, or leave the rows out.",
    )


def named_keys(shape: Any) -> str:
    if not isinstance(shape, dict):
        return "a list"
    more = f" and {len(shape) - KEYS_SHOWN} more" if len(shape) > KEYS_SHOWN else ""
    return f"the keys {', '.join(list(shape)[:KEYS_SHOWN])}{more}" if shape else "no keys"


def differences(shape: Any, usual: Any, path: str = "") -> Iterator[str]:
    """How a shape differs from the usual one; a field that is null or empty in one of them does not differ."""
    if isinstance(shape, dict) and isinstance(usual, dict):
        yield from (f"without {path}{key}" for key in usual if key not in shape)
        yield from (f"with {path}{key}" for key in shape if key not in usual)
        for key in usual.keys() & shape.keys():
            yield from differences(shape[key], usual[key], f"{path}{key}.")
    elif isinstance(shape, list) and isinstance(usual, list):
        for item in shape if usual else ():
            unlike = [list(differences(item, other, f"{path.rstrip('.')}[].")) for other in usual]
            yield from min(unlike, key=len)
    elif shape != usual and not {"null", "empty"} & {str(shape), str(usual)}:
        yield f"{path.rstrip('.') or 'it'} is {kind_of(shape)}, elsewhere {kind_of(usual)}"


def kind_of(shape: Any) -> str:
    return "an object" if isinstance(shape, dict) else "a list" if isinstance(shape, list) else str(shape)


def check_empty_fields(corpus: Corpus, config: DataKeys) -> Finding:
    """JSON targets in which a field is null or empty that nearly all others fill.

    A field that more than one row in twenty leaves empty may well be so: it says that there was nothing to say.
    """
    found = shapes_of(corpus)
    filled: dict[str, int] = {}
    empty: dict[str, int] = {}
    for shape in found.shapes:
        for path, is_empty in fields_of(shape.value):
            counts = empty if is_empty else filled
            counts[path] = counts.get(path, 0) + shape.rows
    rare = {path: n for path, n in empty.items() if filled.get(path, 0) >= FILLED_SHARE * (filled.get(path, 0) + n)}
    named = {
        shape.first: [path for path, is_empty in fields_of(shape.value) if is_empty and path in rare]
        for shape in found.shapes
    }
    mask = found.rows_with([shape for shape in found.shapes if named[shape.first]]) & found.has_shape
    rows = offenders(corpus, mask, lambda row: ", ".join(named[int(found.groups[row])]))
    return finding_of(
        "empty_fields",
        Offenders(rows.count, rows.examples, rare),
        corpus.size,
        SCHEMA_OUTLIERS_SHARE,
        "warn",
        "have a JSON target with an empty field that nearly all others fill",
        "Fill these fields, or leave the rows out.",
    )


def fields_of(shape: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """The fields of an object and of the objects in it, by their paths, and whether they are empty."""
    if isinstance(shape, dict):
        for key, value in shape.items():
            yield f"{path}{key}", value in ("null", "empty", [])
            yield from fields_of(value, f"{path}{key}.")


def check_language_outliers(corpus: Corpus, config: DataKeys) -> Finding:
    """Answers in another language than the data, or, where the data has several, than their prompt.

    Only answers whose language is known count, and none that the prompt asks to be in that language; the data are held
    to what nine in ten answers do.
    """
    mask, than = language_outliers(corpus)
    answers = corpus.column("target_language")[:]
    return finding_of(
        "language_outliers",
        offenders(
            corpus,
            without_asked_for(corpus, mask),
            lambda row: f"{name_of(answers[row])}: {excerpt(corpus.row(row).target)}",
        ),
        corpus.size,
        LANGUAGE_OUTLIERS_SHARE,
        "warn",
        f"have an answer in another language than {than}",
        "Answer in the language that will be asked for, or leave the rows out.",
    )


def language_outliers(corpus: Corpus) -> tuple[Mask, str]:
    """The rows whose answer is in another language, and than what."""
    answers, prompts = corpus.column("target_language")[:], corpus.column("prompt_language")[:]
    counts = sum(
        (np.bincount(answers[piece], minlength=len(LANGUAGES)) for piece in pieces(corpus.size)),
        np.zeros(len(LANGUAGES), np.int64),
    )
    counts[0] = 0
    usual, known = int(counts.argmax()), int(counts.sum())
    if known >= LANGUAGES_KNOWN_AT_LEAST and counts[usual] >= ONE_LANGUAGE_SHARE * known:
        return (answers != 0) & (answers != usual), f"the data, which is {name_of(usual)}"
    both = (answers != 0) & (prompts != 0)
    differs: Mask = both & (answers != prompts)
    pairs = int(np.count_nonzero(both))
    if pairs >= LANGUAGES_KNOWN_AT_LEAST and np.count_nonzero(differs) <= (1 - ONE_LANGUAGE_SHARE) * pairs:
        return differs, "their prompt"
    return np.zeros(corpus.size, np.bool_), "the others, though no language is that of most"


def without_asked_for(corpus: Corpus, mask: Mask) -> Mask:
    """The marked rows less those whose prompt names the language or a translation; of more than 1,000 none is read."""
    if np.count_nonzero(mask) > PROMPTS_READ:
        return mask
    rest, answers = mask.copy(), corpus.column("target_language")[:]
    for row in np.flatnonzero(mask).tolist():
        asked = corpus.row(row)
        prompt = f"{asked.system or ''}\n{asked.prompt}"
        is_named = any(name in prompt for name in name_of(answers[row]).split(" or "))
        rest[row] = not is_named and not TRANSLATION.search(prompt)
    return rest


def check_target_diversity(corpus: Corpus, config: DataKeys) -> Finding:
    """How much the targets differ from one another: a bound on what can be learned from them.

    A compressor that has seen all other targets of a seeded sample writes a target in so many bits. The information
    in it is no more than that (Li and Vitányi, An introduction to Kolmogorov complexity, section 2.1), so what training
    can take from it is no more either. The value is this over the bits of its text: the inverse of the compression
    ratio that Shaib et al., Standardizing the measurement of text diversity (2024), recommend.
    """
    sample = target_sample(corpus, config.seed)
    plain, packed = sum(map(len, sample)), packed_bytes(sample)
    share = min(1.0, packed / max(plain, 1))
    kinds = labels(corpus)
    is_poor = share < NEW_SHARE and kinds <= 1 and len(sample) >= DIVERSITY_ROWS
    verdict: Verdict = "warn" if is_poor else "pass"
    detail = (
        f"{distinct(corpus, 'target')} of {corpus.size} targets differ; each says at most "
        f"{8 * packed / max(len(sample), 1):.0f} bits that the others do not, {share:.1%} of its text."
    )
    cause = f" They are {kinds} labels." if kinds > 1 else ""
    mend = " The rest can be known without the prompt: add rows that say something else." if is_poor else ""
    return Finding(
        Evidence("target_diversity", round(share, 4), f">= {NEW_SHARE:g}", verdict, f"{detail}{cause}{mend}")
    )


def target_sample(corpus: Corpus, seed: int) -> list[bytes]:
    """At most 2,000 targets and a megabyte, the same whatever the order of the rows."""
    salt = np.random.default_rng(seed).integers(0, 2**63, dtype=np.uint64)
    sample, size = [], 0
    for row in smallest_rows(corpus.column("messages"), salt, SAMPLE_ROWS):
        sample.append(corpus.row(row).target.encode("utf-8", "surrogatepass"))
        size += len(sample[-1])
        if size > SAMPLE_BYTES:
            break
    return sample


def packed_bytes(sample: Sequence[bytes]) -> int:
    """The size of all of them, packed as one; what the format itself takes is left aside."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    return len(lzma.compress(b"\n".join(sample), format=lzma.FORMAT_RAW, filters=filters))
