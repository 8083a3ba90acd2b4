"""What a template can be told beside the messages that changes how its prompt opens the answer.

Some templates open a block in the prompt, or close one, which the training text then has to have too; a variable
decides it. In: a template. Out: the settings to try, in a fixed order: nothing first, then each such variable by name,
false before true. Serving has to use the setting that a row was proven with.
"""

import re
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes

from tunewright.chat.conversation import Message
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError

Variables = tuple[tuple[str, Any], ...]

# What every chat template is given (https://huggingface.co/docs/transformers/chat_templating_writing).
GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
GENERATION_BLOCK = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
MOST_VARIABLES = 16
PARSER = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
PROBE = (Message("user", "Qzx0xzQ"),)


def settings_of(template: ChatTemplate) -> tuple[Variables, ...]:
    """Every setting of one variable that gives another prompt than the plain one, which comes first."""
    plain = probe(template, ())
    settings: list[Variables] = [()]
    prompts = {plain}
    for name in variables_of(template):
        for value in (False, True):
            variables = ((name, value),)
            prompt = probe(template, variables)
            if prompt not in (None, *prompts):
                prompts.add(prompt)
                settings.append(variables)
    return tuple(settings)


def probe(template: ChatTemplate, variables: Variables) -> str | None:
    """How the prompt ends behind a user's message, with these variables."""
    try:
        text = template.render(PROBE, add_generation_prompt=True, variables=dict(variables))
    except RenderError:
        return None
    return text.partition(PROBE[0].text)[2]


def variables_of(template: ChatTemplate) -> list[str]:
    """Names that the template reads and does not set itself, in order."""
    tree = parsed(template.source)
    if tree is None:
        return []
    given = GIVEN | template.special_tokens.keys() | PARSER.globals.keys()
    return sorted(meta.find_undeclared_variables(tree) - given)[:MOST_VARIABLES]


def parsed(source: str) -> nodes.Template | None:
    """The syntax tree of a chat template, to be looked at; None where it is not valid Jinja."""
    try:
        return PARSER.parse(GENERATION_BLOCK.sub(r"{%\1 if true \2%}{%\1 endif \2%}", source))
    except (TemplateError, RecursionError):
        return None
