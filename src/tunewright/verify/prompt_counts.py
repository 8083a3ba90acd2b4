"""Why does a served prompt have another number of tokens than the trained one? Told from counts alone.

In go the counts of the canaries and an endpoint to ask for more; out comes a sentence. Short chats of one and of two
questions tell what comes once from what comes with each turn, and what is cut from what is other.
"""

from dataclasses import replace

from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.chat.supervise import Supervisor
from tunewright.engines.canaries import Canary
from tunewright.engines.interface import TextEngine
from tunewright.engines.served import count_or_none
from tunewright.errors import RenderError

QUESTION = Message("user", "Hello")
ANSWER = Message("assistant", "Yes")

Counted = list[tuple[Canary, int]]


def explain_counts(engine: TextEngine, supervisor: Supervisor, counted: Counted) -> str:
    """The likeliest reason for counts that differ, with one pair of figures."""
    canary, found = next((canary, count) for canary, count in counted if count != len(canary.prompt_ids))
    figures = f"A prompt of {len(canary.prompt_ids)} tokens arrives with {found}"
    if all(count == expected_without_system(supervisor, canary) for canary, count in counted):
        return f"{figures}, as many as without its system message: the system prompt is dropped."
    short, long = (difference(engine, supervisor, chat) for chat in short_chats(canary))
    differences = [count - len(canary.prompt_ids) for canary, count in counted]
    if short == 0 and max(differences) <= 0:
        return f"{figures}, while a short one arrives whole: the context is cut to {max(c for _, c in counted)} tokens."
    if short is not None and short == long and set(differences) == {short}:
        return f"{figures}, and so has every other {short:+d}, however many turns: {of_once(supervisor, canary, short)}"
    return f"{figures}; the difference changes with the chat: another chat template, or another tokenizer."


def of_once(supervisor: Supervisor, canary: Canary, difference: int) -> str:
    """What can be the same in every prompt."""
    bos = supervisor.tokenizer.bos_token
    if difference != 1 or not bos:
        return "another chat template."
    has_bos = canary.prompt_ids[0] == supervisor.tokenizer.bos_token_id
    before = f"the BOS {bos} is doubled" if has_bos else f"a BOS {bos} that was not trained is put before it"
    return f"{before}, or the chat template has one token more."


def expected_without_system(supervisor: Supervisor, canary: Canary) -> int | None:
    rest = tuple(message for message in canary.prompt.messages if message.role != "system")
    return None if rest == canary.prompt.messages else expected(supervisor, replace(canary.prompt, messages=rest))


def short_chats(canary: Canary) -> tuple[Prompt, Prompt]:
    """A chat of one question and one of two."""
    return (
        replace(canary.prompt, messages=(QUESTION,), tools=None),
        replace(canary.prompt, messages=(QUESTION, ANSWER, QUESTION), tools=None),
    )


def difference(engine: TextEngine, supervisor: Supervisor, prompt: Prompt) -> int | None:
    """How many tokens more a prompt has than it should; None where either side refuses it."""
    wanted, found = expected(supervisor, prompt), count_or_none(engine, prompt)
    return None if wanted is None or found is None else found - wanted


def expected(supervisor: Supervisor, prompt: Prompt) -> int | None:
    try:
        return len(supervisor.prompt_ids(prompt))
    except RenderError:
        return None
