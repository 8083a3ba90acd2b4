"""What the tests of the render stage share: conversations, a data stage's files made by hand, and the stage itself."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult, read_json, write_json
from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.files import write_conversations
from tunewright.chat.rows import TokenRows
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.recipe import RenderKeys
from tunewright.render import stage

Row = Sequence[Conversation] | Conversation | str  # a text is the reason of a row that the data stage rejected


def conversation(row: str, *turns: tuple[str, str]) -> Conversation:
    return Conversation(row, tuple(Message(role, text) for role, text in turns))  # type: ignore[arg-type]


def asked(row: str, question: str, answer: str, system: str = "Be brief.") -> Conversation:
    return conversation(row, ("system", system), ("user", question), ("assistant", answer))


def write_data(
    run: RunDirectory, train: Sequence[Row], held_out: Sequence[Row] = (), repaired: Sequence[str] = ()
) -> None:
    """The artifacts of a data stage that read these rows, in this order."""
    shutil.rmtree(run.path, ignore_errors=True)
    data, ledger, counts = run / "data", [], {}
    data.mkdir(parents=True)
    for split, rows in (("train", train), ("eval", held_out)):
        kept = [each for row in rows if not isinstance(row, str) for each in as_conversations(row)]
        counts[f"{split}_rows"] = write_conversations(data / f"{split}.jsonl", kept)
        ledger += [ledger_line(row, split, number, repaired) for number, row in enumerate(rows)]
    (data / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger), encoding="utf-8")
    facts = {"rows_in": len(ledger), "shared_system_prompt": None, **counts}
    manifest = {"stage": "data", "fingerprint": "", "files": {}, "evidence": [], "facts": facts}
    write_json(run.manifest_path("data"), manifest)


def as_conversations(row: Sequence[Conversation] | Conversation) -> Sequence[Conversation]:
    return [row] if isinstance(row, Conversation) else row


def ledger_line(row: Row, split: str, number: int, repaired: Sequence[str]) -> dict[str, Any]:
    if isinstance(row, str):
        return {"row": f"bad:{number}", "fate": "rejected", "reason": row, "conversations": 0, "split": None}
    conversations = as_conversations(row)
    name = conversations[0].id
    repairs = [{"what": "mended", "where": ""}] if name in repaired else []
    fate = "repaired" if repairs else "kept"
    return {
        "row": name,
        "fate": fate,
        "reason": None,
        "repairs": repairs,
        "conversations": len(conversations),
        "split": split,
    }


@dataclass
class Outcome:
    """What the stage left behind."""

    result: StageResult
    directory: Path

    @property
    def facts(self) -> dict[str, Any]:
        return self.result.facts

    @property
    def ledger(self) -> list[dict[str, Any]]:
        text = (self.directory / "ledger.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def rows(self) -> TokenRows:
        return TokenRows(self.directory / "train.safetensors")

    def json(self, name: str) -> Any:
        return read_json(self.directory / name)

    def evidence(self, name: str) -> Evidence:
        (item,) = [item for item in self.result.evidence if item.name == name]
        return item

    @property
    def names(self) -> set[str]:
        return {item.name for item in self.result.evidence}


def run_render(run: RunDirectory, base: Path, **keys: Any) -> Outcome:
    out = run.path.with_name(f"{run.path.name}-out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    result = stage.run(RenderKeys(model=str(base), **keys), run, out, Events())
    assert [path.name for path in out.iterdir()] == ["tokens"], "nothing else may be published"
    return Outcome(result, out / "tokens")
