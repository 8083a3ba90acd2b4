import resource
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig, masking_utils

from tunewright.chat.rows import TokenRow
from tunewright.errors import ModelError
from tunewright.layouts.layout import Kind
from tunewright.layouts.loss import LOGITS_BYTES
from tunewright.models.quantized import BLOCK
from tunewright.plan.memory import MemoryPrediction, Step, predict_peak_bytes
from tunewright.recipe import TrainKeys

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCAB, RANK = 64, 128, 2, 4, 2, 512, 8
KV = HIDDEN // HEADS * KV_HEADS
LINEAR_SHAPES = [
    *((HIDDEN, HIDDEN), (HIDDEN, KV), (HIDDEN, KV), (HIDDEN, HIDDEN)),
    *((HIDDEN, INTERMEDIATE), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN)),
]
WEIGHTS = VOCAB * HIDDEN + LAYERS * (sum(i * o for i, o in LINEAR_SHAPES) + 2 * HIDDEN) + HIDDEN
ADAPTER = LAYERS * sum(RANK * (i + o) for i, o in LINEAR_SHAPES)
QUERY_ADAPTER = LAYERS * RANK * 2 * HIDDEN


def step_of(rows: int, tokens: int, supervised: int, kind: Kind = "padded") -> Step:
    """Rows without a common beginning, all in one micro-batch."""
    mask = np.arange(tokens) >= tokens - supervised
    found = [TokenRow(np.full(tokens, index, np.int32), mask, tokens - supervised) for index in range(rows)]
    return Step(found, kind, batch_size=rows, budget=rows * tokens)


STEP = step_of(rows=2, tokens=128, supervised=32)


def small_llama(**changes: Any) -> PretrainedConfig:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**sizes, **changes})


def predict(step: Step = STEP, config: PretrainedConfig | None = None, **changes: Any) -> MemoryPrediction:
    arguments: dict[str, Any] = {"base_dtype": torch.float32, "compute_dtype": torch.float32, "step": step}
    keys: dict[str, Any] = {"lora_r": RANK, "lora_target_modules": ["q_proj"]}
    keys |= {name: changes.pop(name) for name in list(changes) if name in TrainKeys.model_fields}
    return predict_peak_bytes(config or small_llama(), TrainKeys(**keys), **{**arguments, **changes})


@pytest.fixture(scope="module")
def prediction() -> MemoryPrediction:
    return predict(lora_target_modules="all-linear")


@pytest.fixture(scope="module")
def queries_only() -> MemoryPrediction:
    return predict()


def test_parts_sum_to_the_peak(prediction: MemoryPrediction) -> None:
    assert sum(prediction.breakdown.values()) == prediction.peak_bytes
    assert set(prediction.breakdown) == {"weights", "adapter", "gradients", "optimizer", "activations", "logits"}
    assert min(prediction.breakdown.values()) >= 0


def test_weights_are_every_parameter_once_though_embeddings_are_tied(prediction: MemoryPrediction) -> None:
    assert prediction.breakdown["weights"] == WEIGHTS * 4


def test_dtypes_and_targets_are_followed_and_cuda_needs_no_cuda() -> None:
    half = predict(base_dtype=torch.bfloat16, compute_dtype=torch.bfloat16, adapter_dtype=torch.bfloat16, device="cuda")
    assert half.breakdown["weights"] == WEIGHTS * 2
    assert half.breakdown["adapter"] == QUERY_ADAPTER * 2
    assert half.traced_device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_adapter_and_optimizer_are_exact(prediction: MemoryPrediction) -> None:
    adapted = LAYERS * len(LINEAR_SHAPES) * 2
    step_counts = adapted * 4
    assert prediction.breakdown["adapter"] == ADAPTER * 4
    assert prediction.breakdown["optimizer"] == 2 * ADAPTER * 4 + step_counts


def test_the_peak_at_the_loss_holds_log_probabilities_and_two_gradients() -> None:
    many = predict(step_of(2, 129, 128), small_llama(vocab_size=8192))
    assert many.breakdown["logits"] == 3 * 2 * 128 * 8192 * 4
    assert many.breakdown["gradients"] == 0


def test_logits_of_many_positions_are_never_held_together() -> None:
    chunk = LOGITS_BYTES // (4 * 8192)
    one, three = (
        predict(step_of(1, size + 1, size), small_llama(vocab_size=8192)).breakdown["logits"]
        for size in (chunk, 3 * chunk)
    )
    assert one == three == 3 * LOGITS_BYTES


def test_gradients_are_whole_where_the_adapter_is_nearly_everything() -> None:
    wide = predict(step_of(1, 2, 1), lora_r=512)
    assert wide.breakdown["gradients"] == wide.breakdown["adapter"] == QUERY_ADAPTER // RANK * 512 * 4


def test_more_rows_need_more_bytes_in_proportion(queries_only: MemoryPrediction) -> None:
    four = predict(step_of(4, 128, 32)).peak_bytes
    six = predict(step_of(6, 128, 32)).peak_bytes
    assert four > queries_only.peak_bytes
    assert six - four == pytest.approx(four - queries_only.peak_bytes, rel=0.01)


