"""The licence of a base, as the base itself states it.

In goes what the recipe names; out come the keys of a card's front matter: `license`, and beside `other` also
`license_name` and `license_link`. Nothing is guessed: where the base states nothing, nothing comes out.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tunewright.errors import EnvironmentLackError, ModelError, ModelNotFoundError
from tunewright.models.base import find_base
from tunewright.recipe import ModelKeys

FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
KEYS = ("license", "license_name", "license_link")
CARD, LICENSE = "README.md", "LICENSE"


def base_license(config: ModelKeys) -> dict[str, str]:
    """The base's licence; empty where it states none or is no longer at hand: the export does not need the base."""
    try:
        directory = find_base(config).path
    except (ModelNotFoundError, ModelError, EnvironmentLackError):
        return {}
    if not (directory / CARD).is_file() and directory.parent.name == "snapshots":
        fetch_card(config.model, directory.name)
    return stated_license(directory)


def fetch_card(name: str, commit: str) -> None:
    """Put the card of a base from the hub beside its weights, if it has one and the hub answers."""
    from huggingface_hub import hf_hub_download

    with suppress(Exception):  # A card is no part of the model: whatever keeps it away, the licence is unknown.
        hf_hub_download(name, CARD, revision=commit)


def stated_license(directory: Path) -> dict[str, str]:
    """What the front matter of the base's card states, else what a LICENSE with Apache's text says."""
    stated = front_matter(directory / CARD)
    found = {key: str(stated[key]) for key in KEYS if isinstance(stated.get(key), str)}
    if "license" in found:
        return found
    path = directory / LICENSE
    text = path.read_text(encoding="utf-8", errors="replace")[:400] if path.is_file() else ""
    return {"license": "apache-2.0"} if "Apache License" in text and "Version 2.0" in text else {}


def front_matter(card: Path) -> dict[str, Any]:
    """The metadata of a card; empty where there is no card, or none in it that can be read."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    match = FRONT_MATTER.match(text)
    try:
        data = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError:
        data = None
    return data if isinstance(data, dict) else {}
