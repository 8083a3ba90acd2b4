"""What a template is given in training reaches the model when it is served: tools, calls, thoughts, the date.

One run whose template reads the clock, opens a thought unless it is told otherwise, and writes tools and calls. Its
certificate holds the proof: every engine sent the ids that were trained.
"""

import json
import subprocess
from pathlib import Path

import pytest

from conftest import RUN_ENVIRONMENT, TINY_RECIPE, run_command
from tiny_rows import tiny_rows
from tunewright.artifacts import read_json, write_json, write_text

TEMPLATE = (
    "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') }}"
    "{% if tools %}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>\n' }}{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call>' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>' }}{% endif %}{% endif %}"
)
PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOLS = [{"type": "function", "function": {"name": "count", "description": "It counts.", "parameters": PARAMETERS}}]


def with_call(row: dict, number: int) -> dict:  # type: ignore[type-arg]
    """The row, answered after a call of a tool, or by one."""
    question, answer = row["messages"][-2:]
    function = {"name": "count", "arguments": json.dumps({"n": number})}
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "id": "c1", "function": function}],
    }
    result = {"role": "tool", "content": "one", "tool_call_id": "c1"}
    messages = [question, call, result, answer] if number % 2 else [question, call]
    return {"messages": messages, "tools": TOOLS}


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("calls")
    rows = [with_call(row, number) for number, row in enumerate(tiny_rows())]
    for name, part in (("held_out", rows[:6]), ("rows", rows[6:])):
        write_text(directory / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in part))
    write_text(directory / "calls.jinja", TEMPLATE)
    files = {"data": "rows.jsonl", "eval_data": "held_out.jsonl", "chat_template": "calls.jinja"}
    recipe = {**TINY_RECIPE, **files, "eval_rows": None, "model": str(tiny_base)}
    write_json(directory / "recipe.yaml", recipe)
    found = subprocess.run(
        run_command(directory / "recipe.yaml", directory / "run"),
        capture_output=True,
        text=True,
        check=False,
        env=RUN_ENVIRONMENT,
    )
    assert found.returncode == 0, found.stderr
    return directory / "run"


def test_every_engine_sends_the_prompt_that_was_trained(run: Path) -> None:
    stages = read_json(run / "certificate.json")["stages"]
    evidence = {item["name"]: item for stage in stages for item in stage["evidence"]}
    for artifact in ("adapter", "merged", "q8_0"):
        assert evidence[f"{artifact}_prompt_ids_equal"]["value"] == 1.0
    assert evidence["template_variables"]["value"].endswith('rows with {"enable_thinking": false}')
    assert evidence["served_template_differs"]["value"] == 0


def test_the_canaries_hold_the_tools_that_were_offered(run: Path) -> None:
    canaries = read_json(run / "adapter" / "canaries.json")["canaries"]
    assert all(json.loads(canary["tools"]) == TOOLS for canary in canaries)
    assert {canary["messages"][-1]["role"] for canary in canaries} == {"user", "tool"}


def test_calls_are_evaluated_in_the_templates_own_writing(run: Path) -> None:
    answers = read_json(run / "evaluate" / "results.json")["answers"]
    called = [row["target"] for row in answers if "<tool_call>" in row["target"]]
    assert called
    assert all(json.loads(text[len("<tool_call>") : -len("</tool_call>")]) for text in called)
