"""The Modelfile of a run: is it still what the export wrote, and if not, what was changed in it?"""

import re
from typing import Any

from tunewright.artifacts import RunDirectory
from tunewright.evidence import Evidence, equal

NAME = "export/Modelfile"
# An instruction and its text, which may go over several lines between triple quotes.
INSTRUCTION = re.compile(
    r'^(?P<name>FROM|TEMPLATE|SYSTEM|PARAMETER \w+) (?:"""(?P<quoted>.*?)"""|(?P<plain>[^\n]*))$',
    re.DOTALL | re.MULTILINE,
)


def check_modelfile(run: RunDirectory) -> Evidence:
    """That the Modelfile, if one was written, is as it was; else what it says otherwise."""
    manifest = run.require_manifest("export")
    differences = [text for text in run.differences(manifest) if text.startswith(f"{NAME} ")]
    detail = "The Modelfile is what was written."
    if differences:
        path = run / NAME
        told = (
            explain(path.read_text(encoding="utf-8"), manifest.facts.get("modelfile") or {}) if path.is_file() else []
        )
        detail = f"{'; '.join(told or differences)}. Write it again with `tunewright export --again`."
    return equal("modelfile_same", not differences, True, detail)


def explain(text: str, written: dict[str, Any]) -> list[str]:
    """What the Modelfile says otherwise than `written`, the facts of the export."""
    found: dict[str, list[str]] = {}
    for part in INSTRUCTION.finditer(text):
        found.setdefault(part["name"], []).append(part["plain"] if part["quoted"] is None else part["quoted"])
    told = []
    if found.get("SYSTEM", []) != ([written["system"]] if written.get("system") else []):
        told.append("its SYSTEM is another than was trained" if "SYSTEM" in found else "the system prompt is dropped")
    if missing := [token for token in written.get("stop", []) if token not in found.get("PARAMETER stop", [])]:
        told.append(f"the stop token {', '.join(missing)} is missing")
    for name in ("num_ctx", "temperature", "repeat_penalty"):
        values = found.get(f"PARAMETER {name}", ["nothing"])
        if name in written and values != [f"{written[name]:.12g}"]:
            told.append(f"{name} is {', '.join(values)}, written was {written[name]:.12g}")
    return told or ["its TEMPLATE is not the one that was proven"]
