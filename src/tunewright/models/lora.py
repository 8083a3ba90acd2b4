"""The adapter that a recipe asks for, in peft's words."""

from typing import Any

from tunewright.recipe import TrainKeys


def lora_config(keys: TrainKeys, **changes: Any) -> Any:
    """peft's LoraConfig for a recipe; `changes` take the place of what the recipe says."""
    from peft import LoraConfig

    settings = {
        "r": keys.lora_r,
        "lora_alpha": keys.lora_alpha,
        "lora_dropout": keys.lora_dropout,
        "target_modules": keys.lora_target_modules,
        "use_rslora": keys.use_rslora,
        "use_dora": keys.use_dora,
        "modules_to_save": keys.modules_to_save,
        "bias": keys.bias,
        "init_lora_weights": keys.init_lora_weights,
        "rank_pattern": dict(keys.rank_pattern),
        "alpha_pattern": dict(keys.alpha_pattern),
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**settings, **changes})
