"""Finished runs and servers: make a run's model in Ollama, and verify that what a server serves is what was trained."""

import re
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

from tunewright.artifacts import RunDirectory
from tunewright.errors import UsageError
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.recipe import ExportKeys, Recipe, VerifyKeys, read_recipe

APIS = ("openai", "ollama")


def verify_endpoint(
    run_path: Path, url: str, model: str | None, api: str, key_variable: str | None, events: Events
) -> list[Evidence]:
    """Evidence on the model that `url` serves under the name `model`, against what the run trained."""
    from tunewright.engines.interface import TextEngine
    from tunewright.engines.ollama import OllamaEngine
    from tunewright.engines.ollama_server import OllamaServer
    from tunewright.engines.openai_api import OpenAIEngine
    from tunewright.verify.endpoint import check_endpoint

    run, recipe = finished(run_path)
    if api not in APIS:
        raise UsageError("--api", f"found {api!r}", expected=" | ".join(APIS))
    if model is None:
        raise UsageError("--model", "it is missing", expected="what the endpoint calls the model")
    engine: TextEngine
    events.stage = "verify"
    with ExitStack() as opened:
        if api == "ollama":
            server = opened.enter_context(closing(OllamaServer(url)))
            engine = OllamaEngine(server, model, f"{model}, Ollama", n_ctx=None)
        else:
            engine = opened.enter_context(
                closing(OpenAIEngine(with_path(url), model, f"{model}, endpoint", key_variable))
            )
        return check_endpoint(recipe.section(VerifyKeys), run, engine, events)


def export_to_ollama(run_path: Path, name: str | None, host: str | None, events: Events) -> list[Evidence]:
    """Make the run's model in a running Ollama, read it back, and ask it the canaries."""
    from tunewright.engines.ollama import OllamaEngine
    from tunewright.engines.ollama_server import OllamaServer
    from tunewright.export.ollama import create_in_ollama
    from tunewright.verify.endpoint import check_endpoint, check_system_prompt_given

    run, recipe = finished(run_path)
    model = name or ollama_name(run.path.resolve().name)
    events.stage = "export"
    server = OllamaServer(host)
    try:
        told, evidence = create_in_ollama(recipe.section(ExportKeys), run, server, model, events)
        engine = OllamaEngine(server, model, f"{model}, Ollama", n_ctx=None)
        config = recipe.section(VerifyKeys)
        evidence += check_endpoint(config, run, engine, events)
        return [*evidence, *check_system_prompt_given(config, run, engine, told.system)]
    finally:
        server.close()


def finished(path: Path) -> tuple[RunDirectory, Recipe]:
    run = RunDirectory(path)
    if not (run / "manifests").is_dir():
        raise UsageError(str(path), "it is no run directory", expected="a directory with manifests/")
    run.require_manifest("train")
    return run, read_recipe(run / "recipe.yaml", {})


def with_path(url: str) -> str:
    """The endpoint's address up to and with `/v1`, which nearly every server has it under."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError("--endpoint", f"found {url!r}", expected="an address such as http://127.0.0.1:8080/v1")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def ollama_name(run_name: str) -> str:
    """A run's name as Ollama takes names."""
    return re.sub(r"[^a-z0-9._-]+", "-", run_name.lower()).strip("-._") or "tunewright"
