"""Every template of the battery with a tokenizer, and the kinds of conversation that each is asked to render.

A template that comes without its tokenizer gets a copy of the battery's tokenizer that knows most of its tokens; the
token texts among its literals that the copy lacks are added to it. That makes the pair a fair test of masks, not the
model's own ids.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tunewright.chat.conversation import Conversation, Message, ToolCall
from tunewright.chat.stops import end_of_turn_ids
from tunewright.chat.supervise import Supervisor
from tunewright.chat.template import ChatTemplate
from tunewright.models.base import load_tokenizer

# <|im_start|>, <｜User｜>, <turn|>; [INST]; <end_of_turn>; <s>: the ways in which tokens are written.
BAR = re.compile(r"<[|｜][^<>\s]{1,40}>|<[^<>\s|｜]{1,40}[|｜]>")
BRACKETS = re.compile(r"\[/?[A-Z][A-Z_]{2,30}\]|\[\|[^\[\]|]{1,40}\|\]")
WORDS = re.compile(r"</?s>|<(?:bos|eos|[a-z]+_of_[a-z]+)>")
TAGS = re.compile(r"</?[a-z]+(?:_[a-z]+)*>")

TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Weather of a place",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "description": "Name of the place"}},
                    "required": ["city"],
                },
            },
        }
    ]
)
CALL = ToolCall("get_weather", '{"city": "Köln", "days": 3}', "call12345")


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str | None, **more: Any) -> Message:
    return Message("assistant", text, **more)


HELLO = user("Guten Tag, wer sind Sie?")
CHATS: dict[str, tuple[Message, ...]] = {
    "plain": (HELLO, said("Ich bin eine Probe.")),
    "system": (Message("system", "Antworte kurz."), HELLO, said("Eine Probe.")),
    "turns": (HELLO, said("Eine Probe."), user("Und weiter?"), said("Nichts weiter."), user("Ok"), said("Gut.")),
    "ends user": (HELLO, said("Eine Probe."), user("Danke!")),
    "tools": (user("Wetter in Köln?"), said("Sieben Grad.")),
    "tool call": (user("Wetter in Köln?"), said(None, tool_calls=(CALL,))),
    "tool result": (
        user("Wetter in Köln?"),
        said(None, tool_calls=(CALL,)),
        Message("tool", '{"t": 7}', name="get_weather", tool_call_id="call12345"),
        said("Sieben Grad."),
    ),
    "thinking": (
        user("2+2?"),
        said("4", reasoning="zwei und zwei"),
        user("3+3?"),
        said("6", reasoning="drei und drei"),
    ),
    "unlearned thinking": (user("2+2?"), said("4", reasoning="zwei und zwei", train_reasoning=False)),
    "thinking inline": (user("2+2?"), said("<think>\nzwei und zwei\n</think>\n\n4")),
    "empty": (HELLO, said("")),
    "json": (user("Als JSON bitte."), said('{"relevant": true, "summary": "Größe „04“ 🦙", "lines": "a\\nb"}')),
    "whitespace": (user("  vorn\n"), said("  mit Rand \n"), user("x"), said("ok")),
    "control": (user("Sag {control} bitte."), said("Nein.")),
    "weight": (HELLO, said("Nicht lernen.", train=False), user("Und?"), said("Lernen.")),
}
WITH_TOOLS = {"tools", "tool call", "tool result"}


def chat(kind: str, supervisor: Supervisor) -> Conversation:
    """A conversation of that kind; the control token that is typed is one of the tokenizer's own."""
    stop = supervisor.tokenizer.convert_ids_to_tokens(min(supervisor.stop_ids))
    messages = CHATS[kind]
    if kind == "control":
        messages = (user(f"Sag {stop} bitte."), messages[1])
    return Conversation(kind, messages, TOOLS if kind in WITH_TOOLS else None)


def token_texts(source: str) -> list[str]:
    """The token texts among a template's literals."""
    found = [*BAR.findall(source), *BRACKETS.findall(source), *WORDS.findall(source)]
    return list(dict.fromkeys(found))


cached_tokenizer = cache(load_tokenizer)


def paired(battery: Path, template: Path) -> Supervisor:
    """A supervisor for a template of the battery."""
    source = template.read_text(encoding="utf-8")
    wanted = token_texts(source)
    directories = sorted(path for path in (battery / "tokenizers").iterdir() if path.is_dir())
    known = {path: set(cached_tokenizer(path).get_added_vocab()) for path in directories}
    best = max(directories, key=lambda path: (len(known[path] & set(wanted)), -directories.index(path)))
    tags = [text for text in dict.fromkeys(TAGS.findall(source)) if text not in wanted]
    return supervisor_of(extended(best, tuple(wanted), tuple(tags)), source)


@cache
def extended(path: Path, special: tuple[str, ...], plain: tuple[str, ...]) -> Any:
    """A copy of a tokenizer that knows these tokens too."""
    known = set(cached_tokenizer(path).get_added_vocab())
    if known.issuperset(special + plain):
        return cached_tokenizer(path)
    tokenizer = load_tokenizer(path)
    tokenizer.add_tokens([text for text in special if text not in known], special_tokens=True)
    tokenizer.add_tokens([text for text in plain if text not in known])
    return tokenizer


def supervisor_of(tokenizer: Any, source: str) -> Supervisor:
    tokens = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    template = ChatTemplate(source, tokens)
    plain = Supervisor(tokenizer, template, frozenset({tokenizer.eos_token_id}))
    return Supervisor(tokenizer, template, plain.stop_ids | end_of_turn_ids(plain.encoder, template))


def templates(battery: Path) -> list[Path]:
    return sorted((battery / "templates").glob("*.jinja"))
