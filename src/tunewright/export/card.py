"""The model card, `export/README.md`: what was trained from what, the prompt, how to serve it, and where the proof is.

In go the run's manifests and the files of the export; out comes Markdown with the front matter that the hub reads.
Always: no figure stands in it that the run did not measure.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunewright.artifacts import FileRecord

HUB_NAMES = {"embedded:smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
EMBEDDED_NOTE = "The base is the copy embedded in tunewright, whose weights were dequantized once from a 4-bit GGUF."
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
TRAINING_FIGURES = {
    "optimizer_steps": "optimizer steps",
    "trainable_parameters": "trainable parameters",
    "first_loss": "training loss, first step",
    "final_loss": "training loss, last step",
    "best_eval_loss": "best evaluation loss",
}
ADAPTER_KEYS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rank-stabilized",
    "target_modules": "modules",
}
DATA_FIGURES = {
    "rows_in": "rows read",
    "kept": "kept as they were",
    "repaired": "repaired",
    "rejected": "rejected",
    "train_rows": "rows trained on",
    "eval_rows": "rows held out",
}


@dataclass(frozen=True)
class Card:
    """What the card is made from.

    Attributes:
        name: the run's name.
        model: the base, as the recipe names it.
        license: as the base states it, or None.
        data_facts, train_facts, adapter_config: what the earlier stages recorded; empty where they did not run.
        example: a rendered prompt.
        system: the system prompt to serve with, or None.
        num_ctx: context in tokens.
        has_modelfile: whether there is a Modelfile.
        files: the exported files by name, the GGUF to serve first.
    """

    name: str
    model: str
    license: str | None
    data_facts: dict[str, Any]
    train_facts: dict[str, Any]
    adapter_config: dict[str, Any]
    example: str
    system: str | None
    num_ctx: int
    has_modelfile: bool
    files: dict[str, FileRecord]

    @property
    def gguf_name(self) -> str:
        return next(name for name in self.files if name.endswith(".gguf"))

    def as_text(self) -> str:
        sections = [
            self._front_matter(),
            f"# {self.name}\n\nA fine-tune of `{base_name(self.model)}`{self._way()}, and "
            "converted to GGUF with llama.cpp's own converter. Made with tunewright.",
            EMBEDDED_NOTE if self.model in HUB_NAMES else "",
            self._figures("Data", DATA_FIGURES, self.data_facts),
            self._training(),
            self._prompt(),
            self._serving(),
            self._files(),
            "## Proof\n\nEvery check that this run made, with its figure and its limit, stands in `certificate.json` "
            "and, for people, in `report.html`, both in the run directory.",
        ]
        return "\n\n".join(section for section in sections if section) + "\n"

    @property
    def is_full(self) -> bool:
        """Whether every weight was trained."""
        return self.train_facts.get("finetuning_type") == "full"

    def _way(self) -> str:
        """How the base was tuned, as it goes on in a sentence."""
        if self.is_full:
            return ", every weight trained and rounded once to 16 bits"
        return " with LoRA, merged into the 16-bit base"

    def _front_matter(self) -> str:
        data: dict[str, Any] = {}
        if not is_local(self.model):
            data["base_model"] = base_name(self.model)
        if self.license:
            data["license"] = self.license
        tags = ["gguf", *([] if self.is_full else ["lora"]), "conversational", "tunewright"]
        data |= {"pipeline_tag": "text-generation", "tags": tags}
        return f"---\n{yaml.safe_dump(data, sort_keys=False)}---"

    @staticmethod
    def _figures(title: str, labels: dict[str, str], facts: dict[str, Any]) -> str:
        rows = [f"| {label} | {figure(facts[key])} |" for key, label in labels.items() if facts.get(key) is not None]
        return "\n".join([f"## {title}\n", "| | |", "|---|---|", *rows]) if rows else ""

    def _training(self) -> str:
        table = self._figures("Training", ADAPTER_KEYS | TRAINING_FIGURES, self.adapter_config | self.train_facts)
        versions = self.train_facts.get("versions") or {}
        if table and versions:
            table += "\n\nWith " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
        return table

    def _prompt(self) -> str:
        intro = "## Prompt\n\n"
        if self.system:
            intro += f"Serve it with the system prompt that it was trained with:\n\n{fenced(self.system)}\n\n"
        return f"{intro}The model was trained on, and expects, exactly this form:\n\n{fenced(self.example)}"

    def _serving(self) -> str:
        ways = ["tunewright serve RUN   # the run directory, behind an OpenAI-compatible server on this machine"]
        if self.has_modelfile:
            ways.append(f"ollama create {self.name} -f Modelfile && ollama run {self.name}")
        ways.append(f"llama-server -m {self.gguf_name} --jinja --ctx-size {self.num_ctx}")
        python = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            'tokenizer = AutoTokenizer.from_pretrained("merged")  # the run directory holds it\n'
            'model = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")'
        )
        return f"## Serve\n\n{fenced(chr(10).join(ways), 'sh')}\n\n{fenced(python, 'python')}"

    def _files(self) -> str:
        rows = [f"| `{name}` | {record.bytes} | `{record.sha256}` |" for name, record in self.files.items()]
        return "\n".join(["## Files\n", "| file | bytes | SHA-256 |", "|---|---|---|", *rows])


def is_local(model: str) -> bool:
    """Whether the recipe names a directory, whose path means nothing to anyone else."""
    return model not in HUB_NAMES and (model.startswith((".", "/", "~")) or Path(model).expanduser().is_dir())


def base_name(model: str) -> str:
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


def stated_license(base_directory: Path) -> str | None:
    """The licence that the base's own files state: the README's front matter, else a LICENSE with Apache's text."""
    readme, license_file = base_directory / "README.md", base_directory / "LICENSE"
    if readme.is_file() and (match := FRONT_MATTER.match(readme.read_text(encoding="utf-8", errors="replace"))):
        try:
            data = yaml.safe_load(match.group(1))
        except yaml.YAMLError:
            data = None
        if isinstance(data, dict) and isinstance(data.get("license"), str):
            return str(data["license"])
    if license_file.is_file():
        text = license_file.read_text(encoding="utf-8", errors="replace")[:400]
        if "Apache License" in text and "Version 2.0" in text:
            return "apache-2.0"
    return None
