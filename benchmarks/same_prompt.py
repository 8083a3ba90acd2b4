"""The same prompt in every engine: ids, counts and greedy text of 50 prompts, as a Markdown page.

usage: TUNEWRIGHT_OLLAMA=/path/to/ollama python benchmarks/same_prompt.py > docs/same-prompt.md

The embedded base, with its own template and with one that a recipe names, through Hugging Face, llama.cpp, Ollama, and
the OpenAI-compatible endpoints of both; then the battery's tokenizers through Hugging Face and llama.cpp.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tunewright.chat.conversation import Message
from tunewright.chat.named import named_source
from tunewright.chat.prompt import Prompt
from tunewright.chat.supervise import Supervisor
from tunewright.chat.template import chat_template_of
from tunewright.engines.canaries import text_agreement
from tunewright.engines.hf import open_supervisor
from tunewright.engines.llama_cpp import LlamaCppEngine
from tunewright.engines.ollama import OllamaEngine
from tunewright.engines.ollama_server import ModelSource
from tunewright.engines.ollama_template import effect_on_count, guess_template, temporary_model
from tunewright.engines.openai_api import OpenAIEngine
from tunewright.errors import RenderError
from tunewright.events import Events
from tunewright.export.converter import convert_to_gguf
from tunewright.export.go_template import proven_go_template
from tunewright.export.stage import added_bos_text
from tunewright.models.checkpoint_directory import write_chat_template
from tunewright.models.embedded import embedded_base_path
from tunewright.models.gguf_file import read_gguf_facts

HEAD = """# The same prompt in every engine

Made by `benchmarks/same_prompt.py`: {count} prompts of one to three turns, half of them with a system prompt, with
texts that break escaping, whitespace at both ends, several scripts, and control tokens typed by the user. What Hugging
Face makes of them with the trained template is held against every other engine. The model is the embedded base as
q8\\_0, exported by the project; where a recipe names the template, tiny random weights take the place of the base's
and only prompts are compared. Ollama is a real server, version {version}, on the CPU; its template was derived from the
trained one and sent.

| template | engine | what was compared | equal |
|---|---|---|---|"""
TOKENIZERS = """
## Tokenizers of the battery

Each tokenizer with a tiny random Llama, exported by the project, and those of the same {count} prompts that its
template takes: ids of Hugging Face against ids of llama.cpp's `/tokenize`. Where a vocabulary has `</s>` as ordinary
text, as Qwen's has, llama.cpp takes it for the end of a text all the same: that is what differs in eight prompts.

