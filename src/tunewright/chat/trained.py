"""The template that a run trains with and serves: the base's own, with everything pinned that it was told in training.

A template may read the clock, or a variable that the messages do not hold. Whoever serves the model would tell it
something else, or nothing. So what every row was proven with is written in front of the template, and the artifacts
carry it: the prompt that was trained needs nothing but messages and tools. A template that is told nothing stays as it
is, byte for byte.

In: a template and the settings of its rows, as the render stage counts them. On disk: `tokens/template.json`.
"""

import json
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, time
from typing import Any

from jinja2 import nodes

from tunewright.artifacts import RunDirectory, read_json
from tunewright.chat.template import ChatTemplate
from tunewright.chat.variables import Variables, parsed

CLOCK = "strftime_now"


def pinned(template: ChatTemplate, settings: Collection[Variables]) -> ChatTemplate:
    """`template` with the date that it was told, and with the variables if all `settings` are the same."""
    lines = [clock_line(template)] if template.may_read_clock else []
    if len(settings) == 1:
        (setting,) = settings
        lines += [f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in setting]
    # A newline behind a block is not written, and what follows it is the begin of a line, as it was.
    prelude = "".join(f"{line}\n" for line in lines if line)
    return replace(template, source=prelude + template.source)


def clock_line(template: ChatTemplate) -> str:
    """A macro in the clock's place; empty where it is not known in which formats the template asks for the date."""
    formats = clock_formats(template)
    if formats is None:
        return ""
    now = datetime.combine(template.today, time.min)
    cases = "".join(
        f"{{%- if format == {json.dumps(each)} -%}}{{{{ {json.dumps(now.strftime(each))} }}}}{{%- endif -%}}"
        for each in formats
    )
    return f"{{%- macro {CLOCK}(format) -%}}{cases}{{%- endmacro %}}"


def clock_formats(template: ChatTemplate) -> list[str] | None:
    """The formats in which the template asks for the date; None where one is not written out."""
    tree = parsed(template.source)
    if tree is None:
        return None
    named = [name for name in tree.find_all(nodes.Name) if name.name == CLOCK]
    calls = [call for call in tree.find_all(nodes.Call) if call.node in named]
    tests = [test for test in tree.find_all(nodes.Test) if test.node in named]
    formats = [argument.value for call in calls for argument in call.args if isinstance(argument, nodes.Const)]
    if len(formats) != len(calls) or len(calls) + len(tests) != len(named):
        return None
    return sorted(set(formats))


def template_as_json(template: ChatTemplate) -> dict[str, Any]:
    return {"chat_template": template.source, "special_tokens": template.special_tokens}


def template_from_json(facts: dict[str, Any]) -> ChatTemplate:
    return ChatTemplate(facts["chat_template"], facts["special_tokens"])


def trained_template(run: RunDirectory) -> ChatTemplate:
    """The template of a run's render stage."""
    return template_from_json(read_json(run / "tokens" / "template.json"))
