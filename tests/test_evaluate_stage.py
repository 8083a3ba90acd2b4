import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_model import CHAT_TEMPLATE, write_tiny_base
from tunewright.artifacts import RunDirectory, StageResult, read_json, write_json
from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.files import write_conversations
from tunewright.chat.prompt import Prompt
from tunewright.chat.rows import TokenRow, write_rows
from tunewright.chat.supervise import SupervisedRow
from tunewright.engines.interface import TopLogprobs
from tunewright.errors import EngineError
from tunewright.evaluate import stage
from tunewright.evaluate.answers import AnswerLimits
from tunewright.evaluate.questions import Question
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.models.base import find_base
from tunewright.recipe import EvaluateKeys

STOP = 256
CONTEXT = 2048
INTENTS = ("refund", "login", "delivery", "other")


class ScriptedEngine:
    """Answers each prompt from a table; ids are the UTF-8 bytes of a text, and 256 ends an answer."""

    open_now = 0

    def __init__(self, name: str, answers: dict[str, str]) -> None:
        assert ScriptedEngine.open_now == 0, "two models in memory"
        ScriptedEngine.open_now += 1
        self.name = name
        self.answers = answers

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return list(prompt.messages[-1].text.encode())

    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], top_k: int) -> list[TopLogprobs]:
        raise NotImplementedError

    def greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        texts = [self.answers[bytes(prompt).decode()] for prompt in prompts]
        return [[*text.encode(), STOP][:max_new_tokens] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def close(self) -> None:
        ScriptedEngine.open_now -= 1


def target_of(index: int) -> str:
    return json.dumps({"intent": INTENTS[index % 4], "summary": f"Matter {index} came up on day {index * 3} at noon."})


def conversation(index: int, target: str | None = None) -> Conversation:
    answer = target_of(index) if target is None else target
    messages = (Message("system", "Sort the mail."), Message("user", f"mail {index}"), Message("assistant", answer))
    return Conversation(f"rows.jsonl:{index + 1}", messages)


def questions(rows: list[Conversation]) -> list[Question]:
    return [Question(row.id, Prompt(row.prompt), row.target) for row in rows]


def token_row(row: Conversation) -> SupervisedRow:
    prompt, target = row.prompt[-1].text.encode(), [*row.target.encode(), STOP]
    mask = np.array([False] * len(prompt) + [True] * len(target))
    return SupervisedRow(row.id, np.array([*prompt, *target], np.int32), mask, len(prompt))


def write_run(path: Path, train: list[Conversation], held_out: list[Conversation]) -> RunDirectory:
    for split, rows in (("train", train), ("eval", held_out)):
        (path / "data").mkdir(parents=True, exist_ok=True)
        (path / "tokens").mkdir(exist_ok=True)
        write_conversations(path / "data" / f"{split}.jsonl", rows)
        write_rows(path / "tokens" / f"{split}.safetensors", [token_row(row) for row in rows])
    write_json(path / "tokens" / "index.json", {"eval": [row.id for row in held_out]})
    write_json(path / "tokens" / "lengths.json", {"context": CONTEXT})
    write_json(path / "tokens" / "template.json", {"stop_ids": [STOP]})
    return RunDirectory(path)


TRAIN = [conversation(index) for index in range(100, 140)]
HELD_OUT = [conversation(index) for index in range(20)]
RIGHT = {row.prompt[-1].text: row.target for row in HELD_OUT}
WRONG = dict.fromkeys(RIGHT, "I do not know.")


def evaluate(
    path: Path, held_out: list[Conversation], tables: dict[str, dict[str, str]], max_new_tokens: int = 200
) -> tuple[StageResult, dict[str, Any]]:
    run = write_run(path / "run", TRAIN, held_out)
    engines = {label: partial(ScriptedEngine, label, table) for label, table in tables.items()}
    limits = AnswerLimits(max_new_tokens, frozenset({STOP}), batch_size=3)
    config = EvaluateKeys(max_new_tokens=max_new_tokens)
    result = stage.evaluate(config, run, questions(held_out), limits, 0, engines, path / "out", Events())
    assert ScriptedEngine.open_now == 0
    return result, read_json(path / "out" / "evaluate" / "results.json")


def by_name(result: StageResult) -> dict[str, Evidence]:
    return {item.name: item for item in result.evidence}


def test_tuned_model_that_is_right_beats_a_base_that_is_wrong(tmp_path: Path) -> None:
    result, written = evaluate(tmp_path, HELD_OUT, {"base": WRONG, "merged": RIGHT, "q8_0": RIGHT})
    assert (written["rows"], written["kind"], written["headline"]) == (20, "json", "exact:intent")
    names = ["valid_json", "exact:intent", "f1:summary"]
    assert [metric["name"] for metric in written["metrics"]] == names
    for metric in written["metrics"]:
        assert metric["scores"]["base"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert metric["scores"]["merged"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert metric["difference"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert written["metrics"][1]["values"][0] == {
        "value": "delivery",
        "rows": 5,
        "right": {"base": 0, "merged": 5, "q8_0": 5},
    }
    assert {name: (item.value, item.verdict) for name, item in by_name(result).items()} == {
        "evaluation_rows": (20, "pass"),
        "tuned_valid_json": (1.0, "pass"),
        "tuned_not_worse_than_base": (1.0, "pass"),
        "gguf_agrees_with_merged": (1.0, "pass"),
        "degenerate_answers": (0.0, "pass"),
    }


def test_answers_stand_in_the_order_of_the_rows_with_their_scores(tmp_path: Path) -> None:
    half = {prompt: text if index % 2 else "no" for index, (prompt, text) in enumerate(RIGHT.items())}
    _, written = evaluate(tmp_path, HELD_OUT, {"base": WRONG, "merged": half})
    assert [row["id"] for row in written["answers"]] == [row.id for row in HELD_OUT]
    first, second = written["answers"][:2]
    assert first["prompt"] == "mail 0"
    assert first["target"] == target_of(0)
    assert first["answers"] == {"base": "I do not know.", "merged": "no"}
    assert first["score"] == {"base": 0.0, "merged": 0.0}
    assert second["score"] == {"base": 0.0, "merged": 1.0}


def test_answers_file_has_every_metric_of_every_row(tmp_path: Path) -> None:
    evaluate(tmp_path, HELD_OUT, {"base": WRONG, "merged": RIGHT}, max_new_tokens=10)
    lines = (tmp_path / "out" / "evaluate" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 20
    assert first["messages"] == [
        {"role": "system", "content": "Sort the mail."},
        {"role": "user", "content": "mail 0"},
    ]
    assert first["answers"]["merged"] == target_of(0)[:10]
    assert first["finished"] == {"base": False, "merged": False}
    assert first["metrics"]["merged"] == {"valid_json": 0.0, "exact:intent": 0.0, "f1:summary": 0.0}
    assert first["degenerate"] == {"base": None, "merged": None}


def test_cut_off_answers_are_counted(tmp_path: Path) -> None:
    result, written = evaluate(tmp_path, HELD_OUT, {"base": WRONG, "merged": RIGHT}, max_new_tokens=20)
    assert written["engines"]["base"]["unfinished"] == 0
    assert written["engines"]["merged"]["unfinished"] == 20
    assert by_name(result)["evaluation_rows"].detail == "Answers cut off at 20 tokens: 20 of merged."


def test_tuned_model_worse_than_the_base_fails_the_gate(tmp_path: Path) -> None:
    result, _ = evaluate(tmp_path, HELD_OUT, {"base": RIGHT, "merged": WRONG, "q8_0": WRONG})
    worse = by_name(result)["tuned_not_worse_than_base"]
    assert (worse.value, worse.verdict) == (-1.0, "fail")
    assert worse.detail.startswith("exact:intent: base 100.0 %, merged 0.0 %; difference -100.0 (-100.0 to -100.0)")
    assert by_name(result)["tuned_valid_json"].verdict == "warn"
    assert by_name(result)["gguf_agrees_with_merged"].verdict == "pass"


def test_difference_that_may_be_chance_is_a_warning(tmp_path: Path) -> None:
    prompts = list(RIGHT)
    one_wrong = {**RIGHT, prompts[0]: "no"}
    result, _ = evaluate(tmp_path, HELD_OUT, {"base": one_wrong, "merged": RIGHT})
    assert by_name(result)["tuned_not_worse_than_base"].verdict == "warn"
    assert "gguf_agrees_with_merged" not in by_name(result)


def test_gguf_that_answers_otherwise_is_a_warning(tmp_path: Path) -> None:
    prompts = list(RIGHT)
    other = {**RIGHT, **dict.fromkeys(prompts[:2], "no")}
    result, _ = evaluate(tmp_path, HELD_OUT, {"base": WRONG, "merged": RIGHT, "f16": RIGHT, "q4_k_m": other})
    agreement = by_name(result)["gguf_agrees_with_merged"]
    assert (agreement.value, agreement.verdict) == (0.9, "warn")
    assert "f16: 20 of 20 answers are the same text" in agreement.detail
    assert "q4_k_m: 18 of 20 answers are the same text" in agreement.detail


def test_looping_answers_fail_the_gate_and_are_shown(tmp_path: Path) -> None:
    loops = {**RIGHT, "mail 7": "zertrüten zertrüten zertrüten"}
    result, written = evaluate(tmp_path, HELD_OUT, {"base": loops, "merged": RIGHT, "q8_0": loops})
    loop = by_name(result)["degenerate_answers"]
    assert (loop.value, loop.limit, loop.verdict) == (0.025, "<= 0.02", "fail")
    assert "q8_0, rows.jsonl:8: repeats 'zertrüten' 3 times" in loop.detail
    assert written["engines"]["q8_0"] == {"unfinished": 0, "degenerate": 1}


def test_answer_that_loops_as_its_target_does_is_not_degenerate(tmp_path: Path) -> None:
    rows = [conversation(index, "la " * 20) for index in range(4)]
    right = {row.prompt[-1].text: row.target for row in rows}
    result, _ = evaluate(tmp_path, rows, {"base": right, "merged": right})
    assert by_name(result)["degenerate_answers"].value == 0.0


def test_target_that_is_no_json_enters_no_metric(tmp_path: Path) -> None:
    rows = [*HELD_OUT, conversation(20, "I cannot sort this.")]
    right = {row.prompt[-1].text: row.target for row in rows}
    result, written = evaluate(tmp_path, rows, {"base": right, "merged": right})
    assert written["rows"] == 21
    assert written["metrics"][0]["scores"]["merged"]["value"] == 1.0
    assert written["answers"][20]["score"] == {"base": 1.0, "merged": 1.0}
    assert "1 have a target that is no JSON object" in by_name(result)["evaluation_rows"].detail


def test_engine_that_fails_is_closed(tmp_path: Path) -> None:
    class FailingEngine(ScriptedEngine):
        def greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
            raise EngineError(self.name, "no answer")

    run = write_run(tmp_path, TRAIN, HELD_OUT)
    limits = AnswerLimits(10, frozenset({STOP}), 4)
    engines = {"base": partial(FailingEngine, "base", RIGHT)}
    with pytest.raises(EngineError):
        stage.evaluate(EvaluateKeys(), run, questions(HELD_OUT), limits, 0, engines, tmp_path / "out", Events())
    assert ScriptedEngine.open_now == 0


def test_progress_counts_the_answers_of_all_engines(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    run = write_run(tmp_path, TRAIN, HELD_OUT)
    engines = {label: partial(ScriptedEngine, label, RIGHT) for label in ("base", "merged")}
    limits = AnswerLimits(10, frozenset({STOP}), 7)
    stage.evaluate(
        EvaluateKeys(), run, questions(HELD_OUT), limits, 0, engines, tmp_path / "out", Events(None, (seen.append,))
    )
    assert (seen[-1]["unit"], seen[-1]["done"], seen[-1]["total"]) == ("answers", 40, 40)


@pytest.mark.parametrize(
    ("rows", "config", "detail"),
    [
        ([], EvaluateKeys(), "No row was held out"),
        (HELD_OUT, EvaluateKeys(evaluate_rows=0), "evaluate_rows is 0"),
    ],
)
def test_nothing_to_evaluate_is_a_warning(
    tmp_path: Path, rows: list[Conversation], config: EvaluateKeys, detail: str
) -> None:
    run = write_run(tmp_path / "run", TRAIN, rows)
    result = stage.run(config, run, tmp_path / "out", Events())
    assert [(item.name, item.value, item.verdict) for item in result.evidence] == [("evaluation_rows", 0, "warn")]
    assert detail in result.evidence[0].detail
    written = read_json(tmp_path / "out" / "evaluate" / "results.json")
    assert (written["rows"], written["metrics"], written["answers"]) == (0, [], [])
    assert (tmp_path / "out" / "evaluate" / "answers.jsonl").read_text() == ""


def test_rows_without_a_proven_answer_are_left_out(tmp_path: Path) -> None:
    unlearned = Message("assistant", "never mind", train=False)
    rows = [
        *HELD_OUT,
        Conversation("rows.jsonl:91", (Message("user", "rejected by render"), Message("assistant", "a"))),
        Conversation("rows.jsonl:92", (*HELD_OUT[0].messages, Message("user", "and?"), unlearned)),
    ]
    run = write_run(tmp_path, TRAIN, rows)
    index = [row.id for row in HELD_OUT] + ["somewhere else", "rows.jsonl:92"]
    write_json(tmp_path / "tokens" / "index.json", {"eval": index})
    held_out = stage.HeldOut.read(run)
    assert held_out.rows == HELD_OUT
    assert held_out.left_out == 2


def test_conversation_split_by_turns_is_measured_by_its_last_turn() -> None:
    row = Conversation("r:1", (*HELD_OUT[0].messages, Message("user", "more"), Message("assistant", "yes")))
    first = TokenRow(np.arange(4, dtype=np.int32), np.array([False, False, True, True]), prompt_length=2)
    last = TokenRow(np.arange(9, dtype=np.int32), np.array([False] * 6 + [True] * 3), prompt_length=6)
    cut_off = TokenRow(last.ids[:6], last.mask[:6], prompt_length=6)
    assert stage.answer_tokens(row, {"r:1#2": first, "r:1#4": last}) is last
    assert stage.answer_tokens(row, {"r:1#2": first}) is None
    assert stage.answer_tokens(row, {"r:1#4": cut_off}) is None


def test_rows_are_drawn_by_seed_and_keep_their_order() -> None:
    chosen = stage.choose_rows(HELD_OUT, 5, seed=42)
    positions = [HELD_OUT.index(row) for row in chosen]
    assert len(set(positions)) == 5
    assert positions == sorted(positions)
    assert stage.choose_rows(HELD_OUT, 5, seed=42) == chosen
    assert stage.choose_rows(HELD_OUT, 5, seed=43) != chosen
    assert stage.choose_rows(HELD_OUT, 20, seed=42) == HELD_OUT


@pytest.mark.parametrize(
    ("target_length", "context", "asked", "expected"),
    [(100, CONTEXT, None, 152), (3, CONTEXT, None, 16), (100, 60, None, 54), (100, CONTEXT, 7, 7), (100, 60, 90, 54)],
)
def test_longest_answer_is_one_and_a_half_targets_within_the_context(
    tmp_path: Path, target_length: int, context: int, asked: int | None, expected: int
) -> None:
    rows = [conversation(0, "x" * 3)]
    run = write_run(tmp_path, [conversation(1, "y" * target_length)], rows)
    write_json(tmp_path / "tokens" / "lengths.json", {"context": context})
    held_out = stage.HeldOut.read(run)
    limits = stage.answer_limits(EvaluateKeys(max_new_tokens=asked), run, rows, held_out)
    assert limits == AnswerLimits(expected, frozenset({STOP}), 16)


def test_context_holds_the_longest_prompt_and_answer(tmp_path: Path) -> None:
    run = write_run(tmp_path, TRAIN, HELD_OUT)
    held_out = stage.HeldOut.read(run)
    assert stage.longest_prompt(HELD_OUT, held_out) == len("mail 19")
    assert stage.context_tokens(HELD_OUT, held_out, max_new_tokens=248) == 256
    assert stage.context_tokens(HELD_OUT, held_out, max_new_tokens=249) == 512


def test_exported_files_are_named_by_their_format(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    for name in ("model-q8_0.gguf", "model-f16.gguf", "Modelfile"):
        (tmp_path / "export" / name).touch()
    assert list(RunDirectory(tmp_path).gguf_files) == ["f16", "q8_0"]


def test_real_models_answer_the_held_out_rows(tmp_path: Path) -> None:
    rows = HELD_OUT[:3]
    run = write_run(tmp_path / "run", TRAIN, rows)
    write_tiny_base(run / "merged", seed=1)
    write_json(
        run / "tokens" / "template.json", {"stop_ids": [STOP], "chat_template": CHAT_TEMPLATE, "special_tokens": {}}
    )
    config = EvaluateKeys(model=str(write_tiny_base(tmp_path / "base")), max_new_tokens=5, evaluate_batch_size=2)
    result = stage.run(config, run, tmp_path / "out", Events())
    written = read_json(tmp_path / "out" / "evaluate" / "results.json")
    assert set(written["answers"][0]["answers"]) == {"base", "merged"}
    assert written["answers"][0]["answers"]["base"] != written["answers"][0]["answers"]["merged"]
    assert (written["max_new_tokens"], written["engines"]["merged"]["unfinished"]) == (5, 3)
    assert result.facts["headline"] == "exact:intent"
    assert stage.inputs(config) == {"base": find_base(config).identity}
