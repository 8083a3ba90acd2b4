"""The recipe: everything about a run, as flat keys with the names that Hugging Face and TRL use.

One class per stage lists the keys that the stage may see; `Recipe` joins them. A stage gets its own section, frozen,
so that a change to a key makes exactly the stages that read it run again. Unknown keys are refused with the nearest
known one; the names of other tools are understood.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tunewright.aliases import ALIASES
from tunewright.errors import RecipeError


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, Path)) else value


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


Names = Annotated[list[str], BeforeValidator(_as_list), AfterValidator(_unique)]
Check = Literal["gate", "warn", "off"]
Bits = Literal[4, 8]
MergeInto = Literal["auto", "original", "dequantized"]
SchedulerType = Literal[
    "linear", "cosine", "cosine_with_min_lr", "polynomial", "inverse_sqrt", "constant", "constant_with_warmup"
]
SCHEDULER_SETTINGS = {"polynomial": {"power", "lr_end"}, "cosine_with_min_lr": {"min_lr_rate"}}
Optimizer = Literal["adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor"]
ADAPTER_KEYS = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "modules_to_save"),
    *("bias", "init_lora_weights", "rank_pattern", "alpha_pattern"),
)
FULL_LEARNING_RATE = 2e-5  # As in TRL; an adapter begins at zero and takes ten times that.
HUB_DATA_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[^:]+)?(:.+)?")
Column = Literal[
    "messages", "prompt", "input", "completion", "reasoning", "system", "tools", "history", "chosen", "rejected",
    "role", "content",
]  # fmt: skip


Resume = Literal["exact", "any_versions", "never"]


class Section(BaseModel):
    """The keys that one stage may see."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    incidental: ClassVar[frozenset[str]] = frozenset()

    def determining(self) -> dict[str, Any]:
        """The keys that decide what the stage makes, as JSON: all but those that only say how to get there."""
        return self.model_dump(mode="json", exclude=set(self.incidental))


class ModelKeys(Section):
    model: str = Field("embedded:smollm2-135m-instruct", description="Base model: `embedded:…`, a directory, a hub id.")
    model_revision: str | None = Field(None, description="Hub revision of the base.")
    trust_remote_code: bool = Field(False, description="Run code that ships with the base. Off unless you know it.")


class DataKeys(Section):
    data: Names = Field([], description="Files with the training rows.")
    eval_data: Names = Field([], description="Files with the held-out rows; without them some rows are held out.")
    eval_rows: int | None = Field(None, ge=0, description="Rows to hold out without `eval_data`; default: one in ten.")
    system_prompt: str | None = Field(None, description="System prompt for rows that have none (see the next key).")
    system_prompt_for: Literal["missing", "all"] = Field("missing", description="Which rows get `system_prompt`.")
    columns: dict[Column, str] = Field({}, description="The rows' own keys, as `{prompt: text, completion: label}`.")
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(
        {}, description="The rows' own names of roles, as `{customer: user}`."
    )
    reasoning: Literal["train", "keep", "strip"] = Field(
        "train", description="What becomes of reasoning: learned, kept without being learned, or removed."
    )
    stratify_by: str | None = Field(None, description="Field of the rows, or of JSON answers, that both sides share.")
    on_bad_row: Literal["stop", "reject"] = Field("stop", description="Stop at rows that cannot be read, or go on.")
    audit: dict[str, Check] = Field({}, description="Per audit check: `gate`, `warn` or `off`.")
    seed: int = Field(42, ge=0, description="Seed of the split, the order of rows and the adapter's first weights.")


class RenderKeys(ModelKeys):
    chat_template: str | None = Field(
        None, description="`chatml`, `llama-2`, `zephyr`, `alpaca` or a file; default: the base's own."
    )
    max_length: int | None = Field(None, ge=8, description="Longest row in tokens; default: the longest there is.")
    on_long_row: Literal["stop", "reject", "truncate"] = Field("stop", description="What to do with longer rows.")


