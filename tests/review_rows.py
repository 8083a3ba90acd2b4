"""Reviews for tests: made where a service would keep them, without one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.data.read import Source
from tunewright.recipe import DataKeys
from tunewright.web.review.finish import finish
from tunewright.web.review.reviews import Review, Reviews
from tunewright.web.review.rows import Facts, prepare


def chat(number: int, **more: Any) -> dict[str, Any]:
    """A row with a JSON answer, and a number that only its digits hold."""
    asked = {"role": "user", "content": f"Ticket {number}"}
    return {"messages": [asked, {"role": "assistant", "content": f'{{"kind": "bug", "id": {number}}}'}], **more}


def lines_of(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def reviewed(tmp_path: Path, text: str, name: str = "rows.jsonl", **keys: Any) -> Facts:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return prepare(Source(path, name), DataKeys(**keys), {}, tmp_path / ".service" / "reviews")


def review_of(tmp_path: Path, text: str, name: str = "rows.jsonl", **keys: Any) -> Review:
    facts = reviewed(tmp_path, text, name, **keys)
    return Review(tmp_path / ".service" / "reviews" / facts.id)


def written(review: Review, keep_undecided: bool = True) -> list[str]:
    private = review.directory.parents[1]
    found = finish(Reviews(private), review.facts.id, private / "files", keep_undecided)
    *lines, end = Path(found.path).read_text().split("\n")
    assert end == ""
    return lines
