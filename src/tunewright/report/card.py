"""The model card: what was trained from what, how good it is, the proof, the prompt, how to serve it.

In go what a run holds and the place where the card will lie; out comes Markdown with the front matter that the hub
reads. Always: no figure stands in it that the run did not measure, no row of the data, and no path of this machine.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunewright.artifacts import FileRecord
from tunewright.chat.conversation import Message
from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import trained_template
from tunewright.errors import ArtifactError, RenderError
from tunewright.recipe import is_hub_data_set
from tunewright.report import numbers
from tunewright.report.contents import Contents
from tunewright.report.head import metric_label, verdict_sentence

CARD_NAME = "README.md"
HUB_NAMES = {"embedded:smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
EMBEDDED_NOTE = "The base is the copy embedded in tunewright, whose weights were dequantized once from a 4-bit GGUF."
UNKNOWN_LICENSE = "unknown: look it up"
EXAMPLE_QUESTION = "(the user's message)"
TRAINING_FIGURES = {
    "optimizer_steps": "optimizer steps",
    "trainable_parameters": "trainable parameters",
    "first_loss": "training loss, first step",
    "final_loss": "training loss, last step",
    "best_eval_loss": "best evaluation loss",
}
RECIPE_KEYS = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "load_in_4bit"),
    *("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "optim", "seed"),
)
DATA_FIGURES = {
    "rows_in": "rows read",
    "kept": "kept as they were",
    "repaired": "repaired",
    "rejected": "rejected",
    "train_rows": "rows trained on",
    "eval_rows": "rows held out",
}
Row = Sequence[str]


@dataclass(frozen=True)
class Place:
    """Where the card lies.

    Attributes:
        files: what lies beside it, by path.
        repository: `OWNER/NAME` on a hub; empty in the run's own directory.
    """

    files: Mapping[str, FileRecord]
    repository: str = ""

    def gguf(self, preferred: str = "") -> str | None:
        """The GGUF of the preferred format, else the first there is."""
        found = [path for path in self.files if path.endswith(".gguf")]
        return next((path for path in found if path.endswith(f"model-{preferred}.gguf")), found[0] if found else None)

    @property
    def library(self) -> str:
        """What loads the repository's root."""
        names = {"config.json": "transformers", "adapter_config.json": "peft"}
        return next((library for name, library in names.items() if name in self.files), "gguf")


def place_in_run(contents: Contents) -> Place:
    return Place(contents.manifest("export").files)


def card_text(contents: Contents, place: Place) -> str:
    """The whole card; parts whose stage has not finished are left out."""
    sections = [readable(part, contents, place) for part in PARTS]
    return "\n\n".join(section for section in sections if section) + "\n"


def readable(part: "Part", contents: Contents, place: Place) -> str:
    """A part of the card, or a sentence where its stage's files are damaged; the report's own gates name those."""
    try:
        return part(contents, place)
    except (ArtifactError, KeyError, TypeError, ValueError, AttributeError):
        return f"*{part.__name__.capitalize()}: what the run wrote of it could not be read.*"


def front_matter(contents: Contents, place: Place) -> str:
    stated: dict[str, Any] = {}
    if not is_local(model_of(contents)):
        stated["base_model"] = base_name(contents)
    stated |= license_of(contents)
    if named := hub_data_sets(contents.recipe.get("data") or []):
        stated["datasets"] = named
    kinds = [*(["gguf"] if place.gguf() else []), *([] if is_full(contents) else ["lora"])]
    tags = [*kinds, "conversational", "tunewright"]
    stated |= {"pipeline_tag": "text-generation", "library_name": place.library, "tags": tags}
    return f"---\n{yaml.safe_dump(stated, sort_keys=False)}---"


def hub_data_sets(names: list[str]) -> list[str]:
    """The data sets among the recipe's rows that others can find, without revisions and files."""
    return sorted({re.split("[@:]", name)[0] for name in names if is_hub_data_set(name) and not Path(name).exists()})


