"""A served model that is not what was trained fails `verify --endpoint`, and the cause is named; on llama.cpp."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from damage_scene import base_of
from served_models import NAME, Body, changing, llama_cpp, weights_of, write_with_weights
from tiny_model import CHAT_TEMPLATE
from tiny_rows import THINGS
from tunewright.artifacts import RunDirectory, read_json, record_of_file, write_json
from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.endpoints import verify_endpoint
from tunewright.engines.canaries import record_canaries
from tunewright.engines.hf import open_hf_engine
from tunewright.events import Events
from tunewright.evidence import Evidence, as_verdict

SYSTEM = "You are a careful clerk who answers with one word and nothing else."


@dataclass(frozen=True)
class Scene:
    """A finished run, and files that a server may serve in the place of its GGUF."""

    run: Path
    gguf: Path
    base: Path
    other: Path

    def verify(self, url: str) -> list[Evidence]:
        return verify_endpoint(self.run, url, NAME, "openai", None, Events())


@pytest.fixture(scope="module")
def scene(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    directory = tmp_path_factory.mktemp("served")
    gguf, merged = finished_run / "export/model-q8_0.gguf", finished_run / "merged"
    tuned, base = weights_of(merged), weights_of(base_of(finished_run))
    opposite = {name: base[name] - 4 * (tuned[name] - base[name]) for name in base}
    return Scene(
        finished_run,
        gguf,
        write_with_weights(gguf, merged, base, directory / "base.gguf"),
        write_with_weights(gguf, merged, opposite, directory / "other.gguf"),
    )


Serving = Callable[[Scene], AbstractContextManager[str]]


def the_base(scene: Scene) -> AbstractContextManager[str]:
    return llama_cpp(scene.base)


def another_adapter(scene: Scene) -> AbstractContextManager[str]:
    return llama_cpp(scene.other)


def bos_doubled(scene: Scene) -> AbstractContextManager[str]:
    return llama_cpp(scene.gguf, chat_template="{{ '<|im_start|>' }}" + CHAT_TEMPLATE)


def template_with_one_space_more(scene: Scene) -> AbstractContextManager[str]:
    return llama_cpp(scene.gguf, chat_template=CHAT_TEMPLATE.replace("['role'] + '\n'", "['role'] + ' \n'"))


@contextmanager
def behind(scene: Scene, change: Callable[[Body], object]) -> Iterator[str]:
    with llama_cpp(scene.gguf) as url, changing(url, change) as changed:
        yield changed


def temperature_forced(scene: Scene) -> AbstractContextManager[str]:
    return behind(scene, lambda body: body.update(temperature=3.0))


def penalty_forced(scene: Scene) -> AbstractContextManager[str]:
    return behind(scene, lambda body: body.update(repeat_penalty=3.0))


def system_prompt_dropped(scene: Scene) -> AbstractContextManager[str]:
    def drop(body: Body) -> None:
        body["messages"] = [message for message in body["messages"] if message["role"] != "system"]

    return behind(scene, drop)


CASES: list[tuple[Serving, str]] = [
    (the_base, "the endpoint serves the base"),
    (another_adapter, "the endpoint serves another adapter or another model"),
    (bos_doubled, "the BOS <|im_start|> is doubled"),
    (template_with_one_space_more, "another chat template, or another tokenizer"),
    (temperature_forced, "The server forces a temperature"),
    (penalty_forced, "sampling settings change the answers"),
    (system_prompt_dropped, "the system prompt is dropped"),
]


@pytest.mark.parametrize(("serving", "cause"), CASES, ids=[case[0].__name__ for case in CASES])
def test_verify_names_the_cause_of(scene: Scene, serving: Serving, cause: str) -> None:
    with serving(scene) as url:
        found = as_verdict(scene.verify(url))
    assert found["verdict"] == "fail"
    assert cause in found["cause"]


def test_the_runs_own_gguf_passes_with_its_probabilities_compared(scene: Scene) -> None:
    with llama_cpp(scene.gguf) as url:
        evidence = {item.name: item for item in scene.verify(url)}
    assert [item.name for item in evidence.values() if item.verdict == "fail"] == []
    kl = evidence["endpoint_mean_kl"].value
    assert isinstance(kl, float)
    assert kl < 0.01


def test_without_probabilities_text_and_counts_are_compared_and_that_is_said(scene: Scene) -> None:
    with behind(scene, lambda body: body.pop("logprobs", None)) as url:
        evidence = {item.name: item for item in scene.verify(url)}
    assert [item.name for item in evidence.values() if item.verdict == "fail"] == []
    assert evidence["endpoint_mean_kl"].value == "not offered"


def with_long_canaries(scene: Scene, run: Path) -> Path:
    """The run with canaries of which some have long prompts, as if it had been trained on such rows."""
    shutil.copytree(scene.run, run)
    engine = open_hf_engine(run / "merged", "merged")
    texts = {"short": "Where is the bell?", "long": f"Which of these is here: {', '.join(THINGS)}?"}
    prompts = {name: Prompt((Message("system", SYSTEM), Message("user", text))) for name, text in texts.items()}
    path = run / "adapter/canaries.json"
    recorded = [canary.as_json() for canary in record_canaries(engine, prompts, 8)]
    write_json(path, {**read_json(path), "canaries": recorded})
    manifest = read_json(RunDirectory(run).manifest_path("train"))
    record = record_of_file(path)
    manifest["files"]["adapter/canaries.json"] = {"bytes": record.bytes, "sha256": record.sha256}
    write_json(RunDirectory(run).manifest_path("train"), manifest)
    return run


def test_a_context_that_was_cut_is_named(scene: Scene, tmp_path: Path) -> None:
    run = with_long_canaries(scene, tmp_path / "run")
    with llama_cpp(scene.gguf, n_ctx=256) as url:
        found = as_verdict(verify_endpoint(run, url, NAME, "openai", None, Events()))
    assert "It refuses 1 of 2 recorded prompts" in found["cause"]
    assert "its context is cut short" in found["cause"]
