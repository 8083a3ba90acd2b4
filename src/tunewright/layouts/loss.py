"""The loss of supervised tokens from the body's hidden states, without ever holding the logits of all of them.

In: hidden states [N, H] at the positions that predict supervised tokens, and those tokens, int64 [N]. Out: the sum of
cross-entropies in nats, float32. The output layer, and whatever the model does to logits behind it (scales, caps), is
the model's own code, run on some positions at a time; the gradients are computed in the same pass, so that nothing is
computed twice. The idea is that of Liger's fused linear cross-entropy (Hsu et al. 2024, https://arxiv.org/abs/2410.10989).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

LOGITS_BYTES = 1 << 26  # Of the float32 logits that are held at a time.
LEAST_POSITIONS = 64


def loss_sum(model: Any, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The summed loss, with its graph where gradients are on."""
    tail = Tail(model)
    if not torch.is_grad_enabled():
        pieces = [tail.loss(hidden, targets) for hidden, targets in tail.chunks(hidden_NH, targets_N)]
        return torch.stack(pieces).sum() if pieces else hidden_NH.new_zeros((), dtype=torch.float32)
    result: torch.Tensor = _ChunkedLoss.apply(hidden_NH, targets_N, tail, *tail.parameters)  # type: ignore[no-untyped-call]
    return result


class Tail:
    """What a causal language model does behind its body: the output layer, scales and caps of logits.

    Args:
        model: the model, with or without a peft adapter.
    """

    def __init__(self, model: Any) -> None:
        self._model = causal_lm(model)
        self._body = self._model.base_model
        body = {id(parameter) for parameter in self._body.parameters()}
        own = [parameter for parameter in self._model.parameters() if id(parameter) not in body]
        head = [parameter for parameter in self._model.get_output_embeddings().parameters() if id(parameter) in body]
        self.parameters = [parameter for parameter in (*own, *head) if parameter.requires_grad]

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] of hidden states as the body gives them."""
        with _body_gives(self._body, hidden_NH.unsqueeze(0)):
            unread = torch.zeros(1, len(hidden_NH), dtype=torch.long, device=hidden_NH.device)
            logits: torch.Tensor = self._model(input_ids=unread, use_cache=False).logits[0]
        return logits

    def loss(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.logits(hidden_NH).float(), targets_N, reduction="sum")

    def chunks(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        size = max(LEAST_POSITIONS, LOGITS_BYTES // (4 * vocabulary))
        for start in range(0, len(targets_N), size):
            yield hidden_NH[start : start + size], targets_N[start : start + size]


def causal_lm(model: Any) -> Any:
    """The transformers model within a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _body_gives(body: Any, hidden_1NH: torch.Tensor) -> Iterator[None]:
    """Within this context the body returns these hidden states, whatever it is called with."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    own = vars(body).get("forward")
    body.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden_1NH)
    try:
        yield
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own


class _ChunkedLoss(torch.autograd.Function):
    """The summed loss and its gradients in one pass over chunks of positions."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, targets_N: torch.Tensor, tail: Tail, *parameters: torch.Tensor
    ) -> torch.Tensor:
        wanted = hidden_NH.requires_grad
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        hidden_gradients: list[torch.Tensor] = []
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for hidden, targets in tail.chunks(hidden_NH, targets_N):
            with torch.enable_grad():
                leaf = hidden.detach().requires_grad_(wanted)
                loss = tail.loss(leaf, targets)
                inputs = [leaf, *parameters] if wanted else list(parameters)
                found = list(torch.autograd.grad(loss, inputs)) if inputs else []
            total += loss.detach()
            if wanted:
                hidden_gradients.append(found.pop(0))
            for gathered, gradient in zip(sums, found, strict=True):
                gathered += gradient
        whole = torch.cat(hidden_gradients) if hidden_gradients else torch.zeros_like(hidden_NH)
        ctx.save_for_backward(whole, *sums)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, *parameters = ctx.saved_tensors
        scaled: Sequence[torch.Tensor] = [each * gradient.to(each.dtype) for each in (hidden, *parameters)]
        return (scaled[0], None, None, *scaled[1:])
