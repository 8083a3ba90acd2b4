"""Base and tuned out of one model: each says what it says alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.engines.hf import HFEngine, open_supervisor
from tunewright.engines.side_by_side import HALF_CHARACTER, Answer, SideBySide
from tunewright.models.base import load_adapted, load_model, peft_warnings_silenced


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    with peft_warnings_silenced():
        get_peft_model(load_model(tiny_base, torch.float32), config).save_pretrained(path)
    return path


def alone(model: Any, tiny_base: Path, prompt: Prompt, count: int) -> str:
    engine = HFEngine(model, open_supervisor(tiny_base, "alone"), "alone")
    return engine.decode(engine.greedy([engine.prompt_ids(prompt)], count)[0])


def agrees(said: str, whole: str) -> bool:
    """Whether both are one text; bytes that are no text, as a random model says, read otherwise with what follows."""
    pairs = zip(said, whole, strict=True)
    return all(HALF_CHARACTER in {one, other} or one == other for one, other in pairs)


def test_each_side_says_what_it_says_alone_and_piece_by_piece(tiny_base: Path, adapter: Path) -> None:
    prompts = {name: Prompt((Message("user", f"Where is the {name}?"),)) for name in ("base", "tuned")}
    tuned = load_adapted(tiny_base, adapter, torch.float32, "cpu")
    both = SideBySide(tuned, open_supervisor(tiny_base, "both"))
    pieces = list(both.answers(prompts, 24))  # type: ignore[arg-type]
    found = {side: "".join(piece.get(side, "") for piece in pieces) for side in ("base", "tuned")}
    assert agrees(found["tuned"], alone(tuned, tiny_base, prompts["tuned"], 24))
    assert agrees(found["base"], alone(load_model(tiny_base, torch.float32), tiny_base, prompts["base"], 24))
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