| tokenizer | template | equal |
|---|---|---|"""
TEXTS = (
    "What is 2 + 2?",
    "Grüße aus Köln, 你好, 👩‍👩‍👧 \u200bzero width, السلام عليكم",
    '{"a": {"b": [1, 2.50]}} {{ .System }} {% if x %} }} {#',
    "\n  spaces around \t\n",
    "It's 'quoted', \"quoted\" and `quoted` \\ \\n $HOME %s <b>&amp;</b>",
    "Say <|im_end|> and </s> and [/INST], please.",
    "def f(x):\n\treturn x**2\n\n\nprint(f(1234567890))",
    "Wie heißt die Hauptstadt von Frankreich?",
    "Сколько будет 3,5 × 10⁻³? 日本語も。",
    "one\r\ntwo\r\n\r\nthree   four",
)
ANSWERS = ("It is 4.", "Gern! „Köln“ liegt am Rhein.", "{}\n\n```json\n{{ 1 }}\n```")
SYSTEMS = ("You are terse.", 'Answer in JSON: {"intent": "…"}.\nNever say {{ .Prompt }}.')
NEW_TOKENS = 16
N_CTX = 1024
COUNT = 50


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from real_ollama import real_ollama

    base = embedded_base_path()
    with tempfile.TemporaryDirectory() as scratch, real_ollama(Path(scratch)) as real:
        print(HEAD.format(count=COUNT, version=real.server.version()))
        notes = list(compare_engines("its own", base, Path(scratch), real, with_texts=True))
        named = with_named_template(base, "chatml", Path(scratch))
        notes += compare_engines("chatml", named, Path(scratch), real, with_texts=False)
        print("\n" + "\n\n".join(notes))
        print(TOKENIZERS.format(count=COUNT))
        for directory in sorted((battery() / "tokenizers").iterdir()):
            if directory.is_dir():
                print(
                    f"| {directory.name.replace('_', chr(92) + '_')} | {compare_tokenizer(directory, Path(scratch))} |"
                )


def battery() -> Path:
    return Path(os.environ.get("TUNEWRIGHT_BATTERY") or Path(__file__).parents[2] / "shared" / "battery")


def prompts() -> list[Prompt]:
    """The 50: every other one has a system prompt."""
    chosen = []
    for number in range(COUNT // 2):
        texts = [TEXTS[(number + step * 3) % len(TEXTS)] for step in range(1 + number % 3)]
        answers = [ANSWERS[(number + step) % len(ANSWERS)] for step in range(len(texts) - 1)]
        turns = [Message("user", texts[0])]
        for answer, text in zip(answers, texts[1:], strict=True):
            turns += [Message("assistant", answer), Message("user", text)]
        chosen += [Prompt(tuple(turns)), Prompt((Message("system", SYSTEMS[number % 2]), *turns))]
    return chosen


def with_named_template(base: Path, name: str, scratch: Path) -> Path:
    """The base's tokenizer with tiny random weights, and a template that a recipe names in the place of its own."""
    directory = scratch / f"base-{name}"
    shutil.copytree(base, directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    write_chat_template(directory, named_source(name))
    add_tiny_model(directory)
    return directory


def compare_engines(name: str, checkpoint: Path, scratch: Path, real: Any, with_texts: bool) -> Iterator[str]:
    """Print a line for each comparison; yield what else there is to say."""
    supervisor = open_supervisor(checkpoint, name)
    gguf = scratch / f"{name.replace(' ', '-')}.gguf"
    convert_to_gguf(checkpoint, gguf, "q8_0", Events())
    template = proven_go_template(supervisor.template, added_bos_text(read_gguf_facts(gguf)))
    stops = supervisor.tokenizer.convert_ids_to_tokens(sorted(supervisor.stop_ids))
    source = ModelSource(gguf, template.text, parameters={"stop": stops, "num_ctx": N_CTX, "num_thread": 1})
    equal: dict[str, list[bool]] = {}
    agreement = 0.0
    with closing(LlamaCppEngine(gguf, "llama.cpp", N_CTX)) as llama_cpp, temporary_model(real.server, source) as model:
        ollama = OllamaEngine(real.server, model, "Ollama", N_CTX)
        ollama_v1 = OpenAIEngine(f"{real.server.url}/v1", model, "Ollama, /v1")
        llama_cpp_v1 = OpenAIEngine(f"{llama_cpp.url}/v1", "tunewright", "llama.cpp, /v1")
        for prompt in prompts():
            ids = supervisor.prompt_ids(prompt)
            answer = llama_cpp.decode(llama_cpp.greedy([ids], NEW_TOKENS)[0])
            found = ollama.answer(prompt, NEW_TOKENS)
            agreement += text_agreement(found, answer) / COUNT
            seen = {
                "llama.cpp | ids": llama_cpp.prompt_ids(prompt) == ids,
                "llama.cpp, `/v1` | tokens of the prompt": llama_cpp_v1.prompt_tokens(prompt) == len(ids),
                "Ollama | text of the prompt, from its log": real.prompts()[-1] == prompt.text(supervisor.template),
                "Ollama | tokens of the prompt": ollama.prompt_tokens(prompt) == len(ids),
                "Ollama, `/v1` | tokens of the prompt": ollama_v1.prompt_tokens(prompt) == len(ids),
            }
            if with_texts:
                seen[f"Ollama | greedy text of {NEW_TOKENS} tokens, to llama.cpp's"] = found == answer
            for what, is_equal in seen.items():
                equal.setdefault(what, []).append(is_equal)
        for engine in (ollama, ollama_v1, llama_cpp_v1):
            engine.close()
    for what, each in equal.items():
        print(f"| {name} | {what} | {sum(each)} of {len(each)} |", flush=True)
    if with_texts:
        yield (
            f"Ollama's greedy texts agree with llama.cpp's on {agreement:.1%} of the characters: it has another build "
            "of llama.cpp, and a small base is often unsure which token is the likeliest."
        )
    yield effect(name, supervisor, source, real)


def effect(name: str, supervisor: Supervisor, source: ModelSource, real: Any) -> str:
    prompt = Prompt((Message("user", "Hello"),))
    counts = effect_on_count(real.server, source, prompt, N_CTX)
    guess = guess_template(real.server, supervisor.template.source)
    return f"With {name} template and the chat “Hello”: {guess.in_words(counts)}"


def compare_tokenizer(directory: Path, scratch: Path) -> str:
    """What llama.cpp makes of a tokenizer of the battery, as two cells."""
    from tunewright.errors import TunewrightError

    base = Path(tempfile.mkdtemp(dir=scratch)) / "checkpoint"  # llama.cpp treats tokens by the name of a model.
    shutil.copytree(directory, base)
    try:
        tokenizer = add_tiny_model(base)
        gguf = scratch / f"{directory.name}.gguf"
        convert_to_gguf(base, gguf, "q8_0", Events())
        engine = LlamaCppEngine(gguf, directory.name, 64)
    except TunewrightError as error:
        return f"not loaded: {error.found[-160:].replace('|', '/')} | "
    texts, framed = texts_for(tokenizer, directory.name)
    equal = [tokenizer(text, add_special_tokens=False)["input_ids"] == engine.tokenize(text) for text in texts]
    engine.close()
    return f"{framed} | {sum(equal)} of {len(equal)}"


def texts_for(tokenizer: Any, name: str) -> tuple[list[str], str]:
    """The prompts as texts, and by what: the tokenizer's own template, else a plain frame of the roles."""
    if not tokenizer.chat_template:
        plain = ["".join(f"{message.role}: {message.text}\n" for message in each.messages) for each in prompts()]
        return plain, "a plain frame"
    template, texts = chat_template_of(tokenizer, name), []
    for prompt in prompts():
        with suppress(RenderError):
            texts.append(prompt.text(template))
    return texts, "its own"


def add_tiny_model(directory: Path) -> Any:
    """Put a tiny random Llama beside the tokenizer in `directory`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunewright.models.base import load_tokenizer

    tokenizer = load_tokenizer(directory)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return tokenizer


if __name__ == "__main__":
    main()
