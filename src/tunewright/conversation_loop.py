"""`tunewright chat`: lines from the terminal, answers from the tuned model, and the base's beside them if asked for."""

import sys
from collections.abc import Callable

from rich.console import Console

from tunewright.artifacts import RunDirectory
from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.chat.trained import trained_template
from tunewright.engines.interface import Engine
from tunewright.recipe import ModelKeys, read_recipe
from tunewright.serve import new_api_key, start, stream_answer, what_to_serve

ANSWER_TOKENS = 512


def talk(run: RunDirectory, gguf_format: str | None, with_base: bool) -> None:
    """Read messages from stdin until an empty line, answering each in the conversation so far."""
    served = what_to_serve(run, gguf_format)
    api_key = new_api_key()
    server = start(served, 0, api_key)
    base = open_base(run) if with_base else None
    console = Console(stderr=True, highlight=False)
    system = [Message("system", served.system_prompt)] if served.system_prompt else []
    ask = prompt_reader(console)
    messages = list(system)
    while text := ask():
        if text == "/new":
            messages = list(system)
            continue
        messages.append(Message("user", text))
        if base:
            (answer,) = base.greedy([base.prompt_ids(Prompt(tuple(messages)))], ANSWER_TOKENS)
            console.print("[dim]base[/dim]")
            write_line(base.decode(answer))
            console.print("[dim]tuned[/dim]")
        pieces = []
        for piece in stream_answer(server.address, api_key, [message.for_template() for message in messages]):
            pieces.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
        write_line("")
        messages.append(Message("assistant", "".join(pieces)))


def open_base(run: RunDirectory) -> Engine:
    from tunewright.engines.hf import open_hf_engine
    from tunewright.models.base import find_base

    recipe = read_recipe(run / "recipe.yaml", {})
    return open_hf_engine(find_base(recipe.section(ModelKeys)).path, "base", template=trained_template(run))


def prompt_reader(console: Console) -> Callable[[], str]:
    """Reads one message; the prompt is shown only where a person is typing."""
    interactive = sys.stdin.isatty()
    if interactive:
        console.print("[dim]An empty line ends the conversation, /new begins afresh.[/dim]")

    def ask() -> str:
        if interactive:
            console.print("[bold]>[/bold] ", end="")
        return sys.stdin.readline().strip()

    return ask


def write_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
