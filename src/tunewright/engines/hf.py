"""Hugging Face in process: a causal language model and its tokenizer, on the CPU or one GPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunewright.chat.prompt import Prompt
from tunewright.chat.supervise import Supervisor
from tunewright.chat.template import ChatTemplate, chat_template_of
from tunewright.engines.interface import TopLogprobs
from tunewright.models.base import load_model, load_tokenizer, stop_token_ids, whole_device

SHORTEST_PREFIX = 16


class HFEngine:
    """A model that is already in memory.

    Args:
        model: a causal language model in evaluation mode; it stays the caller's.
        supervisor: the tokenizer, template and stop tokens that belong to it.
        name: which artifact this is, for tables and messages.
        batch_size: prompts that `greedy` answers at a time; 1 is exact, more is faster and pads on the left.
    """

    def __init__(self, model: Any, supervisor: Supervisor, name: str, batch_size: int = 1) -> None:
        self.model = model
        self.supervisor = supervisor
        self.name = name
        self.batch_size = batch_size

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return self.supervisor.prompt_ids(prompt)

    @torch.inference_mode()
    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], top_k: int) -> list[TopLogprobs]:
        ids_BT = torch.tensor([[*prompt_ids, *answer_ids]], device=self.model.device)
        output = self.model(input_ids=ids_BT[:, :-1], use_cache=False, logits_to_keep=len(answer_ids))
        logprobs_TV = output.logits[0].float().log_softmax(dim=-1)
        top = logprobs_TV.topk(top_k, dim=-1)
        return [
            TopLogprobs(tuple(ids), tuple(values))
            for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        answers: list[list[int]] = []
        for start in range(0, len(prompts), self.batch_size):
            answers += self._greedy_batch(prompts[start : start + self.batch_size], max_new_tokens)
        return answers

    def _greedy_batch(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        from transformers import GenerationConfig

        stop_ids = sorted(self.supervisor.stop_ids)
        shared = self._shared_prefix(prompts)
        longest = max(len(prompt) for prompt in prompts)
        ids_BT = torch.full((len(prompts), longest), stop_ids[0])
        attention_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            # Padding stands between the shared prefix and the rest, so that all rests end together.
            rest = longest - len(prompt) + shared
            ids_BT[row, :shared], ids_BT[row, rest:] = torch.tensor(prompt[:shared]), torch.tensor(prompt[shared:])
            attention_BT[row, :shared], attention_BT[row, rest:] = 1, 1
        output = self.model.generate(
            input_ids=ids_BT.to(self.model.device),
            attention_mask=attention_BT.to(self.model.device),
            past_key_values=self._prefix_cache(prompts[0][:shared], len(prompts)) if shared else None,
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stop_ids, pad_token_id=stop_ids[0]
            ),
        )
        return [_until_stop(row[longest:], self.supervisor.stop_ids) for row in output.tolist()]

    def _shared_prefix(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens that all prompts begin with and that pay to be computed once; 0 where the cache is not plain."""
        layers = set(getattr(self.model.config, "layer_types", None) or ["full_attention"])
        if len(prompts) < 2 or layers != {"full_attention"} or getattr(self.model.config, "sliding_window", None):
            return 0
        shared = 0
        for tokens in zip(*(prompt[:-1] for prompt in prompts), strict=False):
            if len(set(tokens)) > 1:
                break
            shared += 1
        return shared if shared >= SHORTEST_PREFIX else 0

    def _prefix_cache(self, prefix: Sequence[int], rows: int) -> Any:
        """The keys and values of `prefix`, once for each of `rows`."""
        ids_1P = torch.tensor([list(prefix)], device=self.model.device)
        cache = self.model(input_ids=ids_1P, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(rows)
        return cache

    def decode(self, ids: Sequence[int]) -> str:
        return self.supervisor.decode(ids)

    def close(self) -> None:
        self.model = None


def _until_stop(ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1]
    return ids


def open_supervisor(path: Path, where: str, template: ChatTemplate | None = None) -> Supervisor:
    """The tokenizer and stop tokens of a checkpoint directory, with `template` or with its own."""
    tokenizer = load_tokenizer(path)
    return Supervisor(tokenizer, template or chat_template_of(tokenizer, where), stop_token_ids(path, tokenizer))


def inference_dtype(device: str) -> torch.dtype:
    """bfloat16 on a GPU; float32 on a CPU, where 16-bit arithmetic is slower and less exact."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def open_hf_engine(
    path: Path,
    name: str,
    batch_size: int = 1,
    dtype: torch.dtype | None = None,
    template: ChatTemplate | None = None,
) -> HFEngine:
    """Load a checkpoint directory on the best device there is.

    Args:
        path: the checkpoint, in Hugging Face's layout.
        name: for tables and messages.
        batch_size: as in `HFEngine`.
        dtype: of the weights in memory; default: `inference_dtype` of the device.
        template: takes the place of the checkpoint's own.
    """
    device = whole_device(path)
    model = load_model(path, dtype or inference_dtype(device), device)
    return HFEngine(model, open_supervisor(path, name, template), name, batch_size)
