"""Runs llama.cpp's converter in this process, faster, and on weights that are merged as it reads them.

usage: python -m tunewright.export.convert_driver CONVERTER WEIGHTS BOS ARGUMENTS… DIRECTORY
(WEIGHTS: a pickled `VirtualWeights`, or `-` for the files themselves; BOS: `none` where no engine is to put one before
a prompt, `-` for what the tokenizer's configuration says)

It is run as a process of its own, in which `gguf` is the converter's own copy; nothing else may import it. Always: what
the converter writes is byte by byte what it would write by itself from a merged checkpoint on disk, but for what it
does not read of a `tokenizer.json` or a template (see `vocabulary`). Replaced besides are: where a tensor's bytes come
from, the encoder of blocks (llama.cpp's own, called directly), and the order of work (the next tensors are made on all
cores while one is written).
"""

import json
import pickle
import runpy
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.export.vocabulary import NO_BOS, added_tokens, adds_first_space, lowest_score, merge_scores
from tunewright.models.ggml_blocks import encoded, encoder
from tunewright.parallel import threads_for_blocks

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
# How many bytes of finished tensors may wait to be written.
AHEAD_BYTES = 512 << 20


def main(converter: Path, weights: str, bos: str, directory: Path) -> None:
    encode_with_llama_cpp()
    work_ahead()
    complete_vocabulary(bos == NO_BOS, directory / "tokenizer.json")
    if weights != "-":
        read_virtual(pickle.loads(Path(weights).read_bytes()))  # noqa: S301  (its parent has just written it)
    runpy.run_path(str(converter), run_name="__main__")


def read_virtual(weights: Any) -> None:
    """Let the converter find merged bytes where it looks for those of a file."""
    import gguf.utility
    import torch

    from tunewright.models.merge_plan import OpenMerge

    merge = OpenMerge(weights.plan)

    def merged_bytes(tensor: Any) -> Bytes:
        place = tensor.data_range
        name = weights.places[Path(place.filename).name, place.offset]
        made = np.empty(place.size, np.uint8)
        position = 0
        for first, last in weights.plan.tensors[name].blocks():
            rows = merge.rounded(name, weights.dtype, first, last).contiguous().flatten().view(torch.uint8).numpy()
            made[position : position + len(rows)] = rows
            position += len(rows)
        return made

    gguf.utility.LocalTensor.mmap_bytes = merged_bytes


def encode_with_llama_cpp() -> None:
    """Encode Q8_0 with the function of llama.cpp that the converter's own encoder is a copy of, if it is at hand."""
    from gguf import quants

    if not hasattr(quants, "_apply_over_grouped_rows"):
        return
    usual = quants._apply_over_grouped_rows

    def over_rows(
        func: Callable[[Any], Any], arr: np.ndarray[Any, Any], otype: Any, oshape: tuple[int, ...]
    ) -> np.ndarray[Any, Any]:
        is_q8_0 = getattr(func, "__self__", None) is quants.Q8_0 and func.__name__ == "quantize_rows"
        if not is_q8_0 or encoder() is None:
            return usual(func, arr, otype, oshape)  # type: ignore[no-any-return]
        rows = arr.reshape(-1, arr.shape[-1]).astype(np.float32, copy=False)
        return encoded(rows, "Q8_0").reshape(oshape)

    quants._apply_over_grouped_rows = over_rows


def complete_vocabulary(without_bos: bool, tokenizer_file: Path) -> None:
    """Tell llama.cpp what the converter does not read of a `tokenizer.json`, most of it where there is nothing else.

    What a SentencePiece vocabulary does with the first space is told wherever the converter leaves it to llama.cpp.
    """
    import gguf

    usual_init, usual_header = gguf.LlamaHfVocab.__init__, gguf.GGUFWriter.write_header_to_file

    def init(vocabulary: Any, base_path: Path) -> None:
        usual_init(vocabulary, base_path)
        read = json.loads(vocabulary.fname_tokenizer.read_text(encoding="utf-8"))
        texts = {number: text for text, number in vocabulary.tokenizer.get_vocab().items()}
        scores, lowest = merge_scores(read), lowest_score(read)
        added, usual_type = added_tokens(read), vocabulary.get_token_type

        def kind_of(number: int, text: bytes, special: set[int]) -> Any:
            if number not in added:
                return usual_type(number, text, special)
            return gguf.TokenType.CONTROL if added[number] else gguf.TokenType.USER_DEFINED

        vocabulary.get_token_score = lambda number: scores.get(texts[number], lowest)
        vocabulary.get_token_type = kind_of

    def write_header(writer: Any, path: Path | None = None) -> None:
        said = {key: value.value for part in writer.kv_data for key, value in part.items()}
        is_sentencepiece = said.get(gguf.Keys.Tokenizer.MODEL) == "llama"
        if is_sentencepiece and gguf.Keys.Tokenizer.ADD_PREFIX not in said and tokenizer_file.is_file():
            writer.add_add_space_prefix(adds_first_space(json.loads(tokenizer_file.read_text(encoding="utf-8"))))
        if without_bos:
            for part in writer.kv_data:
                part.pop(gguf.Keys.Tokenizer.ADD_BOS, None)
            writer.add_add_bos_token(False)
        usual_header(writer, path)

    gguf.LlamaHfVocab.__init__ = init
    gguf.GGUFWriter.write_header_to_file = write_header


def work_ahead() -> None:
    """Let the writer make the next tensors on all cores while it writes one, in the same order."""
    import gguf

    usual = gguf.GGUFWriter.write_tensors_to_file

    def write_tensors(writer: Any, *, progress: bool = False) -> None:
        if writer.temp_file is not None:
            usual(writer, progress=progress)
            return
        import torch

        torch.set_num_threads(1)
        writer.write_ti_data_to_file()
        for file in writer.fout:
            writer.write_padding(file, file.tell())
        with ThreadPoolExecutor(threads_for_blocks()) as crew:
            for file, tensors in zip(writer.fout, writer.tensors, strict=True):
                for made in made_in_order(list(tensors.values()), crew):
                    made.tofile(file)
                    writer.write_padding(file, made.nbytes)
        writer.state = type(writer.state).WEIGHTS

    gguf.GGUFWriter.write_tensors_to_file = write_tensors


def made_in_order(entries: list[Any], crew: ThreadPoolExecutor) -> Iterator[np.ndarray[Any, Any]]:
    """The tensors, each made when it is near its turn, and let go of when it was written."""
    under_way: deque[tuple[int, Future[np.ndarray[Any, Any]]]] = deque()
    waiting = 0
    for entry in entries:
        while under_way and waiting + entry.nbytes > AHEAD_BYTES:
            size, future = under_way.popleft()
            yield future.result()
            waiting -= size
        under_way.append((entry.nbytes, crew.submit(made, entry)))
        waiting += entry.nbytes
    for _, future in under_way:
        yield future.result()


def made(entry: Any) -> np.ndarray[Any, Any]:
    import torch
    from gguf.lazy import LazyNumpyTensor

    lazy, entry.tensor = entry.tensor, None
    with torch.inference_mode():
        data: np.ndarray[Any, Any] = LazyNumpyTensor.to_eager(lazy)
    if data.nbytes != entry.nbytes:
        raise RuntimeError(f"a tensor came out with {data.nbytes} bytes, expected {entry.nbytes}")
    return data


if __name__ == "__main__":
    _, script, weights, bos, *arguments = sys.argv
    sys.argv = [script, *arguments]
    main(Path(script), weights, bos, Path(arguments[-1]))
