"""The masks of single rows, proven again as the render stage proves them, for people to look at."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunewright.artifacts import read_json
from tunewright.chat.conversation import Conversation
from tunewright.chat.rows import TokenRow
from tunewright.errors import RenderError
from tunewright.models.base import find_base
from tunewright.recipe import Recipe, RenderKeys
from tunewright.render.artifacts import segments
from tunewright.render.checks import Limit
from tunewright.render.outcomes import fit
from tunewright.render.work import Job, open_supervisor
from tunewright.report.rows import in_pieces

Pieces = list[dict[str, Any]]


def mask_rows(
    recipe: Recipe, tokens: Path, rows: Sequence[Conversation]
) -> Iterator[tuple[Conversation, tuple[Pieces, str]]]:
    """Each conversation with its token rows in pieces, or with the reason why it has none.

    Args:
        tokens: the directory that the render stage filled.
    """
    config = recipe.section(RenderKeys)
    limit = Limit(config.max_length, read_json(tokens / "lengths.json")["context"]).tokens
    job = Job(find_base(config).path, config.model, limit, config.on_long_row, config.chat_template)
    supervisor = open_supervisor(job)
    template = read_json(tokens / "template.json")
    for row in rows:
        try:
            kept, outcome = fit(row, supervisor.rows(row), limit, config.on_long_row)
        except RenderError as error:
            yield row, ([], f"Left out: {error}")
            continue
        parts = [
            {"id": one.id, "segments": segments(TokenRow(one.ids, one.mask, 0), supervisor.tokenizer)} for one in kept
        ]
        yield row, (in_pieces(parts, template), f"Left out: {outcome.reason}." if outcome.rejected else "")
