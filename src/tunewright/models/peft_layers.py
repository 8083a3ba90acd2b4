"""What peft makes of an adapter: attach it to a model that has no weights, and read each layer off.

In go a model on the meta device and an adapter; out come, by parameter of the model, the changes and the replacements.
Always: the adapter's keys are exactly those that peft would have saved for its configuration.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

from tunewright.errors import MergeError
from tunewright.models.adapter import CONFIG_FILE, Adapter
from tunewright.models.merge_changes import BiasLora, Change, Dora, EmbeddingLora, ExpertLora, Lora, TokenRows
from tunewright.models.whole import PREFIX

NAME = "default"
OTHER_BASE = "Merge into the base it was trained on."
STACKED = (
    "Experts are stacked in transformers 5: load the adapter with peft on its base and save it again, then merge that."
)


@dataclass
class AdapterLayers:
    """What the adapter does to the model's parameters.

    Attributes:
        changes: by parameter.
        replaced: the key of the adapter's tensor that takes a parameter's place; a change then acts on that.
    """

    changes: dict[str, Change] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)

    def reaches(self, parameter: str) -> bool:
        return parameter in self.changes or parameter in self.replaced

    def keys(self, parameter: str) -> tuple[str, ...]:
        """The adapter's keys that the parameter is made from."""
        change, key = self.changes.get(parameter), self.replaced.get(parameter)
        return (*(change.keys if change else ()), *((key,) if key else ()))

    def copy(self, parameter: str, other: str) -> None:
        """Let a parameter become what another one becomes."""
        for table in (self.changes, self.replaced):
            _copy_entry(table, parameter, other)


def _copy_entry(table: dict[str, Any], parameter: str, other: str) -> None:
    table.pop(parameter, None)
    if other in table:
        table[parameter] = table[other]


def read_layers(model: Any, adapter: Adapter) -> AdapterLayers:
    """What the adapter does to `model`, which is on the meta device and is wrapped by peft in the course.

    Raises:
        MergeError: a key is left over or missing on either side, a shape does not fit, or a layer is of a kind that
            cannot be merged; the message names it.
    """
    if adapter.is_whole:
        return _read_whole(model, adapter)
    parameters = set(model.state_dict())
    attached = _attach(model, adapter)
    layers = AdapterLayers()
    for name, module in attached.base_model.model.named_modules():
        _read_module(name, module, layers)
    expected = _expected_shapes(attached)
    _read_other_keys(adapter, expected, parameters, layers)
    _validate_keys(adapter, expected, layers)
    return layers


def _read_whole(model: Any, adapter: Adapter) -> AdapterLayers:
    """Every parameter is replaced; one that stands in the model under several names has one key."""
    keys: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    layers = AdapterLayers()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = keys.setdefault(id(parameter), f"{PREFIX}{name}")
        shapes[key] = tuple(parameter.shape)
        layers.replaced[name] = key
    _validate_keys(adapter, shapes, layers)
    return layers


def _attach(model: Any, adapter: Adapter) -> Any:
    """`model` with the adapter's layers, without their weights."""
    from peft import LoraConfig, get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    where = str(adapter.directory / CONFIG_FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice on training, which is over
        try:
            config = LoraConfig.from_pretrained(str(adapter.directory))
            config.init_lora_weights = True
            return get_peft_model(model, config, adapter_name=NAME, low_cpu_mem_usage=True)
        except (NoMatchingPeftModuleError, ValueError, TypeError, AttributeError) as error:
            raise MergeError(
                where, f"it does not fit this base ({str(error).splitlines()[0]})", mend=OTHER_BASE
            ) from None


def _read_module(name: str, module: Any, layers: AdapterLayers) -> None:
    """Note what one module of the attached model changes."""
    from peft.tuners.lora.layer import Embedding, Linear, LoraLayer, ParamWrapper
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, TrainableTokensWrapper):
        if not module.token_adapter.tied_adapter:
            tokens = tuple(int(token) for token in module.token_adapter.token_indices[NAME])
            key = f"{PREFIX}{name}.token_adapter.trainable_tokens_delta"
            layers.changes[f"{plain(name)}.weight"] = TokenRows(key, tokens)
    elif isinstance(module, ModulesToSaveWrapper):
        for parameter in module.modules_to_save[NAME].state_dict():
            layers.replaced[f"{plain(name)}.{parameter}"] = f"{PREFIX}{name}.{parameter}"
    elif isinstance(module, LoraLayer):
        if not isinstance(module, Linear | Embedding | ParamWrapper):
            raise MergeError(name, f"the adapter has a {type(module).__name__} there, which cannot be merged")
        weight = getattr(module, "parameter_name", "weight")
        layers.changes[f"{plain(name)}.{weight}"] = _change(name, module)
        if module.lora_bias.get(NAME):
            key = f"{PREFIX}{name}.lora_B.bias"
            layers.changes[f"{plain(name)}.bias"] = BiasLora(key, module.scaling[NAME])


