"""Engines that show text and counts, against servers that are played: every way in which they fail is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tunewright.chat.conversation import Message, ToolCall
from tunewright.chat.prompt import Prompt
from tunewright.engines.interface import ShownAnswer, ShownToken
from tunewright.engines.ollama import OllamaEngine, request_of
from tunewright.engines.ollama_server import ModelSource, OllamaServer, ollama_url
from tunewright.engines.ollama_template import check_created, guess_template
from tunewright.engines.openai_api import OpenAIEngine
from tunewright.errors import EngineError, EnvironmentLackError

HELLO = Prompt((Message("system", "Be terse."), Message("user", "Hello")))
CALL = ToolCall("weather", '{"city": "Köln"}', "c1")
Handler = Callable[[httpx.Request], httpx.Response]


class FakeOllama:
    """As much of Ollama as is asked for; `requests` is what it was asked."""

    def __init__(self, cache_counts: bool = True) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.blobs: set[str] = set()
        self.models: dict[str, dict[str, Any]] = {}
        self.cache_counts = cache_counts
        self.cached: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        is_blob = path.startswith("/api/blobs/")
        body = None if is_blob or not request.content else json.loads(request.content)
        self.requests.append((request.method, path, body))
        if is_blob:
            return self.blob(request)
        name = path.removeprefix("/api/")
        return httpx.Response(200, text="\n".join(json.dumps(line) for line in getattr(self, f"on_{name}")(body)))

    def blob(self, request: httpx.Request) -> httpx.Response:
        digest = request.url.path.rpartition("/")[2]
        if request.method == "HEAD":
            return httpx.Response(200 if digest in self.blobs else 404)
        self.blobs.add(digest)
        return httpx.Response(201)

    def on_version(self, _: Any) -> list[Any]:
        return [{"version": "0.0.1"}]

    def on_create(self, body: Any) -> list[Any]:
        self.models[body["model"]] = body
        return [{"status": "parsing GGUF"}, {"status": "success"}]

    def on_show(self, body: Any) -> list[Any]:
        made = self.models[body["model"]]
        said = {
            name: value if isinstance(value, list) else [value] for name, value in made.get("parameters", {}).items()
        }
        lines = [f"{name:30} {json.dumps(value)}" for name, values in said.items() for value in values]
        return [
            {
                "template": made.get("template", "{{ .Prompt }}"),
                "system": made.get("system"),
                "parameters": "\n".join(lines),
            }
        ]

    def on_delete(self, body: Any) -> list[Any]:
        del self.models[body["model"]]
        return []

    def on_generate(self, body: Any) -> list[Any]:
        assert body["keep_alive"] == 0
        self.cached.clear()
        return [{"done": True, "done_reason": "unload"}]

    def on_chat(self, body: Any) -> list[Any]:
        text = json.dumps(body["messages"])
        count = len(text) if self.cache_counts or text not in self.cached else None
        self.cached.add(text)
        answer = ["It ", "is ", "4."][: body["options"]["num_predict"]]
        lines: list[Any] = [{"message": {"role": "assistant", "content": piece}, "done": False} for piece in answer]
        last: dict[str, Any] = {"message": {"role": "assistant", "content": ""}, "done": True}
        return [*lines, last if count is None else {**last, "prompt_eval_count": count}]

    def server(self) -> OllamaServer:
        return OllamaServer(transport=httpx.MockTransport(self))


def answering(*lines: Any, status: int = 200) -> OllamaServer:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return OllamaServer(transport=httpx.MockTransport(lambda _: httpx.Response(status, text=text)))


def endpoint(handler: Handler, **more: Any) -> OpenAIEngine:
    return OpenAIEngine("http://host:1/v1", "m", "model, endpoint", transport=httpx.MockTransport(handler), **more)


def completion(content: str | None = "It is 4.", **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, **more}], "usage": {"prompt_tokens": 31}}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("box", "http://box:11434"),
        ("box:9", "http://box:9"),
        ("http://box", "http://box:80"),
        ("https://box/ollama/", "https://box:443/ollama"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("[::1]:9", "http://[::1]:9"),
        ("::1", "http://[::1]:11434"),
        ("box:port", "http://box:11434"),
    ],
)
def test_the_address_is_read_as_ollama_reads_it(said: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", said)
    assert ollama_url() == expected


def test_a_model_is_made_of_a_file_that_is_sent_once(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" * 1000)
    fake = FakeOllama()
    source = ModelSource(gguf, template="{{ .Content }}", system="Be terse.", parameters={"stop": ["x"], "num_ctx": 9})
    fake.server().create("mine", source)
    fake.server().create("again", source)
    digest = next(iter(fake.blobs))
    assert [(method, path) for method, path, _ in fake.requests] == [
        ("HEAD", f"/api/blobs/{digest}"),
        ("POST", f"/api/blobs/{digest}"),
        ("POST", "/api/create"),
        ("HEAD", f"/api/blobs/{digest}"),
        ("POST", "/api/create"),
    ]
    assert fake.models["mine"] == {
        "model": "mine",
        "files": {"model.gguf": digest},
        "template": "{{ .Content }}",
        "system": "Be terse.",
        "parameters": {"stop": ["x"], "num_ctx": 9},
    }


def test_what_the_server_shows_is_compared_with_what_was_sent(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    server = FakeOllama().server()
    source = ModelSource(gguf, "{{ .Content }}", "Be terse.", {"num_ctx": 9})
    server.create("mine", source)
    assert [item.verdict for item in check_created(server, "mine", source)] == ["pass"] * 3
    changed = ModelSource(gguf, "{{ .Content }}", "Be terse.", {"num_ctx": 8})
    assert check_created(server, "mine", changed)[2].detail == "Ollama shows num_ctx as [9], sent was [8]."
    other = ModelSource(gguf, "{{ .Other }}", None, {"num_ctx": 9, "stop": ["x"]})
    assert [(item.name, item.verdict) for item in check_created(server, "mine", other)] == [
        ("ollama_template", "fail"),
        ("ollama_system", "fail"),
        ("ollama_parameters", "fail"),
    ]


def test_the_greedy_answer_and_the_count_come_from_the_whole_stream() -> None:
    fake = FakeOllama()
    engine = OllamaEngine(fake.server(), "mine", "mine, Ollama", n_ctx=4096)
    assert engine.answer(HELLO, 16) == "It is 4."
    asked = fake.requests[-1][2]
    assert asked["messages"] == [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hello"}]
    assert asked["options"] == {
        "temperature": 0,
        "seed": 0,
        "repeat_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "num_predict": 16,
        "num_ctx": 4096,
    }
    assert engine.prompt_tokens(HELLO) == len(json.dumps(asked["messages"]))
    engine.close()
    assert fake.requests[-1] == ("POST", "/api/generate", {"model": "mine", "keep_alive": 0})


def test_a_count_is_whole_on_versions_that_leave_out_what_is_cached() -> None:
    engine = OllamaEngine(FakeOllama(cache_counts=False).server(), "mine", "mine, Ollama", n_ctx=4096)
    assert engine.prompt_tokens(HELLO) == engine.prompt_tokens(HELLO) > 0
    assert not engine.counts_cached_tokens


def test_tools_and_calls_are_sent_as_ollama_takes_them() -> None:
    messages = (
        Message("user", "Weather?"),
        Message("assistant", None, reasoning="hm", tool_calls=(CALL,)),
        Message("tool", "7", name="weather", tool_call_id="c1"),
    )
    body = request_of(Prompt(messages, tools='[{"type": "function"}]'))
    assert body["tools"] == [{"type": "function"}]
    assert body["messages"][1]["thinking"] == "hm"
    assert body["messages"][1]["content"] == ""
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Köln"}}
    assert body["messages"][2] == {"role": "tool", "content": "7", "tool_name": "weather", "tool_call_id": "c1"}


def test_a_prompt_that_does_not_fit_is_an_error_and_not_a_shorter_prompt() -> None:
    engine = OllamaEngine(FakeOllama().server(), "mine", "mine, Ollama", n_ctx=50)
    with pytest.raises(EngineError, match="fills the context of 50 tokens"):
        engine.prompt_tokens(HELLO)


@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        ([{"error": "model 'x' not found"}], 404, "POST /api/chat: model 'x' not found"),
        (["<html>Bad gateway</html>"], 502, "<html>Bad gateway</html>"),
        ([""], 500, "status 500"),
        (["<html>"], 200, "it answered '<html>', which is no JSON object"),
        ([{"message": {"content": "It"}}, {"error": "llama runner terminated"}], 200, "llama runner terminated"),
        ([{"message": {"content": "It"}, "done": False}], 200, "the answer broke off before its end"),
        ([{"message": None, "done": True}], 200, "does not say how many tokens the prompt has"),
    ],
)
def test_every_failure_of_a_server_is_told(lines: list[Any], status: int, said: str) -> None:
    engine = OllamaEngine(answering(*lines, status=status), "x", "x, Ollama", n_ctx=64)
    engine.__dict__["counts_cached_tokens"] = True
    with pytest.raises(EngineError, match=said):
        engine.prompt_tokens(HELLO)


def test_a_model_that_is_not_made_is_told(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(EngineError, match="not with success"):
        answering({"status": "parsing GGUF"}).create("x", ModelSource(gguf))
    with pytest.raises(EngineError, match="no space left"):
        answering({"error": "no space left"}, status=500).create("x", ModelSource(gguf))


def test_a_server_that_is_not_there_is_told_with_its_address() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(EnvironmentLackError, match=r"127\.0\.0\.1:11434: nothing answers there"):
        OllamaServer("127.0.0.1:11434", transport=httpx.MockTransport(refuse)).version()
    with pytest.raises(EnvironmentLackError, match="model, endpoint at http://host:1/v1: nothing answers there"):
        endpoint(refuse).prompt_tokens(HELLO)


def test_a_connection_that_breaks_is_told() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("timed out", request=request)

    with pytest.raises(EngineError, match=r"the connection broke \(ReadTimeout: timed out"):
        OllamaServer(transport=httpx.MockTransport(slow)).version()
    with pytest.raises(EngineError, match=r"the connection broke \(ReadTimeout: timed out"):
        endpoint(slow).answer(HELLO, 1)


def test_the_guess_is_the_servers_own_and_its_probe_is_deleted() -> None:
    fake = FakeOllama()
    guess = guess_template(fake.server(), "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert not fake.models
    assert not guess.is_replaced
    assert guess.in_words() == (
        "Left alone, Ollama 0.0.1 knows no template like the trained one and sends chats without any. "
        "So the template is always sent."
    )


def test_a_replacement_is_told_with_its_effect() -> None:
    class Stock(FakeOllama):
        def on_show(self, body: Any) -> list[Any]:
            return [{**super().on_show(body)[0], "template": "{{ .System }}"}]

    guess = guess_template(Stock().server(), "x")
    assert guess.is_replaced
    assert guess.in_words((31, 16)) == (
        "Left alone, Ollama 0.0.1 puts a template of its own (13 characters) in the place of the trained one. "
        "A chat that has 31 tokens as it was trained would have 16. So the template is always sent."
    )


def test_a_probe_that_fails_is_deleted_too() -> None:
    class Failing(FakeOllama):
        def on_show(self, _: Any) -> list[Any]:
            return [{"error": "broken"}]

    fake = Failing()
    with pytest.raises(EngineError, match="broken"):
        guess_template(fake.server(), "x")
    assert not fake.models


def test_an_endpoint_counts_and_answers() -> None:
    asked: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url == "http://host:1/v1/chat/completions"
        asked.append(json.loads(request.content))
        return httpx.Response(200, json=completion())

    engine = endpoint(handler)
    assert (engine.prompt_tokens(HELLO), engine.answer(HELLO, 8)) == (31, "It is 4.")
    assert asked[1] == {"model": "m", **HELLO.request(), "temperature": 0, "seed": 0, "max_tokens": 8}
    engine.close()


def test_an_endpoint_that_wants_the_newer_name_gets_it() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if "max_tokens" in json.loads(request.content):
            return httpx.Response(400, json={"error": {"message": "use 'max_completion_tokens' instead"}})
        return httpx.Response(200, json=completion())

    assert endpoint(handler).answer(HELLO, 8) == "It is 4."


def test_logprobs_are_returned_where_they_are_offered() -> None:
    tops = [{"token": "It", "logprob": -0.5}, {"token": "Is", "logprob": -2}]
    offered = completion(logprobs={"content": [{"token": "Is", "top_logprobs": tops}]})
    shown = endpoint(lambda _: httpx.Response(200, json=offered)).shown_answer(HELLO, 1, 2)
    assert shown == ShownAnswer("It is 4.", (ShownToken("Is", ("It", "Is"), (-0.5, -2.0)),))
    assert not shown.tokens[0].is_likeliest


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, json=completion()),
        httpx.Response(200, json=completion(logprobs={"content": [{"token": "It"}]})),
        httpx.Response(400, text="logprobs are not supported"),
        httpx.Response(422, text="extra fields not permitted"),
    ],
)
def test_logprobs_that_are_not_offered_are_none(answer: httpx.Response) -> None:
    assert endpoint(lambda _: answer).shown_answer(HELLO, 1, 2) is None


def test_a_call_of_a_tool_is_answered_as_text() -> None:
    call = {"function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
    answered = {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}
    engine = endpoint(lambda _: httpx.Response(200, json=answered))
    assert engine.answer(HELLO, 8) == '{"name": "weather", "arguments": {"city":"Köln"}}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": []}, "does not say how many tokens the prompt has"),
        ({"error": {"message": "overloaded"}}, "overloaded"),
        (["x"], "it answered"),
    ],
)
def test_an_endpoint_that_does_not_count_is_an_error(answer: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        endpoint(lambda _: httpx.Response(200, json=answer)).prompt_tokens(HELLO)


def test_an_endpoint_without_an_answer_is_an_error() -> None:
    with pytest.raises(EngineError, match="no choices"):
        endpoint(lambda _: httpx.Response(200, json={"choices": []})).answer(HELLO, 1)


def test_the_key_goes_into_a_header_and_into_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret\n")

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer sk-secret"
        return httpx.Response(401, text="Incorrect API key provided: sk-secret")

    with pytest.raises(EngineError, match=r"it answered 401: Incorrect API key provided: \*\*\*"):
        endpoint(handler, key_variable="MY_KEY").answer(HELLO, 1)


def test_a_key_that_is_not_set_is_told() -> None:
    with pytest.raises(EnvironmentLackError, match="MY_KEY_THAT_IS_NOT: it is not set"):
        endpoint(lambda _: httpx.Response(200), key_variable="MY_KEY_THAT_IS_NOT")


def test_a_password_in_the_address_is_not_shown() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(500, text="down"))
    engine = OpenAIEngine("http://me:secret@host/v1", "m", "m", transport=transport)
    with pytest.raises(EngineError, match=r"^m at http://host/v1: it answered 500: down"):
        engine.answer(HELLO, 1)
