"""What a base is made of, without its weights: its modules on the meta device, and which tensor of the checkpoint is
which parameter.

Names differ where transformers keeps weights otherwise than the checkpoint does: it renames modules, and it stacks the
experts of a mixture that lie in the checkpoint one by one. Both come from transformers' own table of conversions, so
that nothing here knows a family of models.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.errors import MergeError, ModelError


@dataclass(frozen=True)
class Place:
    """Where a tensor of the checkpoint goes.

    Attributes:
        parameter: the model's parameter.
        expert: its place in the parameter's first axis, if the parameter stacks the experts.
        part, parts: which of several tensors that are joined along the next axis it is.
        unknown: the conversion, if it is one that cannot be followed.
    """

    parameter: str
    expert: int | None = None
    part: int = 0
    parts: int = 1
    unknown: str = ""


@dataclass
class Outline:
    """The model on the meta device and the place of each tensor of its checkpoint.

    Attributes:
        embedding, head: names of the input embedding's and the output head's weight; None where there is none.
        tied: whether they are one parameter.
    """

    model: Any
    embedding: str | None
    head: str | None
    tied: bool
    places: dict[str, Place] = field(default_factory=dict)


def read_outline(base: Path, names: list[str], vocab_size: int | None = None) -> Outline:
    """The outline of a base whose checkpoint has tensors of these names.

    Args:
        vocab_size: rows of the embedding, where they are not what the base's `config.json` says.

    Raises:
        ModelError: transformers does not know the architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(base), local_files_only=True)
        text = config.get_text_config()
        if vocab_size is not None:
            text.vocab_size = vocab_size
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(str(base), f"transformers cannot build this model ({str(error).splitlines()[0]})") from None
    embedding, head = (
        _weight_name(model, model.get_input_embeddings()),
        _weight_name(model, model.get_output_embeddings()),
    )
    tied = bool(getattr(config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False))
    return Outline(model, embedding, head, tied and head is not None, _places(model, names))


def _weight_name(model: Any, module: Any) -> str | None:
    return next((f"{name}.weight" for name, other in model.named_modules() if other is module), None)


def _places(model: Any, names: list[str]) -> dict[str, Place]:
    """The place of each name, found the way transformers finds it when it loads a checkpoint."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    parameters, prefix = model.state_dict(), model.base_model_prefix
    places: dict[str, Place] = {}
    counts: dict[tuple[str, str], int] = {}
    for name in sorted(names, key=dot_natural_key):
        parameter, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
        if parameter not in parameters and name in parameters:
            parameter, pattern = rename_source_key(name, [], [], prefix, parameters)
        if pattern is None:
            places[name] = Place(parameter)
            continue
        expert = counts.get((parameter, pattern), 0)
        counts[parameter, pattern] = expert + 1
        places[name] = _converted(parameter, by_pattern[pattern], pattern, expert)
    return places


def _converted(parameter: str, converter: Any, pattern: str, expert: int) -> Place:
    """The place of a tensor that a conversion moves: stacked experts, of which several may be joined."""
    operations = [(type(operation).__name__, getattr(operation, "dim", None)) for operation in converter.operations]
    stacked, joined = ("MergeModulelist", 0), ("Concatenate", 1)
    parts = len(converter.source_patterns)
    if len(converter.target_patterns) == 1 and operations == ([stacked] if parts == 1 else [stacked, joined]):
        return Place(parameter, expert, converter.source_patterns.index(pattern), parts)
    return Place(parameter, unknown=" and ".join(name for name, _ in operations))


def require_known(name: str, place: Place) -> None:
    """Raise `MergeError` if a tensor that the adapter changes goes through a conversion that cannot be followed."""
    if place.unknown:
        raise MergeError(
            name,
            f"transformers loads it through {place.unknown}, which the merge cannot follow back",
            mend="Save the base with transformers in the layout that it has in memory, or leave this module out.",
        )