def heading(contents: Contents, place: Place) -> str:
    name, base = contents.certificate["name"], base_name(contents)
    made = f"`{base}` with every weight trained" if is_full(contents) else f"A fine-tune of `{base}` with LoRA"
    made = f"# {name}\n\n{made}, proven step by step. Made with tunewright."
    note = f"\n\n{EMBEDDED_NOTE}" if model_of(contents) in HUB_NAMES else ""
    return f"{made}{note}\n\n**{verdict_sentence(contents.certificate)}**"


def is_full(contents: Contents) -> bool:
    """Whether every weight was trained."""
    return bool(contents.facts("train").get("finetuning_type") == "full")


def facts(contents: Contents, place: Place) -> str:
    license_name = license_of(contents)
    said = license_name.get("license_name") or license_name.get("license") or UNKNOWN_LICENSE
    template = contents.facts("render").get("template_sha256")
    rows = [
        ("base", f"`{base_name(contents)}`"),
        ("licence of the base", said),
        ("recipe, SHA-256", f"`{contents.certificate['recipe_sha256']}`"),
        ("chat template, SHA-256", f"`{template}`" if template else ""),
    ]
    return "\n".join(["| | |", "|---|---|", *(line(row) for row in rows if row[1])])


def license_of(contents: Contents) -> dict[str, str]:
    return dict(contents.facts("export").get("license") or {})


def data(contents: Contents, place: Place) -> str:
    found = contents.facts("data")
    rows: list[Row] = [(label, figure(found[key])) for key, label in DATA_FIGURES.items() if found.get(key) is not None]
    made = contents.manifests["data"].files if "data" in contents.manifests else {}
    hashes = {"data/train.jsonl": "rows trained on, SHA-256", "data/eval.jsonl": "rows held out, SHA-256"}
    rows += [(label, f"`{made[path].sha256}`") for path, label in hashes.items() if path in made]
    return table("Data", ("", ""), rows)


def training(contents: Contents, place: Place) -> str:
    train, recipe = contents.facts("train"), contents.recipe
    if not train:
        return ""
    keys = [key for key in RECIPE_KEYS if not (is_full(contents) and "lora" in key)]
    rows = [(key, figure(recipe[key])) for key in keys if recipe.get(key) not in (None, False)]
    rows += [(label, figure(train[key])) for key, label in TRAINING_FIGURES.items() if train.get(key) is not None]
    versions = train.get("versions") or {}
    text = table("Training", ("", ""), rows)
    with_versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{text}\n\nWith {with_versions}." if with_versions else text


def scores(contents: Contents, place: Place) -> str:
    """Every metric of every system with its 95 % interval."""
    if "evaluate" not in contents.manifests:
        return ""
    results = contents.json("evaluate", "evaluate/results.json")
    metrics = results["metrics"]
    systems = list(dict.fromkeys(system for metric in metrics for system in metric["scores"]))
    names = {"base": "base", "merged": "tuned"}
    rows = [
        [metric_label(metric["name"]), *(interval(metric["scores"].get(system)) for system in systems)]
        for metric in metrics
    ]
    text = table("Scores", ("metric", *(names.get(system, system) for system in systems)), rows)
    note = f"In percent, over {results['rows']} held-out rows, with 95 % bootstrap intervals."
    return f"{text}\n\n{note}" if text else ""


