"""The evidence of the render stage: the proofs, the lengths and what a limit cuts, the system prompts' share."""

import json
from dataclasses import dataclass
from typing import Any

from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import clock_line
from tunewright.evidence import Evidence, equal, fact, failed
from tunewright.render.outcomes import NOTHING_LEARNED, UNPROVEN, OnLongRow
from tunewright.render.tally import WIDE_SYSTEM_PROMPT, Tally

EXAMPLES_SHOWN = 3
MEND = {
    "stop": "Raise max_length, or set on_long_row to reject or truncate.",
    "reject": "They were left out (on_long_row: reject).",
    "truncate": "Their ends were cut off (on_long_row: truncate).",
}


@dataclass(frozen=True)
class Limit:
    """How long a row may be: the recipe's `max_length`, or without it the base's context.

    Attributes:
        tokens: the longest row that is trained on whole.
        max_length: what the recipe says.
        context: the longest text that the base can read.
    """

    max_length: int | None
    context: int

    @property
    def tokens(self) -> int:
        return self.max_length or self.context

    @property
    def name(self) -> str:
        return f"max_length = {self.tokens}" if self.max_length else f"the base's context of {self.tokens} tokens"


def check_proof(tally: Tally) -> list[Evidence]:
    unproven = tally.rejected[UNPROVEN]
    detail = (
        "Each row's prompt ids equal the ids that inference sends, and each supervised span is the assistant's own "
        "text with its end-of-turn token."
    )
    if unproven:
        shown = " ".join(tally.reasons[UNPROVEN][:EXAMPLES_SHOWN])
        detail = f"{unproven} rows have no proof and were left out: {shown}"
    noted = [f"{count} rows: {note}." for note, count in tally.notes.most_common(EXAMPLES_SHOWN)]
    learned = f"{tally.rows_supervised} of {tally.rows_tokens} tokens are learned."
    return [
        equal("rows_without_mask_proof", unproven, 0, detail),
        fact("rows_with_mask_proof", tally.rows, " ".join(noted)),
        fact("supervised_token_share", share(tally.rows_supervised, tally.rows_tokens), learned),
    ]


def check_template(template: ChatTemplate, tally: Tally) -> list[Evidence]:
    """What the template was told beside the messages, and whether the served one knows it by itself."""
    evidence = []
    if template.may_read_clock:
        found = f"The template asks for the date and was told {template.today:%d %B %Y}"
        if clock_line(template):
            evidence.append(fact("template_date", str(template.today), f"{found}; the served template says so too."))
        else:
            mend = "It asks in a way that cannot be pinned: served, it will see the date of the day."
            evidence.append(failed("template_date", str(template.today), "pinned", f"{found}. {mend}").softened())
    if set(tally.settings) <= {()}:
        return evidence
    counted = ", ".join(f"{count} rows with {json.dumps(dict(told))}" for told, count in tally.settings.most_common())
    detail = f"Prompts of training and inference agree only under variables of the template: {counted}."
    if len(tally.settings) == 1:
        return [*evidence, fact("template_variables", counted, f"{detail} The served template has them set.")]
    mend = "One served model has one setting: leave out the rows of the others, or strip their reasoning."
    return [*evidence, failed("template_variables", len(tally.settings), "= 1", f"{detail} {mend}").softened()]


def check_lengths(tally: Tally, limit: Limit, on_long_row: OnLongRow) -> list[Evidence]:
    """What the limit cuts, in rows, tokens and learned tokens, and the smallest `max_length` that cuts nothing."""
    longest, name = tally.longest
    least = f"The longest row, {name}, has {longest} tokens: max_length = {longest} cuts nothing."
    if not tally.over:
        return [
            equal("rows_over_max_length", 0, 0, f"No row is longer than {limit.name}."),
            fact("longest_row_tokens", longest, least),
        ]
    supervised = share(tally.over_supervised, tally.supervised)
    lost = f"{tally.over_supervised} of all {tally.supervised} learned tokens lie there."
    examples = ", ".join(tally.over_rows[:EXAMPLES_SHOWN])
    detail = f"{tally.over} rows are longer than {limit.name}, such as {examples}. {MEND[on_long_row]} {least}"
    gate = failed("rows_over_max_length", tally.over, "= 0", detail)
    return [
        gate if on_long_row == "stop" else gate.softened(),
        fact("longest_row_tokens", longest, least),
        fact("tokens_over_max_length", tally.over_tokens, f"Of {tally.tokens} tokens in all, beyond {limit.name}."),
        fact("supervised_share_over_max_length", supervised, lost),
        *check_cuts(tally),
    ]


def check_cuts(tally: Tally) -> list[Evidence]:
    evidence = []
    if tally.truncated:
        detail = f"{tally.lost_tokens} tokens were cut off; tokens/ledger.jsonl says which of which message."
        evidence.append(failed("truncated_rows", tally.truncated, "= 0", detail).softened())
    if empty := tally.rejected[NOTHING_LEARNED]:
        reasons = "; ".join(tally.reasons[NOTHING_LEARNED][:EXAMPLES_SHOWN])
        detail = f"{empty} rows have no learned token left and were left out: {reasons}."
        evidence.append(failed("rows_cut_before_their_answer", empty, "= 0", detail).softened())
    return evidence


def check_system_prompts(tally: Tally, limit: Limit) -> list[Evidence]:
    """How much of a row's room the largest system prompt takes; nothing where there is none."""
    if not tally.system_prompts:
        return []
    tokens, name = tally.widest_system_prompt
    detail = f"The largest system prompt, of {name}, has {tokens} tokens; {limit.name}."
    found = share(tokens, limit.tokens)
    limit_text = f"<= {WIDE_SYSTEM_PROMPT:g}"
    if not tally.wide:
        return [Evidence("system_prompt_share", found, limit_text, "pass", detail)]
    examples = ", ".join(tally.wide_rows[:EXAMPLES_SHOWN])
    detail += f" {tally.wide} rows have more than half of their room taken, such as {examples}."
    return [Evidence("system_prompt_share", found, limit_text, "warn", f"{detail} Shorten it, or raise max_length.")]


def describe_lengths(tally: Tally, limit: Limit) -> dict[str, Any]:
    """The same figures for `tokens/lengths.json`, with up to 20 rows by name."""
    tokens, name = tally.widest_system_prompt
    return {
        "longest": {"row": tally.longest[1], "tokens": tally.longest[0]},
        "over": {
            "rows": tally.over,
            "tokens": tally.over_tokens,
            "supervised_tokens": tally.over_supervised,
            "supervised_share": share(tally.over_supervised, tally.supervised),
            "examples": tally.over_rows,
        },
        "system_prompt": {
            "row": name,
            "tokens": tokens,
            "share": share(tokens, limit.tokens),
            "rows_over_half": tally.wide,
            "examples": tally.wide_rows,
        },
    }


def share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