class TrainKeys(ModelKeys):
    incidental = frozenset({"resume"})

    lora_r: int = Field(16, ge=1)
    lora_alpha: float = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: str | list[str] = Field("all-linear", description="`all-linear`, or module names.")
    use_rslora: bool = False
    use_dora: bool = Field(False, description="DoRA: learn the length of each output apart from its direction.")
    modules_to_save: Names | None = Field(None, description="Modules that are trained whole and kept in the adapter.")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases are trained.")
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = Field(
        True, description="How A and B begin; only ways that leave the base as it is."
    )
    rank_pattern: dict[str, PositiveInt] = Field({}, description="Other ranks for modules, by name or expression.")
    alpha_pattern: dict[str, PositiveFloat] = Field({}, description="Other alphas for modules, likewise.")
    load_in_4bit: bool = Field(False, description="Keep the base in 4 bits (NF4, double quantization) in training.")
    load_in_8bit: bool = Field(False, description="Keep the base in 8 bits in training.")
    learning_rate: float = Field(2e-4, gt=0, description="Default where `finetuning_type` is `full`: 2e-5.")
    lr_scheduler_type: SchedulerType = "cosine"
    lr_scheduler_kwargs: dict[str, float] = Field(
        {}, description="`power` and `lr_end` of polynomial, `min_lr_rate` of cosine_with_min_lr."
    )
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    optim: Optimizer = Field("adamw_torch", description="The optimizer; 8-bit and paged ones are bitsandbytes'.")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    num_train_epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; takes the place of `num_train_epochs`.")
    per_device_train_batch_size: int = Field(4, ge=1, description="Rows per micro-batch.")
    gradient_accumulation_steps: int = Field(4, ge=1, description="Micro-batches per optimizer step.")
    gradient_checkpointing: bool = False
    use_liger_kernel: bool = Field(False, description="Liger's norms and activations in training; needs a GPU.")
    fsdp: bool = Field(False, description="With several processes: each keeps a part of the base's layers (FSDP2).")
    layout: Literal["auto", "padded", "packed", "shared_prefix"] = Field(
        "auto", description="How rows lie in a micro-batch; default: the cheapest that is exact."
    )
    bf16: bool | None = Field(None, description="Compute in bfloat16; default: where the GPU has it.")
    fp16: bool | None = Field(None, description="Compute in float16; default: on a GPU without bfloat16.")
    finetuning_type: Literal["lora", "full"] = Field(
        "lora", description="What is trained: an adapter, or every weight."
    )
    report_to: Names = Field([], description="Trackers of accelerate: `tensorboard`, `wandb`, `mlflow`, `trackio`, …")
    eval_steps: int | None = Field(None, ge=1, description="Steps between evaluations; default: four per run.")
    save_steps: int | None = Field(None, ge=1, description="Steps between checkpoints; default: eight per run.")
    resume: Resume = Field(
        "exact",
        description="Go on from what was made alike; `any_versions`: with other libraries too; `never`: begin anew.",
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Evaluations without a lower held-out loss after which training ends."
    )
    load_best_model_at_end: bool | None = Field(
        None, description="Keep the weights with the lowest held-out loss; default: where training may stop early."
    )
    sample_prompts: int = Field(2, ge=0, description="Held-out prompts answered at each evaluation.")
    canaries: int = Field(8, ge=1, description="Held-out conversations recorded for `verify`.")
    canary_tokens: int = Field(64, ge=8, description="Longest recorded answer of a canary.")
    seed: int = Field(42, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_kind(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"learning_rate": FULL_LEARNING_RATE, **data} if data.get("finetuning_type") == "full" else data

    @model_validator(mode="after")
    def _fits_full(self) -> Self:
        if not self.is_full:
            return self
        if self.bits:
            raise ValueError(f"finetuning_type: full trains every weight, and {self.bits} bits hold none; use lora")
        defaults = {name: TrainKeys.model_fields[name].default for name in ADAPTER_KEYS}
        if others := [name for name, default in defaults.items() if getattr(self, name) != default]:
            raise ValueError(f"finetuning_type: full has no adapter; leave {', '.join(others)} out")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit: load_in_8bit is set too; keep one of them")
        if self.bf16 and self.fp16:
            raise ValueError("fp16: bf16 is set too; keep one of them")
        if self.use_dora and self.bits:
            raise ValueError("use_dora: it needs a base that is not quantized; leave load_in_4bit and load_in_8bit out")
        if self.fsdp and self.is_full:
            raise ValueError("fsdp: it shards frozen weights, and finetuning_type: full has none; leave it out")
        if self.fsdp and self.bits:
            raise ValueError("fsdp: packed layers are not sharded; leave load_in_4bit and load_in_8bit out")
        if unknown := set(self.lr_scheduler_kwargs) - SCHEDULER_SETTINGS.get(self.lr_scheduler_type, set()):
            raise ValueError(f"lr_scheduler_kwargs: {self.lr_scheduler_type} has no setting {min(unknown)!r}")
        return self

    @property
    def effective_batch_size(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def is_full(self) -> bool:
        """Whether every weight is trained, and there is no adapter."""
        return self.finetuning_type == "full"

    def weights_dtype(self, computed: str) -> str:
        """The dtype that the base's weights are held in where the model computes in `computed`.

        Small steps vanish in 16 bits, so that weights that are trained are held in float32.
        """
        return "float32" if self.is_full else computed

    @property
    def bits(self) -> Bits | None:
        """The bits in which the base is kept for training; None where it is not quantized."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def keeps_best(self) -> bool:
        """Whether the weights with the lowest held-out loss are kept, not the last ones."""
        if self.load_best_model_at_end is None:
            return self.early_stopping_patience is not None
        return self.load_best_model_at_end


class PlanKeys(TrainKeys):
    memory_budget: str | None = Field(None, description="Memory to fit into, such as `24GiB`; default: what is free.")


class MergeKeys(ModelKeys):
    merge_dtype: Literal["auto", "bfloat16", "float16"] = Field("auto", description="Default: what loses less.")
    merge_into: MergeInto = Field(
        "auto",
        description="After training in few bits: into the base as stored, or as the bits give it; default: the better.",
    )


class ExportKeys(ModelKeys):
    export_formats: Names = Field(["q8_0"], description="GGUF formats to make.")
    num_ctx: int | None = Field(None, ge=64, description="Context of the served model; default: what the rows need.")
    temperature: float = Field(0.0, ge=0, description="Sampling temperature written into the Modelfile.")
    system_prompt: str | None = None
    system_prompt_for: Literal["missing", "all"] = "missing"


class VerifyKeys(ModelKeys):
    adapter_kl_limit: float = Field(1e-6, gt=0, description="Reloaded adapter, and merged in fp32, against training.")
    merged_kl_limit: float = Field(1e-3, gt=0)
    merged_top1_limit: float = Field(
        0.99,
        gt=0,
        le=1,
        description="What near ties and chance explain is taken off: see docs/decisions/011 and 012.",
    )
    gguf_kl_limit: float | None = Field(None, gt=0, description="Of every GGUF; default: one for each format.")
    gguf_top1_limit: float | None = Field(
        None, gt=0, le=1, description="Of every GGUF; default: one for formats of 8 bits and more."
    )
    gguf_clear_top1_limit: float | None = Field(
        None, gt=0, le=1, description="The same where the first choice is clearly ahead."
    )


class EvaluateKeys(ModelKeys):
    evaluate_rows: int = Field(200, ge=0, description="Held-out rows to answer, at most.")
    max_new_tokens: int | None = Field(None, ge=1, description="Longest answer; default: 1.5 times the longest target.")
    evaluate_batch_size: int = Field(16, ge=1)
    seed: int = Field(42, ge=0)


class ReportKeys(Section):
    name: str = Field("", description="Name of the run; default: the name of the recipe or of the data file.")
    accept: Names = Field([], description="Names of failing evidence that shall not stop the run.")


S = TypeVar("S", bound=Section)


class Recipe(DataKeys, PlanKeys, RenderKeys, MergeKeys, ExportKeys, VerifyKeys, EvaluateKeys, ReportKeys):
    """All keys of a run."""

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        if not self.data:
            raise ValueError("data: no file with training rows is named")
        return self

    def section(self, keys: type[S]) -> S:
        return keys(**{name: getattr(self, name) for name in keys.model_fields})

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True, width=110)


def read_recipe(path: Path, overrides: dict[str, Any]) -> Recipe:
    """The recipe in a YAML file, with overrides laid on top; paths in it are relative to the file.

    Raises:
        RecipeError: the file is missing or no YAML mapping, a key is unknown, or a value is out of range.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(str(path), "the recipe does not exist", mend="Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), f"not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise RecipeError(str(path), f"found {type(data).__name__}", expected="a mapping of recipe keys to values")
    data = resolve_keys(data, str(path))
    for key in ("data", "eval_data"):
        if key in data:
            data[key] = [_data_beside(path, str(name)) for name in _as_list(data[key])]
    if isinstance(data.get("model"), str) and data["model"].startswith("."):
        data["model"] = str(_beside(path, data["model"]))
    template = data.get("chat_template")
    if isinstance(template, str) and (Path(template).suffix or len(Path(template).parts) > 1):
        data["chat_template"] = str(_beside(path, template))
    return build_recipe({"name": default_name(path), **data, **resolve_keys(overrides, "-o")}, str(path))


def _beside(recipe_path: Path, name: str) -> Path:
    return (recipe_path.parent / Path(name).expanduser()).resolve()


def _data_beside(recipe_path: Path, name: str) -> str:
    """A path relative to the recipe; what can only be the name of a hub data set stays as it is."""
    path = _beside(recipe_path, name)
    return name if is_hub_data_set(name) and not path.exists() else str(path)


def is_hub_data_set(name: str) -> bool:
    """Whether a name of which there is no file may be that of a hub data set: `owner/rows`, not `folder/rows.jsonl`."""
    suffix = Path(name).suffix[1:]
    is_path = bool(suffix) and not suffix.isdigit() and ":" not in name and "@" not in name
    return HUB_DATA_SET.fullmatch(name) is not None and not is_path


def default_name(path: Path) -> str:
    """`examples/triage/recipe.yaml` is the run `triage`; `rows.jsonl` is the run `rows`."""
    resolved = path.resolve()
    return resolved.parent.name if resolved.stem == "recipe" else resolved.name.split(".")[0]


def build_recipe(data: dict[str, Any], where: str) -> Recipe:
    """A recipe from keys and values; `RecipeError` names the first key that is wrong."""
    try:
        return Recipe(**resolve_keys(data, where))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in error.errors()]
        raise RecipeError(
            where, "; ".join(problems), mend="Correct the value; `tunewright run --keys` lists all keys."
        ) from None


def resolve_keys(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The same mapping with the aliases of other tools replaced; unknown and doubled keys are refused."""
    resolved: dict[str, Any] = {}
    for key, value in data.items():
        name = ALIASES.get(key, key)
        if name not in Recipe.model_fields:
            raise unknown_key(str(key), where)
        if name in resolved:
            raise RecipeError(where, f"{key!r} and another key both set {name!r}", mend="Keep one of them.")
        resolved[name] = value
    return resolved


def unknown_key(key: str, where: str) -> RecipeError:
    known = [*Recipe.model_fields, *ALIASES]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    expected = f"{ALIASES.get(near[0], near[0])!r}" if near else ""
    mend = "Correct the key." if near else "`tunewright run --keys` lists all keys."
    return RecipeError(where, f"unknown recipe key {key!r}", expected=expected, mend=mend)


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` from the command line; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError("-o", f"found {text!r}", expected="key=value")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        return key.strip(), value
