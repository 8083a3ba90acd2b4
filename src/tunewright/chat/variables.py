"""What a template can be told beside the messages that changes how its prompt opens the answer.

Some templates open a block in the prompt, or close one, which the training text then has to have too; a variable
decides it. In: a template. Out: the settings to try, in a fixed order: nothing first, then each such variable by name,
false before true. Serving has to use the setting that a row was proven with.
"""

import re
from typing import Any

from jinja2 import Environment, TemplateError, meta

from tunewright.chat.conversation import Message
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError

Variables = tuple[tuple[str, Any], ...]

# What every chat template is given (https://huggingface.co/docs/transformers/chat_templating_writing).
GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
GENERATION_BLOCK = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
MOST_VARIABLES = 16
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
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
    source = GENERATION_BLOCK.sub(r"{%\1 if true \2%}{%\1 endif \2%}", template.source)
    try:
        names = meta.find_undeclared_variables(environment.parse(source))
    except (TemplateError, RecursionError):
        return []
    given = GIVEN | template.special_tokens.keys() | environment.globals.keys()
    return sorted(names - given)[:MOST_VARIABLES]
