import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.chat.degenerate import is_degenerate

ARTICLE = (
    "Der Internationale Flughafen musste nach der Bruchlandung gesperrt werden. Sämtliche anfliegenden Maschinen "
    "wurden umgeleitet, und die Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft "
    "schwieg. „Das war kein Spaß“, sagte der Wirt vom «CAFÉ». „Ein Gruß“, rief sie, «voilà\xa0», «là\xa0»."
)
POEM = """Der Regen fällt auf Stadt und Land,
o weh, o weh, der Wind!
Wir gehen heimwärts Hand in Hand,
o weh, o weh, der Wind!
Und wer die Lampe brennen fand,
o weh, o weh, der Wind!"""
TABLE = """| Tag | Büro | Lager | Werkstatt |
|-----|------|-------|-----------|
| Mo  | offen | offen | offen |
| Di  | offen | offen | offen |
| Mi  | offen | offen | offen |
| Do  | offen | offen | geschlossen |"""
CODE = '''def draw(canvas):
    """Draw a square."""
    for _ in range(4):
        if canvas.ready:
            return [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
        else:
            pass
# ------------------------------------------------------------------------------
</div></div></div></div>'''


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ja",
        "ha ha ha",
        "hahahahaha",
        "bla bla bla, and so on",
        "This is very very very good.",
        "Location, location, location!",
        "Row, row, row your boat",
        ARTICLE,
        POEM,
        TABLE,
        CODE,
        "positive, positive, positive, negative",
        "offen\noffen\noffen\ngeschlossen",
        json.dumps([{"status": "ok", "count": 0}] * 12),
        json.dumps({"flags": [True] * 40, "row": [0] * 100}),
        "true, true, true, true, true, true, true, true",
        " ".join(["0"] * 40),
        "10 ** 20 = 100000000000000000000",
        "0x0000000000000000000000000000000000000000",
        "=" * 80,
        "The answer was cut in the middle of \ufffd",
        "MENÜ“, ANÁLISIS… ÉTÉ» São João, Čeština, Łódź, Ελληνικά, русский, 日本語, 한국어, 👍🏽",
        "Ġorġ u Ġużeppi marru Għawdex",
    ],
)
def test_ordinary_text_is_not_degenerate(text: str) -> None:
    assert is_degenerate(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("zertrüten zertrüten zertrüten", "repeats 'zertrüten' 3 times"),
        ("Das Ergebnis: zertrüten zertrüten zertrüten zertrüten zertrüten", "repeats 'zertrüten' 5 times"),
        ("zertrütenzertrütenzertrüten", "repeats 'zertrüten' 3 times"),
        ("I am sorry.\nI am sorry.\nI am sorry.", "repeats 'I am sorry.' 3 times"),
        ("the the the the the the the the", "repeats 'the' 8 times"),
        ("ha " * 20, "repeats 'ha' 20 times"),
        ("你好" * 12, "repeats '你好' 12 times"),
        ("0.0 " * 64, "repeats '0.0' 64 times"),
        ("offen, " * 8, "repeats 'offen,' 8 times"),
        ("Hello" + "o" * 30, "a run of 31 times 'o'"),
        ("!" * 20, "a run of 20 times '!'"),
        ("a" + "\n" * 200 + "b", "a run of 200 times '\\n'"),
        ("Gr\ufffd\ufffde", "2 of 5 characters are broken, such as U+FFFD"),
        ("ok\ufffd\ufffd\ufffd\ufffd", "4 of 6 characters are broken, such as U+FFFD"),
        ("end\x00", "1 of 4 characters are broken, such as U+0000"),
        ("GrÃ¼n", "text in a wrong encoding, such as 'Ã¼'"),
        ("donâ€™t", "text in a wrong encoding, such as 'â€™'"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "text in a wrong encoding, such as 'Ð¿Ñ€Ð¸Ð²ÐµÑ‚'"),
        ("ðŸ˜€", "text in a wrong encoding, such as 'ðŸ˜€'"),
        ("ĠtheĠcatĠsat", "undecoded tokens: 3 times 'Ġ'"),
        ("<0xE2><0x82><0xAC>", "undecoded tokens, such as '<0xE2><0x82>'"),
        ('{"summary": "zertrüten zertrüten zertrüten", "ok": true}', "repeats 'zertrüten' 3 times"),
        ('{"name": "Gr\\u00c3\\u00bcn"}', "text in a wrong encoding, such as 'Ã¼'"),
        ('{"intent": "refund"}' * 8, 'repeats \'{"intent": "refund"}\' 8 times'),
    ],
)
def test_degenerate_text_is_named(text: str, reason: str) -> None:
    assert is_degenerate(text) == reason


WORDS = [
    *("anchor", "Besen", "copper", "Distel", "engine", "Fenster", "garden", "Hammer", "island", "Jacke", "kettle"),
    *("Lampe", "mirror", "Nadel", "orange", "Pinsel", "quarry", "Regen", "silver", "Treppe", "umbra", "Vogel"),
]


@given(st.permutations(WORDS), st.integers(1, 12), st.integers(5, 30))
def test_phrase_of_up_to_twelve_words_that_loops_is_degenerate(words: list[str], length: int, times: int) -> None:
    phrase, opening = " ".join(words[:length]), " ".join(words[12:])
    assert is_degenerate(f"{opening}. " + " ".join([phrase] * times)) is not None


@given(st.permutations("abcdefghijklmnopqrstuvwxyzäöüßéèñçøåABCDEFGHIJKLMN"), st.integers(4, 50), st.integers(0, 49))
def test_loop_of_up_to_fifty_characters_is_degenerate(letters: list[str], period: int, cut: int) -> None:
    unit = "".join(letters[:period])
    looping = unit * (60 // period + 5)
    assert is_degenerate(looping + unit[: cut % period]) is not None


@given(st.permutations(WORDS), st.integers(1, len(WORDS)))
def test_different_words_are_not_degenerate(words: list[str], count: int) -> None:
    assert is_degenerate(" ".join(words[:count]) + ".") is None


@given(st.lists(st.integers(-1000, 1000), max_size=60), st.sampled_from([" ", ", ", "\n", "; "]))
def test_list_of_numbers_is_not_degenerate(numbers: list[int], separator: str) -> None:
    assert is_degenerate(separator.join(map(str, numbers))) is None


SCALARS = st.one_of(st.booleans(), st.none(), st.integers(), st.sampled_from(WORDS))


@given(st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.sampled_from(WORDS), inner))))
def test_json_of_ordinary_values_is_not_degenerate(value: object) -> None:
    document = {"value": value}
    assert is_degenerate(json.dumps(document, ensure_ascii=False)) is None
    assert is_degenerate(json.dumps(document, indent=2)) is None


@given(st.text(max_size=300))
def test_any_text_gets_an_answer(text: str) -> None:
    reason = is_degenerate(text)
    assert reason is None or len(reason) > 10
