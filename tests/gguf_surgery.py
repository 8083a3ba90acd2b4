"""A GGUF file taken apart and written again, changed: keys with their types, tensors as they are stored."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from tunewright.models.ggml_blocks import encoded

OWN_KEYS = ("GGUF.", "general.architecture")  # what a writer writes by itself


@dataclass
class Gguf:
    """What is in the file; tensors as bytes of rows, or as numbers where they are not quantized."""

    keys: dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]]
    tensors: dict[str, tuple[NDArray[Any], GGMLQuantizationType]]

    def set(self, key: str, value: Any, kind: GGUFValueType | None = None) -> None:
        known = self.keys.get(key)
        self.keys[key] = (value, kind or (known[1] if known else GGUFValueType.STRING), known[2] if known else None)

    def value(self, key: str) -> Any:
        return self.keys[key][0]

    def change(self, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        data, kind = self.tensors[name]
        self.tensors[name] = (np.ascontiguousarray(change(data.copy())), kind)

    def encode(self, name: str, values: NDArray[np.float32]) -> None:
        """Put other numbers into a Q8_0 tensor."""
        assert self.tensors[name][1] == GGMLQuantizationType.Q8_0
        self.tensors[name] = (encoded(np.ascontiguousarray(values), "Q8_0"), GGMLQuantizationType.Q8_0)


def rewrite(path: Path, change: Callable[[Gguf], object], out: Path | None = None) -> None:
    """Change the file, or write what it becomes to `out`."""
    gguf, architecture = taken_apart(path)
    change(gguf)
    writer = GGUFWriter(out or path, architecture)
    for key, (value, kind, inner) in gguf.keys.items():
        writer.add_key_value(key, value, kind, inner)
    for name, (data, tensor_kind) in gguf.tensors.items():
        writer.add_tensor(name, data, raw_dtype=tensor_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def taken_apart(path: Path) -> tuple[Gguf, str]:
    reader = GGUFReader(path)
    keys = {
        key: (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for key, field in reader.fields.items()
        if not key.startswith(OWN_KEYS)
    }
    tensors = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
    return Gguf(keys, tensors), str(reader.fields["general.architecture"].contents())
