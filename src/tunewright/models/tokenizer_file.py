"""Does transformers build the tokenizer that a base's `tokenizer.json` describes?

transformers 5 builds some kinds of tokenizer anew from the vocabulary, with the normalizer, the splitting and the
decoder of the class that it holds to be right for the kind of model, and leaves those of `tokenizer.json` aside. Where
the two differ, the model is trained on other ids than it was made with, and than any reader of the file will give it.
"""

from pathlib import Path
from typing import Any

from tunewright.evidence import Evidence, equal

# Texts on which two tokenizers could part: digits, whitespace, scripts, joins, bytes without a token.
TOKENIZER_PROBES: tuple[str, ...] = (
    *("", " ", "  ", "   \t ", "\n", "\n\n\n", "\r\n", "a\r\nb\r\n\r\nc", "\t\tindented\n\t\tmore", "trailing   "),
    *("   leading", "a  b   c    d", " \n \n x", "x \t\n y", "a\u00a0b\u202fc\u3000d", "a\u0085b\u2028c", "\n  \n\t x"),
    *("Hello, world!", "I'm sure they're here, it's what we've said; he'd go, she'll stay, don't.", "'s 're 'S 'RE ’s"),
    *("0", "7 8", "42", "1234567890", " 12345", "3.14159e-10", "1,234,567.89 €", "2024-02-29T23:59:59Z", "29.02.2024"),
    *("10:45–11:30", "v1.2.3-rc4", "№ 5 Ⅷ ½ ² ٣٤٥ ४५ 一二三 ①", "+49 (0)30 123456-78", "x2y3z", "   007"),
    *("Äpfel, Öl, Übermut und Straße", "Die Kündigungsfrist beträgt 12 Monate (§ 573c).", "ẞ„Zitat“", "e\u0301 a"),
    *("😀", "a😀b 😀😀", "👩\u200d👩\u200d👧 👍🏽 ❤\ufe0f", "🇩🇪🇫🇷 🏳\ufe0f\u200d🌈", "🏴\U000e0067\U000e0062\U000e007f"),
    *("你好，世界。今天是2024年。", "日本語のテキスト、カタカナとひらがな", "안녕하세요 세계", "ไทยไม่มีช่องว่าง"),
    *("مرحبا بالعالم ١٢٣", "שָׁלוֹם עולם", "नमस्ते दुनिया", "Привет, мир", "Ελληνικά άνθρωπος", "Tiếng Việt có dấu"),
    *("Z\u0351\u036b\u0343a\u0363\u0368l\u034cg\u033ao\u0321", "\ufb01 \ufb02 \u212b \u2126 \u212a", "𝒜𝓑 𝟘𝟙", "𐍈𐌰"),
    *('def f(x: int) -> str:\n    return f"{x!r}"  # ok\n', "for(int i=0;i<10;++i){a[i]*=2;}", "SELECT a IF b<>'c';"),
    *("https://example.com/a/b?c=1&d=%20e#f", "mail@example.org", "C:\\Users\\x\\y.txt", "../src/main.rs", "#!/bin/sh"),
    *('{"a": [1, 2.5, null], "b": {"c": "d\\n"}}', "<p class='x'>Text</p>", "| a | b |\n|---|---|\n", "$\\frac{1}{2}$"),
    *("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "a <|im_end|> b", "<|im_start|><|im"),
    *("<|im_end|", "< |im_end|>", "<repo_name>x<file_sep>y<jupyter_code> z", "<|IM_START|>", "<unk> <s> </s> [PAD]"),
    *("Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 8, "a" * 700, "ab" * 300, "9" * 200, "!" * 120, " " * 150),
    *("\x00", "a\x00b", "\x01\x02\x03", "!\x04!", "  \x06x", "a\x13\x14 \x16b", "\x1c \x1d\x1e\x1f", "\x7f\x80\x9f"),
    *("zero\u200bwidth\u200c\u200djoin", "\ufeffbom", "soft\u00adhyphen", "\u202ertl\u202c", "\ufffd", "\U000f0000"),
    *("\U0010ffff!", "...—–-- ?!?!", "snake_case camelCase kebab-case", "ALLCAPS MiXeD", "\x1b[0m"),
)


def check_tokenizer_file(directory: Path, tokenizer: Any) -> Evidence:
    """That `tokenizer`, which transformers built from a directory, is the one of the directory's `tokenizer.json`.

    The value counts the texts that are cut otherwise; the detail of a failure shows the first with both lists of ids.
    """
    from transformers import PreTrainedTokenizerFast

    name = "tokenizer_unlike_its_file"
    if not (directory / "tokenizer.json").is_file():
        return equal(name, 0, 0, "There is no tokenizer.json that it could differ from.")
    if type(tokenizer) is PreTrainedTokenizerFast:
        return equal(name, 0, 0, "It is its tokenizer.json as it stands.")
    as_it_stands = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    differing = [text for text in TOKENIZER_PROBES if cut_and_read(tokenizer, text) != cut_and_read(as_it_stands, text)]
    if not differing:
        return equal(name, 0, 0, f"{len(TOKENIZER_PROBES)} texts are cut and read as its tokenizer.json does.")
    built, built_text = cut_and_read(tokenizer, differing[0])
    stated, stated_text = cut_and_read(as_it_stands, differing[0])
    detail = (
        f"transformers builds a {type(tokenizer).__name__} that is not what tokenizer.json says: the text "
        f"{differing[0]!r} is {built}, read as {built_text!r}, and there {stated}, read as {stated_text!r}. Other "
        "readers go by the file. Take a base whose tokenizer is that of its kind of model."
    )
    return equal(name, len(differing), 0, detail)


def cut_and_read(tokenizer: Any, text: str) -> tuple[list[int], str]:
    """The ids of a text, and what they are read as."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids, tokenizer.decode(ids)