def _change(name: str, module: Any) -> Change:
    from peft.tuners.lora.layer import Embedding, ParamWrapper

    keys, scale = f"{PREFIX}{name}.lora", float(module.scaling[NAME])
    if isinstance(module, ParamWrapper) and module.num_experts > 1:
        transposed = not module._did_swap_in_out_features
        return ExpertLora(f"{keys}_A.weight", f"{keys}_B.weight", scale, module.num_experts, transposed)
    lora: Lora | EmbeddingLora = Lora(f"{keys}_A.weight", f"{keys}_B.weight", scale, bool(module.fan_in_fan_out))
    if isinstance(module, Embedding):
        lora = EmbeddingLora(f"{keys}_embedding_A", f"{keys}_embedding_B", scale)
    variant = type(module.lora_variant[NAME]).__name__ if NAME in module.lora_variant else ""
    if not variant:
        return lora
    if not variant.startswith("Dora"):
        raise MergeError(name, f"the adapter uses the variant {variant}, which cannot be merged")
    per_column = isinstance(lora, EmbeddingLora) or lora.transposed
    return Dora(lora, f"{keys}_magnitude_vector", per_column)


def plain(name: str) -> str:
    """A module's or parameter's name without the layers that peft put around it."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _expected_shapes(attached: Any) -> dict[str, tuple[int, ...]]:
    """The keys that peft saves for this configuration, with their shapes."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = get_peft_model_state_dict(attached, adapter_name=NAME, save_embedding_layers=False)
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _read_other_keys(
    adapter: Adapter, expected: dict[str, tuple[int, ...]], parameters: set[str], layers: AdapterLayers
) -> None:
    """Note parameters that the adapter holds whole beside its layers: biases, and embeddings of another size."""
    used = {key for change in layers.changes.values() for key in change.keys} | set(layers.replaced.values())
    for key in adapter.tensors:
        parameter = plain(key.removeprefix(PREFIX))
        if key in used or not key.startswith(PREFIX):
            continue
        if parameter in parameters and (key in expected or parameter.endswith(".weight")):
            layers.replaced[parameter] = key


def _validate_keys(adapter: Adapter, expected: dict[str, tuple[int, ...]], layers: AdapterLayers) -> None:
    """Raise `MergeError` that names a key that is left over, is missing, or has another shape."""
    used = set(layers.replaced.values())
    for key in adapter.tensors:
        if key not in expected and key not in used:
            raise MergeError(
                adapter.where,
                f"it changes {_changed_by(key)!r}, which the base has not ({key})",
                mend=STACKED if ".experts." in key else OTHER_BASE,
            )
    for key, shape in expected.items():
        if key not in adapter.tensors:
            raise MergeError(
                adapter.where, f"{key!r} is missing", expected="a tensor for each layer", mend="Train again."
            )
        found = adapter.tensors[key].shape
        if found != shape:
            text = f"{key} {list(found)} does not fit: its layer of the base takes {list(shape)}"
            raise MergeError(adapter.where, text, mend=OTHER_BASE)


def _changed_by(key: str) -> str:
    """The parameter that a key is about, as far as its name tells."""
    module, found, _ = plain(key.removeprefix(PREFIX)).partition(".lora_")
    return f"{module}.weight" if found else module
