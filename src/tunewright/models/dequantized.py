"""A base as it was trained over in fewer bits: its linear layers packed and unpacked again, one at a time.

In: stored weights, and what training recorded of each layer that it kept packed. Out: the weights that the adapter was
trained over, and which of the two bases, this one or the stored one, an adapter is merged into.
Always: bitsandbytes' own functions pack and unpack, in the dtype and on the kind of device that training had; what they
pack has the hash that training recorded, or is refused by name.
"""

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.artifacts import RunDirectory, read_json, write_json
from tunewright.errors import MergeError
from tunewright.evidence import Evidence, fact
from tunewright.models.peft_layers import plain
from tunewright.models.quantized import pack, packed_sha256, quantized_layers, unpack
from tunewright.recipe import Bits, MergeInto

QUANTIZED_BASE = "quantized_base.json"
# A layer is packed whole, since its scales are packed by their mean: one at a time, so that memory holds few.
PACKING = threading.Lock()


@dataclass(frozen=True)
class QuantizedBase:
    """What training kept packed.

    Attributes:
        bits: how many a weight takes.
        dtype: what the weights were packed from, and are unpacked to.
        device: where they were packed; another kind of device may round otherwise.
        layers: SHA-256 of each packed weight, by the parameter's name.
    """

    bits: Bits
    dtype: str
    device: str
    layers: dict[str, str]

    def dequantized(self, parameter: str, weight: torch.Tensor) -> torch.Tensor:
        """What training computed with in place of a stored weight; a tensor of its own in float32, on the CPU.

        Raises:
            MergeError: it does not come out as in training.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MergeError(parameter, "it was packed on a GPU, and there is none here", mend=ELSEWHERE)
        dtype = getattr(torch, self.dtype)
        with PACKING, torch.no_grad():
            packed = pack(weight.to(dtype), self.bits, self.device)
            if packed_sha256(packed) != self.layers[parameter]:
                raise MergeError(
                    parameter, f"packed into {self.bits} bits, it is not what was trained over", mend=ELSEWHERE
                )
            return unpack(packed, dtype).to("cpu", torch.float32)


ELSEWHERE = "Merge on the machine that trained, with its libraries, or set merge_into: original."


def record_quantized(model: Any, bits: Bits, dtype: str, device: str) -> QuantizedBase:
    """What of a trained model is packed."""
    packed = {id(layer) for layer in quantized_layers(model)}
    modules = model.get_base_model().named_modules()
    layers = {f"{plain(name)}.weight": packed_sha256(each.weight) for name, each in modules if id(each) in packed}
    return QuantizedBase(bits, dtype, device, layers)


@dataclass(frozen=True)
class ChosenBase:
    """The base that an adapter is merged into.

    Attributes:
        into: `original`, as it is stored, or `dequantized`.
        reason: a sentence or two; empty where there was nothing to choose.
        quantized: what was packed, if that is taken.
    """

    into: MergeInto
    reason: str = ""
    quantized: QuantizedBase | None = None

    @property
    def evidence(self) -> list[Evidence]:
        return [fact("merged_into", self.into, self.reason)] if self.reason else []


def write_choice(adapter: Path, quantized: QuantizedBase, measured: dict[str, Any]) -> None:
    """Keep what was packed beside the adapter, with what was `measured`, of which `better` and `reason` are read."""
    write_json(adapter / QUANTIZED_BASE, {**asdict(quantized), "measured": measured})


def choose_base(adapter: Path, merge_into: MergeInto) -> ChosenBase:
    """The base that the adapter in a directory is merged into: the one that is asked for, or what did better.

    Raises:
        MergeError: the dequantized base is asked for, and training packed none.
    """
    path = adapter / QUANTIZED_BASE
    if not path.is_file():
        if merge_into == "dequantized":
            raise MergeError("merge_into", "training did not keep the base in fewer bits", mend="Leave the key out.")
        return ChosenBase("original")
    record = read_json(path)
    measured = record.pop("measured")
    reason = measured["reason"]
    into: MergeInto = measured["better"] if merge_into == "auto" else merge_into
    if merge_into != "auto":
        reason = f"The recipe asks for it. {reason}"
    return ChosenBase(into, reason, QuantizedBase(**record) if into == "dequantized" else None)


def base_of_merge(run: RunDirectory) -> QuantizedBase | None:
    """What the run's merge went into, if not into the base as it is stored."""
    return choose_base(run / "adapter", run.require_manifest("merge").facts.get("merged_into", "original")).quantized
