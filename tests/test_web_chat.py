"""Chats: base and tuned beside each other, blind until the vote, and votes that last."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs_bench import wait_until
from report_sample import write_sample_run
from test_web_pages import HOSTILE, read, words
from tunewright.errors import ArtifactError, JobError
from tunewright.web import chats as chats_module
from tunewright.web import votes as votes_module
from tunewright.web.chats import Chat, Chats
from tunewright.web.pages.chat import sentence_of
from tunewright.web.runs import Runs
from tunewright.web.votes import Tally, Votes, wilson
from web_bench import Site, site_of

FAKE_CHAT = (sys.executable, str(Path(__file__).with_name("fake_chat.py")))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(chats_module, "CHAT_COMMAND", FAKE_CHAT)
    monkeypatch.setattr(chats_module, "SECONDS_BETWEEN_LOOKS", 0.05)
    found = site_of(tmp_path / "store")
    write_sample_run(found.store.root / "old")
    found.board.update()
    return found


@pytest.fixture
def chats(site: Site) -> Chats:
    return Chats(Runs(site.store.root), site.board, FAKE_CHAT)


def ready(chats: Chats, blind: bool = False) -> Chat:
    chat = chats.open("old", blind)
    wait_until(lambda: chat.state == "ready")
    return chat


def ask(chats: Chats, chat: Chat, text: str) -> int:
    number = chats.ask(chat.id, text)
    wait_until(lambda: chat.state in {"ready", "failed"})
    return number


def of_kind(chat: Chat, kind: str) -> list[dict[str, Any]]:
    return [event for event in chat.events if event["kind"] == kind]


def said(chat: Chat, place: str) -> str:
    return "".join(event[place] for event in of_kind(chat, "pieces"))


def test_both_answer_word_by_word_and_each_goes_on_in_its_own_conversation(chats: Chats) -> None:
    chat = ready(chats)
    ask(chats, chat, "one more word")
    assert (said(chat, "left"), said(chat, "right")) == ("1: ONE MORE WORD ", "1: one more word ")
    assert len(of_kind(chat, "pieces")) == 4
    ask(chats, chat, "again")
    assert said(chat, "right").endswith("3: again ")
    assert chat.messages_of("base")[1] == {"role": "assistant", "content": "1: ONE MORE WORD "}
    assert of_kind(chat, "sides")[0] == {"kind": "sides", "number": 1, "left": "base", "right": "tuned", "vote": ""}


def test_before_the_vote_nothing_that_leaves_the_service_says_whose_answer_is_whose(site: Site) -> None:
    chat = site.ask("POST", "/api/v1/runs/old/chats", json={"blind": True}).json()
    path = f"/api/v1/chats/{chat['id']}"
    wait_until(lambda: site.ask("GET", path).json()["state"] == "ready")
    site.ask("POST", path + "/questions", json={"text": "12"})
    wait_until(lambda: site.ask("GET", path).json()["state"] == "ready")
    told = read(site, "/runs/old/chat") + site.ask("GET", path).text + read(site, "/parts/runs/old/votes")
    assert set(json.loads(site.ask("GET", path).text)) == {"id", "run", "blind", "state", "problem", "questions"}
    assert chat["id"] not in read(site, "/runs/old/chat")
    assert "sides" not in told
    answer = site.ask("POST", path + "/votes", json={"question": 1, "vote": "left"})
    assert {answer.json()["left"], answer.json()["right"]} == {"base", "tuned"}
    assert answer.json()["vote"] == answer.json()["left"]
    tally = site.ask("GET", "/api/v1/runs/old/votes").json()
    assert tally[answer.json()["left"]] == 1


def test_a_blind_chat_tells_the_sides_after_the_vote_alone(chats: Chats) -> None:
    chat = ready(chats, blind=True)
    ask(chats, chat, "one")
    assert of_kind(chat, "sides") == []
    assert {said(chat, "left"), said(chat, "right")} == {"1: ONE ", "1: one "}
    sides = chats.vote(chat.id, 1, "right")
    assert said(chat, "left") == ("1: ONE " if sides["left"] == "base" else "1: one ")
    assert of_kind(chat, "sides") == [{"kind": "sides", **sides}]
    assert sides["vote"] == sides["right"]


def test_the_sides_are_drawn_anew_for_each_question_which_stands_alone(chats: Chats) -> None:
    chat = ready(chats, blind=True)
    for _ in range(40):
        ask(chats, chat, "x")
    drawn = Counter(question.left for question in chat.questions)
    assert set(drawn) == {"base", "tuned"}
    assert chat.messages_of("tuned") == [{"role": "user", "content": "x"}]


def test_there_is_one_vote_on_a_question_and_none_on_what_is_open_or_not_there(chats: Chats) -> None:
    chat = ready(chats, blind=True)
    with pytest.raises(JobError, match="nothing to vote on"):
        chats.vote(chat.id, 1, "left")
    chats.ask(chat.id, "slow enough")
    with pytest.raises(JobError, match="nothing to vote on"):
        chats.vote(chat.id, 1, "left")
    wait_until(lambda: chat.state == "ready")
    chats.vote(chat.id, 1, "tie")
    with pytest.raises(JobError, match="nothing to vote on"):
        chats.vote(chat.id, 1, "left")
    assert chats.votes.tally("old") == Tally(ties=1)
    plain = ready(chats)
    ask(chats, plain, "x")
    with pytest.raises(JobError, match="a blind chat"):
        chats.vote(plain.id, 1, "left")


def test_an_answer_can_be_stopped_and_the_chat_goes_on(chats: Chats) -> None:
    chat = ready(chats)
    chats.ask(chat.id, "slow " * 100)
    wait_until(lambda: of_kind(chat, "pieces"))
    chats.stop(chat.id)
    wait_until(lambda: chat.state == "ready")
    assert len(said(chat, "right").split()) < 50
    ask(chats, chat, "next")
    assert said(chat, "right").endswith("3: next ")


@pytest.mark.parametrize(("text", "problem"), [("die", "out of breath"), ("refuse", "the template refuses it")])
def test_a_model_that_ends_or_refuses_is_said_in_words_and_the_next_chat_works(
    chats: Chats, text: str, problem: str
) -> None:
    chat = ready(chats)
    ask(chats, chat, text)
    assert (chat.state, problem in chat.problem) == ("failed", True)
    with pytest.raises(JobError, match="it is failed"):
        chats.ask(chat.id, "x")
    again = ready(chats)
    ask(chats, again, "x")
    assert said(again, "right") == "1: x "


def test_a_gpu_that_a_job_needs_is_given_back(chats: Chats, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.board.scheduler, "slots", ("gpu0",))
    monkeypatch.setitem(site.board.facts, "at_work", [])
    chat = ready(chats)
    chats.ask(chat.id, "slow " * 100)
    wait_until(lambda: of_kind(chat, "pieces"))
    monkeypatch.setitem(site.board.facts, "at_work", [{"slot": "gpu0"}])
    wait_until(lambda: chat.state == "failed")
    assert "a job needs the GPU" in chat.problem
    assert ready(chats).state == "ready"


def test_a_run_that_has_not_trained_has_no_chat(site: Site) -> None:
    (site.store.root / "begun").mkdir()
    assert site.ask("POST", "/api/v1/runs/begun/chats", json={}).status_code == 422
    assert "nothing to talk to yet" in words(read(site, "/runs/begun/chat", 404))
    assert site.ask("POST", "/api/v1/runs/nobody/chats", json={}).status_code == 404
    assert site.ask("GET", f"/api/v1/chats/{'0' * 16}").status_code == 404


def test_votes_last_are_counted_for_their_adapter_and_shown_as_words(site: Site) -> None:
    votes = Votes(Runs(site.store.root))
    now = votes_module.adapter_of(votes.runs, "old")
    assert len(now) == 64
    for winner, adapter in (("tuned", now), ("tuned", now), ("base", now), ("tie", now), ("base", "earlier")):
        votes.add("old", winner, "base", HOSTILE, {"base": HOSTILE, "tuned": "b"}, adapter)  # type: ignore[arg-type]
    assert Votes(Runs(site.store.root)).tally("old") == Tally(2, 1, 1, older=1)
    html = read(site, "/runs/old/chat")
    assert "Of 3 decided votes the tuned model won 2" in words(html)
    assert "1 vote on an earlier adapter is kept and not counted" in words(html)
    assert "<img" not in html


def test_votes_that_cannot_be_read_are_never_written_over(site: Site) -> None:
    path = site.store.root / "old/votes.json"
    path.write_text('{"votes": [')
    votes = Votes(Runs(site.store.root))
    with pytest.raises(ArtifactError, match="holds no votes that can be read"):
        votes.add("old", "tie", "base", "", {"base": "", "tuned": ""}, "")
    assert path.read_text() == '{"votes": ['
    assert votes.tally("old") == Tally()
    assert site.ask("GET", "/runs/old/chat").status_code == 200


@pytest.mark.parametrize(
    ("wins", "total", "low", "high"), [(0, 1, 0.0, 0.7935), (1, 1, 0.2065, 1.0), (8, 10, 0.4902, 0.9433)]
)
def test_the_interval_of_few_votes_is_wide(wins: int, total: int, low: float, high: float) -> None:
    """The figures of Wilson's interval as Newcombe (1998) computes it."""
    share = wilson(wins, total)
    assert (share.low, share.high) == (low, high)


def test_the_sentence_says_no_more_than_the_votes_do() -> None:
    assert sentence_of(Tally()) == "Nobody has voted yet."
    assert sentence_of(Tally(ties=2)) == "No vote was decided yet."
    assert sentence_of(Tally(tuned=3, base=2)).endswith("too few to tell.")
    assert sentence_of(Tally(tuned=30, base=2)).endswith("better.")
    assert sentence_of(Tally(tuned=2, base=30)).endswith("worse.")
