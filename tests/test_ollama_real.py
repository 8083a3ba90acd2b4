"""A real Ollama server, where TUNEWRIGHT_OLLAMA names one: it sends what was trained, and says where it would not."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from damage_scene import base_of
from real_ollama import VARIABLE, RealOllama, real_ollama
from served_models import weights_of, write_with_weights
from tiny_model import CHAT_TEMPLATE
from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.chat.template import ChatTemplate
from tunewright.endpoints import export_to_ollama, verify_endpoint
from tunewright.engines.hf import open_supervisor
from tunewright.engines.ollama import OllamaEngine
from tunewright.engines.ollama_server import ModelSource
from tunewright.engines.ollama_template import check_created, effect_on_count, guess_template, temporary_model
from tunewright.engines.openai_api import OpenAIEngine
from tunewright.errors import EngineError
from tunewright.events import Events
from tunewright.evidence import as_verdict
from tunewright.export.go_template import go_template

pytestmark = pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"set {VARIABLE} to an Ollama binary or URL")
N_CTX = 1024
TRIMS = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
HELLO = Message("user", "\n hello {{ .System }} \u3000")
PROMPTS = (
    Prompt((HELLO,)),
    Prompt((Message("system", "be terse "), HELLO)),
    Prompt((HELLO, Message("assistant", " so \t"), Message("user", "and?"), Message("assistant", "no"), HELLO)),
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOllama]:
    with real_ollama(tmp_path_factory.mktemp("ollama")) as running:
        yield running


@pytest.fixture(scope="module")
def gguf(finished_run: Path) -> Path:
    return finished_run / "export" / "model-q8_0.gguf"


def source_of(gguf: Path, template: str) -> ModelSource:
    return ModelSource(gguf, go_template(ChatTemplate(template)), parameters={"stop": ["<|im_end|>"], "num_ctx": N_CTX})


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRIMS])
def test_ollama_sends_what_was_trained(real: RealOllama, gguf: Path, finished_run: Path, template: str) -> None:
    supervisor = open_supervisor(finished_run / "merged", "merged", ChatTemplate(template))
    source = source_of(gguf, template)
    with temporary_model(real.server, source) as model:
        assert [item.verdict for item in check_created(real.server, model, source)] == ["pass"] * 3
        engine = OllamaEngine(real.server, model, "Ollama", N_CTX)
        endpoint = OpenAIEngine(f"{real.server.url}/v1", model, "Ollama, /v1")
        assert engine.counts_cached_tokens
        for prompt in PROMPTS:
            count = len(supervisor.prompt_ids(prompt))
            assert (engine.prompt_tokens(prompt), endpoint.prompt_tokens(prompt)) == (count, count)
            assert real.prompts()[-1:] in ([], [prompt.text(supervisor.template)])
        endpoint.close()
        engine.close()


def test_one_command_makes_the_runs_model_and_verifies_it(real: RealOllama, finished_run: Path) -> None:
    evidence = export_to_ollama(finished_run, "from-a-run", real.server.url, Events())
    assert [item for item in evidence if item.verdict == "fail"] == []
    assert {"ollama_template", "ollama_system", "ollama_parameters"} < {item.name for item in evidence}
    assert evidence[-1].name == "endpoint_gives_system_prompt"
    again = verify_endpoint(finished_run, real.server.url, "from-a-run", "ollama", None, Events())
    by_openai = verify_endpoint(finished_run, real.server.url, "from-a-run", "openai", None, Events())
    real.server.delete("from-a-run")
    assert as_verdict(again)["verdict"] == as_verdict(by_openai)["verdict"] == "pass"


def base_served(run: Path, gguf: Path, scratch: Path) -> ModelSource:
    weights = weights_of(base_of(run))
    return source_of(write_with_weights(gguf, run / "merged", weights, scratch / "base.gguf"), CHAT_TEMPLATE)


def template_with_one_space_more(run: Path, gguf: Path, scratch: Path) -> ModelSource:
    source = source_of(gguf, CHAT_TEMPLATE)
    return replace(source, template=(source.template or "").replace("<|im_start|>user\n", "<|im_start|>user \n"))


def context_cut(run: Path, gguf: Path, scratch: Path) -> ModelSource:
    return replace(source_of(gguf, CHAT_TEMPLATE), parameters={"stop": ["<|im_end|>"], "num_ctx": 64})


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (base_served, "the endpoint serves the base"),
        (template_with_one_space_more, "another chat template"),
        (context_cut, "the context is cut"),
    ],
)
def test_a_model_in_ollama_that_is_not_what_was_trained_is_told(
    real: RealOllama,
    gguf: Path,
    finished_run: Path,
    tmp_path: Path,
    damage: Callable[[Path, Path, Path], ModelSource],
    cause: str,
) -> None:
    with temporary_model(real.server, damage(finished_run, gguf, tmp_path)) as model:
        found = as_verdict(verify_endpoint(finished_run, real.server.url, model, "ollama", None, Events()))
    assert cause in found["cause"]


def test_left_alone_ollama_loses_the_default_system_prompt(real: RealOllama, gguf: Path) -> None:
    sent, guessed = effect_on_count(real.server, source_of(gguf, CHAT_TEMPLATE), Prompt((HELLO,)), N_CTX)
    assert guessed < sent
    guess = guess_template(real.server, CHAT_TEMPLATE)
    assert f"A chat that has {sent} tokens as it was trained would have {guessed}." in guess.in_words((sent, guessed))


def test_a_chat_that_was_not_proven_is_an_error_that_names_it(real: RealOllama, gguf: Path) -> None:
    with temporary_model(real.server, source_of(gguf, CHAT_TEMPLATE)) as model:
        engine = OllamaEngine(real.server, model, "Ollama", N_CTX)
        with pytest.raises(EngineError, match="not trained with a message of another role"):
            engine.answer(Prompt((HELLO, Message("tool", "7"))), 1)
        tools = '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]'
        with pytest.raises(EngineError, match="does not support tools"):
            engine.answer(Prompt((HELLO,), tools=tools), 1)
        engine.close()


def test_ollamas_own_client_makes_of_the_modelfile_what_it_says(real: RealOllama, finished_run: Path) -> None:
    if real.binary is None:
        pytest.skip(f"{VARIABLE} names a server and no binary")
    modelfile = finished_run / "export" / "Modelfile"
    command = [str(real.binary), "create", "from-modelfile", "-f", str(modelfile)]
    subprocess.run(command, env=real.environment, check=True, capture_output=True)
    shown = real.server.show("from-modelfile")
    real.server.delete("from-modelfile")
    assert shown["template"] == go_template(ChatTemplate(CHAT_TEMPLATE))
    assert f'SYSTEM """{shown["system"]}"""' in modelfile.read_text(encoding="utf-8")


def test_a_model_that_is_not_there_is_told(real: RealOllama) -> None:
    with pytest.raises(EngineError, match="model 'nothing' not found"):
        real.server.show("nothing")