def test_checkpointing_needs_less(queries_only: MemoryPrediction) -> None:
    assert predict(gradient_checkpointing=True).peak_bytes < queries_only.peak_bytes


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_attention_keeps_no_scores(kind: Kind) -> None:
    config = small_llama(num_key_value_heads=HEADS)
    short, long = (predict(step_of(1, tokens, 1, kind), config) for tokens in (512, 1024))
    assert long.breakdown["activations"] == pytest.approx(2 * short.breakdown["activations"], rel=0.02)


def test_what_rows_share_is_held_once() -> None:
    common, own = np.arange(96, dtype=np.int32), np.arange(32, dtype=np.int32)
    rows = [
        TokenRow(np.concatenate([common, own + 100 * (index + 1)]), np.arange(128) > 100, 101) for index in range(4)
    ]
    packed, shared = (
        predict(Step(rows, kind, 4, 4 * 128)).breakdown["activations"] for kind in ("packed", "shared_prefix")
    )
    assert shared == pytest.approx(packed * (96 + 4 * 32) / (4 * 128), rel=0.1)


def test_autocast_keeps_a_cast_copy_of_the_frozen_weights() -> None:
    short = step_of(1, 8, 1)
    mixed, plain = predict(short, compute_dtype=torch.bfloat16), predict(short)
    linear_weights = LAYERS * sum(i * o for i, o in LINEAR_SHAPES)
    assert mixed.breakdown["weights"] == plain.breakdown["weights"]
    assert mixed.breakdown["activations"] - plain.breakdown["activations"] > linear_weights


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_followed_up_to_the_ceiling_alone(checkpointing: bool) -> None:
    whole = predict(gradient_checkpointing=checkpointing)
    assert predict(gradient_checkpointing=checkpointing, ceiling=whole.peak_bytes).breakdown == whole.breakdown
    for ceiling in (0, whole.breakdown["weights"], whole.peak_bytes - 1):
        stopped = predict(gradient_checkpointing=checkpointing, ceiling=ceiling)
        assert ceiling < stopped.peak_bytes <= whole.peak_bytes
        assert sum(stopped.breakdown.values()) == stopped.peak_bytes


def test_nothing_global_is_changed() -> None:
    def state() -> list[Any]:
        return [
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            masking_utils.find_packed_sequence_indices,
            torch.ones(1).device,
            torch._C._len_torch_dispatch_stack(),
        ]

    config = small_llama()
    before, described = state(), config.to_dict()
    predict(config=config, base_dtype=torch.bfloat16, compute_dtype=torch.float16, gradient_checkpointing=True)
    assert state() == before
    assert config.to_dict() == described


def test_a_llama_of_nine_billion_takes_no_real_memory() -> None:
    llama = small_llama(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=8,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = predict(
        step_of(2, 1024, 32),
        llama,
        base_dtype=torch.bfloat16,
        compute_dtype=torch.bfloat16,
    )
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert large.breakdown["weights"] == 8_946_589_696 * 2
    assert grown_kib < 500 * 1024


@pytest.mark.parametrize(("bits", "of_each"), [(4, 0.5 + 1 / BLOCK), (8, 1 + 4 / HIDDEN)])
def test_packed_weights_are_counted_packed(bits: int, of_each: float) -> None:
    packed = predict(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    linear = LAYERS * sum(i * o for i, o in LINEAR_SHAPES)
    assert packed.quantized is not None
    assert (packed.quantized.layers, packed.quantized.weights) == (LAYERS * len(LINEAR_SHAPES), linear)
    assert packed.quantized.stored_bytes == pytest.approx(linear * of_each, rel=0.05)
    assert packed.breakdown["weights"] == (WEIGHTS - linear) * 4 + packed.quantized.stored_bytes


@pytest.mark.parametrize(("optim", "of_each"), [("paged_adamw_32bit", 8), ("adamw_8bit", 2), ("adafactor", 0.07)])
def test_the_optimizer_that_will_train_is_the_one_that_is_counted(optim: str, of_each: float) -> None:
    wide = predict(lora_r=256, lora_target_modules="all-linear", optim=optim)
    adapter = LAYERS * sum(256 * (i + o) for i, o in LINEAR_SHAPES)
    assert wide.breakdown["optimizer"] == pytest.approx(adapter * of_each, rel=0.2)


def test_dora_needs_more_than_lora(queries_only: MemoryPrediction) -> None:
    assert predict(use_dora=True).peak_bytes > queries_only.peak_bytes


def test_sharded_layers_are_counted_by_part_and_two_of_them_whole() -> None:
    layers = 8
    found = predict(config=small_llama(num_hidden_layers=layers), fsdp=True)
    layer = 4 * (sum(i * o for i, o in LINEAR_SHAPES) + 2 * HIDDEN)
    assert list(found.layer_bytes) == [layer] * layers
    shared = found.sharded(4)
    assert found.peak_bytes - shared.peak_bytes == layers * layer - (layers // 4 + 2) * layer
    assert sum(shared.breakdown.values()) == shared.peak_bytes
    assert found.sharded(1) == found


def test_a_configuration_that_cannot_be_built_is_an_error_that_says_where_to_look() -> None:
    with pytest.raises(ModelError, match=r"transformers cannot build it .* Look at rope_scaling"):
        predict(config=small_llama(rope_parameters={"rope_type": "nonsense", "rope_theta": 1e4}))