def interval(score: Mapping[str, float] | None) -> str:
    if score is None:
        return numbers.NONE
    value, low, high = (100 * score[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def formats(contents: Contents, place: Place) -> str:
    """What each GGUF costs and is good for."""
    rows = [
        (
            f"`{each['name']}`",
            numbers.size(each["bytes"]),
            numbers.decimal(each["mean_kl"]),
            numbers.percent(each["top1"]),
            interval(each["score"]),
            each["use"],
        )
        for each in contents.certificate["formats"]
    ]
    return table("GGUF formats", ("format", "size", "mean KL", "top-1", "task score", "use"), rows)


def parity(contents: Contents, place: Place) -> str:
    if "verify" not in contents.manifests:
        return ""
    engines = contents.json("verify", "verify.json")["engines"]
    rows = [
        (
            each["engine"],
            numbers.percent(each["prompt_ids_equal"]),
            limited(numbers.percent(each["top1_agreement"]), "≥", each["limits"].get("top1_agreement")),
            limited(numbers.decimal(each["mean_kl"]), "≤", each["limits"].get("mean_kl")),
        )
        for each in engines
    ]
    text = table("Parity", ("artifact", "prompt ids equal", "top-1", "mean KL, nats"), rows)
    note = "Each artifact against what the trained model said to held-out prompts while it was in memory."
    return f"{text}\n\n{note}" if text else ""


def limited(value: str, sign: str, limit: float | None) -> str:
    return value if limit is None else f"{value} ({sign} {limit:.3g})"


def prompt(contents: Contents, place: Place) -> str:
    """The form that the model was trained on; no row of the data is shown."""
    if "render" not in contents.manifests:
        return ""
    system = served(contents).get("system")
    intro = "## Prompt\n\n"
    if system:
        intro += f"Serve it with the system prompt that it was trained with:\n\n{fenced(system)}\n\n"
    example = example_prompt(trained_template(contents.run), system)
    return f"{intro}The model was trained on, and expects, exactly this form:\n\n{fenced(example)}"


def example_prompt(template: ChatTemplate, system: str | None) -> str:
    """A prompt as the model sees it, up to where its answer begins."""
    question = Message("user", EXAMPLE_QUESTION)
    if system is not None:
        try:
            return template.render([Message("system", system), question], True)
        except RenderError:
            pass  # a template that takes no system message
    return template.render([question], True)


def served(contents: Contents) -> dict[str, Any]:
    return dict(contents.facts("export").get("modelfile") or {})


def serving(contents: Contents, place: Place) -> str:
    ways = []
    if place.repository:
        ways.append(f"hf download {place.repository} --local-dir model && cd model")
    else:
        ways.append("tunewright serve RUN   # the run directory, behind an OpenAI-compatible server on this machine")
    if modelfile := next((path for path in place.files if path.endswith("Modelfile")), None):
        name = contents.certificate["name"]
        ways.append(f"ollama create {name} -f {modelfile} && ollama run {name}")
    exported = contents.facts("export")
    if gguf := place.gguf((exported.get("formats") or [""])[0]):
        ways.append(f"llama-server -m {gguf} --jinja --ctx-size {exported.get('num_ctx')}")
    blocks = [(ways, "sh"), (python_lines(place), "python")]
    return "\n\n".join(["## Serve", *(fenced("\n".join(lines), language) for lines, language in blocks if lines)])


def python_lines(place: Place) -> list[str]:
    where = place.repository or "merged"
    if place.library == "peft":
        loader = "AutoPeftModelForCausalLM"
        return [f"from peft import {loader}", f'model = {loader}.from_pretrained("{where}")']
    if place.repository and place.library == "gguf":
        return []
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'tokenizer = AutoTokenizer.from_pretrained("{where}")',
        f'model = AutoModelForCausalLM.from_pretrained("{where}", dtype="auto")',
    ]


def proof(contents: Contents, place: Place) -> str:
    said = "Every check that the run made, with its figure and its limit, stands in `certificate.json`"
    if place.repository:
        return f"## Proof\n\n{said}, beside the SHA-256 of every artifact."
    return f"## Proof\n\n{said} and, for people, in `report.html`, both in the run directory."


def files(contents: Contents, place: Place) -> str:
    rows = [(f"`{path}`", str(record.bytes), f"`{record.sha256}`") for path, record in place.files.items()]
    return table("Files", ("file", "bytes", "SHA-256"), rows)


def table(title: str, head: Row, rows: Sequence[Row]) -> str:
    return "\n".join([f"## {title}\n", line(head), "|---" * len(head) + "|", *map(line, rows)]) if rows else ""


def line(cells: Row) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def model_of(contents: Contents) -> str:
    return str(contents.recipe.get("model") or contents.facts("train").get("base") or "")


def is_local(model: str) -> bool:
    """Whether the recipe names a directory, whose path means nothing to anyone else."""
    return model not in HUB_NAMES and (model.startswith((".", "/", "~")) or Path(model).expanduser().is_dir())


def base_name(contents: Contents) -> str:
    model = model_of(contents)
    return HUB_NAMES.get(model, Path(model).name if is_local(model) else model)


def figure(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


Part = Callable[[Contents, Place], str]
PARTS: tuple[Part, ...] = (
    *(front_matter, heading, facts, data, training, scores, formats, parity, prompt, serving, files, proof),
)
