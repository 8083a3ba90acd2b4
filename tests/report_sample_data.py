"""What the sample run of the report's tests is about: rows, evidence, facts and the recipe."""

from dataclasses import replace
from typing import Any

from tunewright.evidence import Evidence, at_least, at_most, equal, fact

SYSTEM = (
    "You are the triage desk of a shop for household devices. Read the customer's message and answer with one JSON "
    "object and nothing else. Its keys are intent, urgency, product_area, summary and analysis. Choose the intent from "
    "the list that the team agreed on, never a new one. Urgency is low, normal or high; high is kept for danger, for "
    "money that is gone, and for a deadline within two days. The summary is one sentence in the customer's own matter."
)
# message, intent, urgency, area, summary, what the base answers, what the tuned model gets wrong
ANSWERS: list[tuple[str, str, str, str, str, str, dict[str, str]]] = [
    (
        "The kettle trips the fuse every time it reaches the boil. It did it twice with my kids in the room.",
        "safety",
        "high",
        "kettles",
        "The kettle trips the fuse at the boil.",
        "I am sorry to hear that. Please unplug the kettle and contact the manufacturer.",
        {},
    ),
    (
        "You charged me twice for order 48213, once on Monday and once today.",
        "billing",
        "high",
        "orders",
        "Order 48213 was charged twice.",
        '{"intent": "refund", "urgency": "high", "summary": "You charged me twice for order 48213."}',
        {},
    ),
    (
        "Wo bleibt mein Paket? Laut Sendung seit fünf Tagen in Leipzig. 📦",
        "delivery",
        "normal",
        "shipping",
        "A parcel has been in Leipzig for five days.",
        "Your package is on its way and will be delivered soon!",
        {"summary": "A parcel stands still in Leipzig."},
    ),
    (
        "Can I use the M2 filter in the older M1 jug?",
        "compatibility",
        "low",
        "filters",
        "They ask whether an M2 filter fits an M1 jug.",
        '{"intent": "question", "urgency": "low"}',
        {"summary": "A question about filters for the M1 jug."},
    ),
    (
        "Please change the delivery address to 4 Mill Lane before it ships tomorrow.",
        "change_order",
        "high",
        "orders",
        "The address has to change before tomorrow.",
        "Sure, I have changed the delivery address to 4 Mill Lane.",
        {"urgency": "normal"},
    ),
    (
        "The app says 'error <script>alert(1)</script>' when I scan the code & then closes.",
        "app_fault",
        "normal",
        "app",
        "The app closes with an error after a scan.",
        "```json\n{'intent': 'bug'}\n```",
        {"summary": "The app shows an error on scanning."},
    ),
    (
        "I'd like to send the toaster back, it's the wrong colour and the box is open.",
        "return",
        "low",
        "toasters",
        "A toaster of the wrong colour shall go back.",
        "You can return the toaster within 30 days.",
        {"intent": "exchange", "summary": "They want another colour of toaster."},
    ),
    (
        "Do you still sell the grey handle for the 2019 pan? Mine came off.",
        "spare_part",
        "normal",
        "pans",
        "They need a grey handle for the pan of 2019.",
        "Yes, we do! You can find it on our website.",
        {"intent": "compatibility", "product_area": "kettles", "urgency": "low"},
    ),
]

