"""Counts over rendered conversations: how long they are, what a limit cuts, what became of them.

Tallies of blocks are merged in the order of the rows, and then say the same as one over all rows.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from tunewright.chat.conversation import Conversation
from tunewright.chat.proof import Proof
from tunewright.chat.supervise import SupervisedRow
from tunewright.chat.variables import Variables
from tunewright.render.outcomes import Outcome

EXAMPLES_KEPT = 20
WIDE_SYSTEM_PROMPT = 0.5
MESSAGE_NUMBER = re.compile(r"message \d+")

Longest = tuple[int, str]


@dataclass
class Tally:
    """Counts over conversations, in the order of the rows.

    Attributes:
        tokens, supervised: of every proven row, before anything is cut.
        over: conversations with a row longer than the limit; `over_tokens`, `over_supervised`: what lies beyond it.
        longest: tokens and name of the longest proven row, cut or not.
        rows, rows_tokens, rows_supervised: what is trained on; `rows_longest`: tokens of the longest.
        rejected: conversations left out, by kind.
        truncated: conversations that were cut; `lost_tokens`: how much of them.
        system_prompts: proven conversations that have one; `widest_system_prompt`: tokens of the largest, and where.
        wide: conversations whose system prompt takes more than half of the limit.
        settings: proven rows by what the template was told beside the messages.
        notes: proven rows by what their proof says of the template, message numbers aside.
        over_rows, wide_rows: the first of them; `reasons`: the first conversations left out, by kind, with the reason.
    """

    tokens: int = 0
    supervised: int = 0
    over: int = 0
    over_tokens: int = 0
    over_supervised: int = 0
    longest: Longest = (0, "")
    rows: int = 0
    rows_tokens: int = 0
    rows_supervised: int = 0
    rows_longest: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    lost_tokens: int = 0
    system_prompts: int = 0
    widest_system_prompt: Longest = (0, "")
    wide: int = 0
    settings: Counter[Variables] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    over_rows: list[str] = field(default_factory=list)
    wide_rows: list[str] = field(default_factory=list)
    reasons: dict[str, list[str]] = field(default_factory=dict)

    def measure(self, conversation: Conversation, rows: Sequence[SupervisedRow], limit: int) -> None:
        """Count the proven rows of a conversation as they are before anything is cut."""
        is_over = False
        for row in rows:
            self.tokens += len(row.ids)
            self.supervised += int(np.count_nonzero(row.mask))
            self.longest = longer(self.longest, (len(row.ids), row.id))
            self._count_proof(row.proof)
            if len(row.ids) > limit:
                is_over = True
                self.over_tokens += len(row.ids) - limit
                self.over_supervised += int(np.count_nonzero(row.mask[limit:]))
        if is_over:
            self.over += 1
            self.over_rows = [*self.over_rows, conversation.id][:EXAMPLES_KEPT]
        if conversation.system is not None and rows[0].places is not None:
            self._measure_system_prompt(conversation.id, rows[0].places.tokens_of(0), limit)

    def _count_proof(self, proof: Proof | None) -> None:
        if proof is not None:
            self.settings[proof.variables] += 1
            self.notes.update({MESSAGE_NUMBER.sub("a message", note) for note in proof.notes})

    def _measure_system_prompt(self, name: str, tokens: int, limit: int) -> None:
        self.system_prompts += 1
        self.widest_system_prompt = longer(self.widest_system_prompt, (tokens, name))
        if tokens > WIDE_SYSTEM_PROMPT * limit:
            self.wide += 1
            self.wide_rows = [*self.wide_rows, name][:EXAMPLES_KEPT]

    def add(self, outcome: Outcome, rows: Sequence[SupervisedRow]) -> None:
        """Count what became of a conversation, and the rows of it that are trained on."""
        self.rows += len(rows)
        self.rows_tokens += outcome.tokens
        self.rows_supervised += outcome.supervised
        self.rows_longest = max(self.rows_longest, *(len(row.ids) for row in rows), 0)
        if outcome.rejected:
            self.rejected[outcome.kind] += 1
            self._keep_reasons({outcome.kind: [f"{outcome.conversation}: {outcome.reason}"]})
        elif outcome.lost:
            self.truncated += 1
            self.lost_tokens += outcome.lost_tokens

    def _keep_reasons(self, later: dict[str, list[str]]) -> None:
        for kind, reasons in later.items():
            self.reasons[kind] = (self.reasons.get(kind, []) + reasons)[:EXAMPLES_KEPT]

    def merge(self, later: "Tally") -> None:
        """Take in the counts of conversations that follow."""
        self._keep_reasons(later.reasons)
        for name in ("rejected", "settings", "notes"):
            getattr(self, name).update(getattr(later, name))
        self.rows_longest = max(self.rows_longest, later.rows_longest)
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in ("longest", "widest_system_prompt"):
            setattr(self, name, longer(getattr(self, name), getattr(later, name)))
        for name in ("over_rows", "wide_rows"):
            setattr(self, name, (getattr(self, name) + getattr(later, name))[:EXAMPLES_KEPT])


SUMS = [item.name for item in fields(Tally) if item.type is int and item.name != "rows_longest"]


def longer(first: Longest, later: Longest) -> Longest:
    return later if later[0] > first[0] else first
