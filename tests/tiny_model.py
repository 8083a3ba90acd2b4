"""A tiny base for tests: a random two-layer Llama with a real tokenizer and a ChatML template, made in milliseconds.

The tokenizer is a SentencePiece BPE with byte fallback, since llama.cpp's converter takes any vocabulary of that kind,
while it knows byte-level ones only by a hash over a test text. `tokenizer.model` is there beside `tokenizer.json`: from
the latter alone the converter gives every token the same score, and llama.cpp then merges in another order. Every
merged token is made of two characters, so that merging by rank and merging by score always give the same ids.
"""

from pathlib import Path
from typing import Any

from tunewright.artifacts import write_json

SPECIAL_TOKENS = ("<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
UNK_ID, PAD_ID, START_ID, END_ID = range(4)
DEFAULT_SYSTEM_PROMPT = "You are a helpful test model."
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    + DEFAULT_SYSTEM_PROMPT
    + "<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPACE = "▁"
CHARACTERS = SPACE + "".join(chr(code) for code in range(0x21, 0x7F)) + "äöüß"
PAIRS = (
    *("th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of", "ed", "is", "it", "al"),
    *("ar", "st", "to", "nt", "ng", "se", "ha", "as", "ou", "io", "le", "ve", "co", "me", "de", "hi", "ri", "ro", "ic"),
    *(SPACE + letter for letter in "taoiswcbpfmhd"),
)


def write_tiny_base(directory: Path, seed: int = 0) -> Path:
    """Write the base into `directory` (made if need be) and return it; the same seed gives the same weights."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(directory)
    write_weights(directory, len(vocabulary), seed)
    return directory


BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def tiny_vocabulary() -> list[str]:
    return [*SPECIAL_TOKENS, *BYTES, *CHARACTERS, *PAIRS]


def write_tokenizer(directory: Path) -> list[str]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocabulary = tiny_vocabulary()
    ids = {token: index for index, token in enumerate(vocabulary)}
    merges = [(pair[0], pair[1]) for pair in PAIRS]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=SPECIAL_TOKENS[0], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<unk>",
            "pad_token": "<|endoftext|>",
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
        },
    )
    write_sentencepiece(directory / "tokenizer.model", vocabulary)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return vocabulary


def write_sentencepiece(path: Path, vocabulary: list[str]) -> None:
    """The same vocabulary as a SentencePiece model; a pair's score is its merge rank, below zero."""
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2  # its classes are made at run time
    model = protocol.ModelProto()
    model.trainer_spec.model_type = protocol.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    kinds = protocol.ModelProto.SentencePiece
    for token in vocabulary:
        kind = kinds.BYTE if token in BYTES else kinds.CONTROL if token in SPECIAL_TOKENS else kinds.NORMAL
        score = -float(PAIRS.index(token)) if token in PAIRS else -1000.0
        model.pieces.add(piece=token, score=score, type=kinds.UNKNOWN if token == SPECIAL_TOKENS[0] else kind)
    path.write_bytes(model.SerializeToString())


def tiny_config(vocab_size: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=START_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        initializer_range=0.1,
    )


def write_weights(directory: Path, vocab_size: int, seed: int) -> None:
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config(vocab_size)).to(torch.bfloat16)
    model.generation_config.eos_token_id = END_ID
    model.save_pretrained(directory)
