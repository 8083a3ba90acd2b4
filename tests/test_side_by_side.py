"""Base and tuned out of one model: each says what it says alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.chat.supervise import Supervisor
from tunewright.engines.hf import HFEngine, open_supervisor
from tunewright.engines.side_by_side import Answer, SideBySide
from tunewright.models.base import load_adapted, load_model, with_adapter


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig

    path = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    with_adapter(load_model(tiny_base, torch.float32), config).save_pretrained(path)
    return path


def alone(model: Any, tiny_base: Path, prompt: Prompt, count: int) -> list[int]:
    engine = HFEngine(model, open_supervisor(tiny_base, "alone"), "alone")
    return engine.greedy([engine.prompt_ids(prompt)], count)[0]


def test_each_side_says_what_it_says_alone_and_piece_by_piece(
    tiny_base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ids: what a random model says is no text, and a byte may change those before it."""
    monkeypatch.setattr(Supervisor, "decode", lambda supervisor, ids: "".join(f"{each} " for each in ids))
    prompts = {name: Prompt((Message("user", f"Where is the {name}?"),)) for name in ("base", "tuned")}
    tuned = load_adapted(tiny_base, adapter, torch.float32, "cpu")
    both = SideBySide(tuned, open_supervisor(tiny_base, "both"))
    pieces = list(both.answers(prompts, 24))  # type: ignore[arg-type]
    found = {
        side: list(map(int, "".join(piece.get(side, "") for piece in pieces).split())) for side in ("base", "tuned")
    }
    assert found["tuned"] == alone(tuned, tiny_base, prompts["tuned"], 24)
    assert found["base"] == alone(load_model(tiny_base, torch.float32), tiny_base, prompts["base"], 24)
    assert found["base"] != found["tuned"]
    assert len(pieces) > 1


def test_a_character_that_is_cut_in_two_waits_for_its_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halves:
        def decode(self, ids: list[int]) -> str:
            return {1: "\ufffd", 2: "é", 3: "é!"}[len(ids)]

    both = SideBySide(None, Halves())  # type: ignore[arg-type]
    answer = Answer("base", [])
    pieces = []
    for token in range(3):
        answer.ids.append(token)
        pieces.append(both._piece(answer))
    assert pieces == ["", "é", "!"]
