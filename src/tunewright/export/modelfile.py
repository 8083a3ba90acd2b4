"""The Modelfile that makes an Ollama model of a GGUF, with everything said that Ollama would otherwise guess.

In go the GGUF's name, the Go template, the system prompt, stop tokens, context and temperature; out comes the text, or
the same as a request to a server.
Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.engines.ollama_server import ModelSource
from tunewright.errors import ExportError

CONTEXT_STEP = 512
LEAST_CONTEXT = 2048
ANSWER_TOKENS = 256


@dataclass(frozen=True)
class OllamaModel:
    """What the Modelfile says.

    Attributes:
        gguf_name: the file beside the Modelfile.
        template: the Go template.
        system: the system prompt, or None.
        stop_tokens: texts at which generation ends.
        num_ctx: context in tokens.
    """

    gguf_name: str
    template: str
    system: str | None
    stop_tokens: list[str]
    num_ctx: int
    temperature: float

    def as_text(self) -> str:
        lines = [f"FROM ./{self.gguf_name}", f"TEMPLATE {quoted(self.template, 'TEMPLATE')}"]
        if self.system:
            lines.append(f"SYSTEM {quoted(self.system, 'SYSTEM')}")
        lines += [f"PARAMETER stop {quoted(token, 'PARAMETER stop')}" for token in self.stop_tokens]
        lines += [f"PARAMETER {name} {value:.12g}" for name, value in self.numbers.items()]
        return "\n".join(lines) + "\n"

    def as_source(self, directory: Path) -> ModelSource:
        """The same model for `OllamaServer.create`, its GGUF in `directory`."""
        parameters: dict[str, Any] = {"stop": self.stop_tokens, **self.numbers}
        return ModelSource(directory / self.gguf_name, self.template, self.system, parameters)

    @property
    def numbers(self) -> dict[str, float]:
        # Ollama's default penalty of 1.1 changes even greedy answers; nothing was trained or evaluated with it.
        return {"num_ctx": self.num_ctx, "temperature": self.temperature, "repeat_penalty": 1}


def quoted(text: str, where: str) -> str:
    """`text` in triple quotes, inside which a Modelfile knows no escapes.

    Raises:
        ExportError: the text itself contains triple quotes.
    """
    if '"""' in text:
        raise ExportError(
            f"Modelfile: {where}",
            'the text contains """, which a Modelfile cannot hold',
            mend="Change the text, or serve the GGUF with `tunewright serve`.",
        )
    return f'"""{text}"""'


def planned_context(num_ctx: int | None, longest_row_tokens: int, context_length: int) -> int:
    """The context in tokens: as asked for, else room for the longest row and an answer, within what the model can.

    Returns:
        `num_ctx`, else the next multiple of 512 above `longest_row_tokens + 256` and at least 2048; never more than
        `context_length`.
    """
    wanted = num_ctx or max(LEAST_CONTEXT, ((longest_row_tokens + ANSWER_TOKENS) // CONTEXT_STEP + 1) * CONTEXT_STEP)
    return min(wanted, context_length)


def served_system_prompt(recipe_prompt: str | None, template_facts: dict[str, Any]) -> str | None:
    """The system prompt to serve with: the recipe's, else the one that all rows share, else the template's own."""
    return recipe_prompt or template_facts["shared_system_prompt"] or template_facts["default_system_prompt"]
