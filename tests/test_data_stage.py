import json
import os
from pathlib import Path

import pytest

from data_rows import good_pairs, run_data, write_rows
from tunewright.artifacts import RunDirectory
from tunewright.chat.files import read_conversations
from tunewright.data import stage
from tunewright.data.account import account_for
from tunewright.data.read import plan_sources, read_rows
from tunewright.errors import RecipeError, UsageError
from tunewright.events import Event, Events
from tunewright.recipe import DataKeys, read_recipe

ROOT = Path(__file__).parents[1]
MESSY = ROOT / "examples" / "messy"
BATTERY = Path(os.environ.get("TUNEWRIGHT_BATTERY") or ROOT.parent / "shared" / "battery") / "datasets"
needs_battery = pytest.mark.skipif(not BATTERY.is_dir(), reason="the battery of real data sets is not here")


def test_conversations_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    outcome = run_data(tmp_path, [write_rows(tmp_path / "rows.jsonl", good_pairs(10))])
    train = list(read_conversations(tmp_path / "out" / "data" / "train.jsonl"))
    held_out = list(read_conversations(tmp_path / "out" / "data" / "eval.jsonl"))
    assert (len(train), len(held_out)) == (9, 1)
    assert {c.id for c in [*train, *held_out]} == {f"rows.jsonl:{n}" for n in range(1, 11)}
    by_line = {c.id: c for c in [*train, *held_out]}
    assert [m.content for m in by_line["rows.jsonl:1"].messages] == list(good_pairs(1)[0].values())
    audit = json.loads((tmp_path / "out" / "data" / "audit.json").read_text(encoding="utf-8"))
    assert audit["rows"] == {key: outcome.facts[key] for key in audit["rows"]}