EVIDENCE: dict[str, list[Evidence]] = {
    "data": [
        equal("ledger_balances", 322, 322, "322 rows came in; 297 kept, 13 repaired, 8 truncated and 4 rejected."),
        at_most("duplicate_rows", 0.0, 0.0, "No row stands twice after case and white space are set aside."),
        at_most("near_duplicate_rows", 0.006, 0.02, "Rows whose word trigrams overlap by 80 % or more."),
        at_most("eval_rows_in_train", 0.0, 0.0, "No held-out row has a twin among the training rows."),
        equal("targets_ending_in_ellipsis", 0, 0, "No target was cut off and closed with three dots."),
        at_most("empty_targets", 0.0, 0.0),
        fact("distinct_intents", 12, "The values of the field intent."),
        replace(at_most("rarest_intent_share", 0.031, 0.03), verdict="warn", detail="spare_part has 9 of 290 rows."),
    ],
    "render": [
        equal("rows_without_supervised_tokens", 0, 0, "Every row teaches at least one token."),
        equal("mask_matches_answer", True, True, "The learned tokens decode to the assistant's text, in each row."),
        equal("end_of_turn_learned", True, True, "<|im_end|> is learned after every answer."),
        equal(
            "prompt_is_prefix", True, True, "The prompt at inference is the start of the training row, token by token."
        ),
        fact("supervised_tokens", 21840, "of 104 912 tokens."),
        at_most("rows_over_max_length", 0.0, 0.0, "max_length is 512."),
    ],
    "plan": [
        at_most("peak_bytes_share", 0.38, 0.9, "2.9 GB of 7.6 GB are needed at the highest point."),
        equal("effective_batch_size", 16, 16),
        fact("padding_saved", 0.62, "Tokens that the shared prefix saves in each epoch."),
    ],
    "train": [
        equal("loss_is_finite", True, True, "All 30 losses are finite."),
        at_most("final_loss_over_first", 0.21, 0.9, "The loss fell from 2.94 to 0.62."),
        at_most("overfit_ratio", 1.04, 1.5, "Held-out loss at the end over the best held-out loss."),
        equal("tokens_supervised_as_planned", 65520, 65520),
        equal("base_unchanged", True, True, "The base's weights have the hash from before training."),
        fact("tokens_per_second", 312.4),
    ],
    "merge": [
        equal("adapter_keys_used_once", 420, 420, "Every key of the adapter was used exactly once."),
        equal("untouched_tensors_identical", 62, 62, "Tensors without an adapter are byte for byte the base's."),
        at_most("largest_error", 0.0, 0.0, "Each merged tensor against round(W + s·B·A)."),
        equal("tensors_not_finite", 0, 0),
        equal("quantization_config_absent", True, True),
    ],
    "export": [
        equal("tensors", 272, 272, "The GGUF has as many tensors as the merged model."),
        equal("chat_template_equal", True, True, "The GGUF's chat template is the one trained with, byte for byte."),
        equal("stop_tokens_in_modelfile", 2, 2, "<|im_end|> and <|endoftext|>."),
        at_most("system_prompt_missing", 0.0, 0.0),
        fact("gguf_bytes", 144811904),
    ],
    "verify": [
        equal("prompt_ids_equal_adapter", 1.0, 1.0),
        at_least("top1_agreement_adapter", 1.0, 1.0),
        at_most("mean_kl_adapter", 0.0, 1e-6),
        at_least("top1_agreement_merged", 0.9961, 0.99),
        at_most("mean_kl_merged", 3.2e-07, 1e-3),
        equal("q8_0_prompt_ids_equal", 1.0, 1.0),
        at_least("q8_0_top1_agreement", 0.9883, 0.98),
        at_most("q8_0_mean_kl", 0.000871, 1e-2),
        equal("degenerate_answers", 0, 0, "No answer loops, repeats a word without end or has broken characters."),
    ],
    "evaluate": [
        at_least("valid_json_tuned", 1.0, 0.95, "48 of 48 answers are JSON objects."),
        at_least("intent_over_base", 0.542, 0.0, "Points that the tuned model is ahead of the base."),
        at_most("gguf_behind_merged", 0.021, 0.05),
    ],
}

FACTS: dict[str, dict[str, Any]] = {
    "data": {
        "rows_in": 322,
        "kept": 297,
        "repaired": 13,
        "rejected": 4,
        "train_rows": 270,
        "eval_rows": 48,
        "formats": {"messages": 300, "prompt_completion": 22},
        "system_prompts": 1,
        "shared_system_prompt": SYSTEM,
        "repairs": {"content_to_text": 9, "role_renamed": 4},
        "rejections": {"the target is empty": 3, "no assistant turn": 1},
        "held_out_by": "eval_data",
        "seconds": 0.8,
    },
    "render": {
        "rows": 318,
        "supervised_tokens": 21840,
        "template_sha256": "5f" * 32,
        "shared_prefix_tokens": 276,
        "seconds": 2.4,
    },
    "plan": {"seconds": 6.1},
    "train": {
        "base": "embedded:smollm2-135m-instruct",
        "optimizer_steps": 30,
        "first_loss": 2.94,
        "final_loss": 0.62,
        "best_eval_loss": 0.71,
        "tokens_per_second": 312.4,
        "trainable_parameters": 4884480,
        "layout": "shared_prefix",
        "versions": {
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "peft": "0.21.0",
            "tunewright": "0.1.0",
            "python": "3.11.9",
        },
        "seconds": 312.4,
    },
    "merge": {
        "dtype": "bfloat16",
        "dtype_reason": "bfloat16 holds the base exactly",
        "tensors": 272,
        "merged_tensors": 210,
        "largest_error": 0.0,
        "adapter_keys": 420,
        "seconds": 3.7,
    },
    "export": {
        "formats": ["q8_0"],
        "bytes": {"q8_0": 144811904},
        "num_ctx": 2048,
        "modelfile": {"system": SYSTEM, "stop": ["<|im_end|>"], "temperature": 0.0},
        "license": {"license": "apache-2.0"},
        "seconds": 21.9,
    },
    "verify": {"seconds": 64.2},
    "evaluate": {
        "headline": "exact:intent",
        "headline_scores": {"q8_0": {"value": 0.646, "low": 0.526, "high": 0.766}},
        "headline_losses": {"q8_0": {"value": -0.021, "low": -0.06, "high": 0.02}},
        "seconds": 151.0,
    },
}
RECIPE = {
    "data": ["examples/support_triage/train.jsonl"],
    "eval_data": ["examples/support_triage/eval.jsonl"],
    "model": "embedded:smollm2-135m-instruct",
    "lora_r": 16,
    "lora_alpha": 32.0,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "use_rslora": False,
    "learning_rate": 0.0002,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 42,
    "name": "support_triage",
}