def test_the_inputs_change_with_the_files(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", good_pairs(3))
    config = DataKeys(data=[str(path)])
    before = stage.inputs(config)
    assert list(before) == [str(path)]
    write_rows(path, good_pairs(4))
    assert stage.inputs(config) != before
    path.unlink()
    with pytest.raises(UsageError, match="the file does not exist"):
        stage.inputs(config)


def test_progress_counts_the_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", good_pairs(7))
    heard: list[Event] = []
    stage.run(DataKeys(data=[str(path)]), RunDirectory(tmp_path), tmp_path / "out", Events(listeners=(heard.append,)))
    assert [(event["unit"], event["done"], event["total"]) for event in heard][-1] == ("prompts", 7, 7)


def test_a_file_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"r\xe4ume.jsonl")
    run_data(tmp_path, [write_rows(path, good_pairs(8))])
    first = (tmp_path / "out" / "data" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first)["row"] == "r\\udce4ume.jsonl:1"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"system_prompt": "  "}, "system_prompt: found no text"),
        ({"system_prompt_for": "all"}, "system_prompt_for: found 'all' without a system_prompt"),
    ],
)
def test_a_system_prompt_that_makes_no_sense_is_refused(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", good_pairs(3))
    with pytest.raises(RecipeError, match=message):
        run_data(tmp_path, [path], **keys)


def test_ten_thousand_rows_that_differ_in_two_numbers_are_all_kept(tmp_path: Path) -> None:
    text = "The harbour master asks for quiet because the new horn wakes people as far as"
    rows = [{"prompt": f"{text} {n} {n * 7919}", "completion": f'{{"n": {n}}}'} for n in range(10_000)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert run_data(tmp_path, [path]).facts["kept"] == 10_000


def test_the_table_of_the_messy_example_is_true(tmp_path: Path) -> None:
    recipe = read_recipe(MESSY / "recipe.yaml", {})
    outcome = run_data(tmp_path, [Path(name) for name in recipe.data], on_bad_row=recipe.on_bad_row)
    audit = json.loads((tmp_path / "out" / "data" / "audit.json").read_text(encoding="utf-8"))
    became = {}
    for line in outcome.lines("ledger.jsonl"):
        names = [line["reason"].split(":")[0]] if line["reason"] else [repair["what"] for repair in line["repairs"]]
        text = line["fate"] + (f": {', '.join(names)}" if names else "")
        found = {c["name"] for c in audit["checks"] for example in c["examples"] if example["row"] == line["row"]}
        became[line["line"]] = (text, found)
    told = {line: ("kept", set[str]()) for line in became} | dict(read_messy_table())
    assert became == told


def read_messy_table() -> list[tuple[int, tuple[str, set[str]]]]:
    """Line, fate and checks of each row of the README's table."""
    rows = []
    for line in (MESSY / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].isdigit():
            fate, _, found = cells[2].partition("; found by ")
            rows.append((int(cells[0]), (fate, {name.strip("` ") for name in found.split(",") if name})))
    assert len(rows) > 25
    return rows


def formats_and_fates(name: str) -> tuple[dict[str, int], dict[str, int]]:
    """How many rows of a file of the battery have each format, and each fate; the ledger balances."""
    config = DataKeys(data=[str(BATTERY / name)])
    (source,) = plan_sources(config.data, [])
    rows = list(read_rows(source))
    accounts = [account_for(row, config) for row in rows]
    formats: dict[str, int] = {}
    fates: dict[str, int] = {}
    for account in accounts:
        formats[account.format] = formats.get(account.format, 0) + 1
        fates[account.fate] = fates.get(account.fate, 0) + 1
    return formats, fates


@needs_battery
@pytest.mark.parametrize(
    ("name", "formats", "fates"),
    [
        ("banking77/banking_data/test.csv", {"text": 3080}, {"rejected": 3080}),
        ("gsm8k/grade_school_math/data/test.jsonl", {"question_answer": 1319}, {"kept": 1319}),
        ("llamafactory/data/alpaca_en_demo.json", {"alpaca": 999}, {"kept": 999}),
        ("llamafactory/data/dpo_en_demo.json", {"preference": 300}, {"kept": 300}),
        ("llamafactory/data/glaive_toolcall_en_demo.json", {"sharegpt": 300}, {"kept": 300}),
        ("llamafactory/data/identity.json", {"alpaca": 91}, {"kept": 91}),
        ("llamafactory/data/kto_en_demo.json", {"messages": 300}, {"kept": 150, "rejected": 150}),
        ("llamafactory/data/mllm_demo.json", {"messages": 6}, {"rejected": 6}),
        ("llamafactory/data/reason_tool_use_demo_50.jsonl", {"messages": 50}, {"kept": 50}),
        ("llamafactory/data/v1_dpo_demo.jsonl", {"preference": 10}, {"kept": 10}),
        ("llamafactory/data/v1_multimodal_demo.jsonl", {"messages": 24}, {"rejected": 24}),
        ("llamafactory/data/v1_sft_demo.jsonl", {"messages": 500}, {"kept": 500}),
        ("wikinews_de/articles.jsonl", {"text": 998}, {"rejected": 998}),
        ("wild/azure_legacy/training_data.jsonl", {"prompt_completion": 10}, {"kept": 9, "repaired": 1}),
        ("wild/distillanything/data/train.jsonl", {"prompt_response": 97}, {"kept": 97}),
        ("wild/fact_teaching/data/experiments/minimal_pair/train.jsonl", {"prompt_completion": 24}, {"kept": 24}),
        ("wild/notifai/data/functiongemma_test_3level.jsonl", {"messages": 2800}, {"repaired": 2800}),
        ("wild/patient_admission/data/patient_admission.json", {"prompt_response": 234}, {"repaired": 234}),
    ],
)
def test_a_real_file_is_read_as_what_it_is(name: str, formats: dict[str, int], fates: dict[str, int]) -> None:
    assert formats_and_fates(name) == (formats, fates)


@needs_battery
def test_the_faults_of_real_files_are_found(tmp_path: Path) -> None:
    notifai = BATTERY / "wild" / "notifai" / "data"
    train, held_out = notifai / "functiongemma_train.jsonl", notifai / "functiongemma_test_3level.jsonl"
    outcome = run_data(tmp_path, [train], eval_data=[str(held_out)])
    assert outcome.facts["repairs"] == {"role model read as assistant": 8800}
    assert outcome.evidence("duplicate_rows").value == 283
    assert outcome.evidence("leakage").verdict == "fail"
