"""Boilerplate refusals at the beginning of a target.

The English forms are those by which refusals are told in Zou et al., Universal and Transferable Adversarial Attacks on
Aligned Language Models (2023), appendix B, and by which the unfiltered Vicuna data were cleaned (E. Hartford, 2023).
Only those were taken that speak of an AI or deny the request: "I'm sorry to hear that" is no refusal. The forms of the
other languages are their translations.
"""

import re

from tunewright.data.audit.findings import Hit, surroundings
from tunewright.data.audit.rows import AuditRow

CHARACTERS_READ = 400
CUES = (
    *("as an ai", "as an art", "an ai ", "language model", "chatbot", "my programming", "sorry", "apolog", "i cannot"),
    *("i can't", "i will not", "i'm not able", "unable to", "not able to", "tut mir leid", "als ki", "sprachmodell"),
    *(
        "dabei nicht",
        "dabei leider nicht",
        "en tant qu",
        "lo siento",
        "como modelo",
        "como un",
        "dispiace",
        "in quanto",
    ),
    *("modello linguistico", "desculpe", "sinto muito", "spijt me", "als ai-", "przykro mi"),
)
FURTHER_CUES = (
    *("als künstliche", "désolé", "作为一", "作為一", "抱歉", "对不起", "申し訳", "죄송", "сожалению", "языковая"),
)
DENIED = r"(?:can't|cannot|can not|am unable|am not|do not|don't|won't|must decline|will not|lack)\b"
ASKED = (
    r"(?:fulfill|comply|assist|help|provide|answer|generate|create|perform|process|access|retrieve|browse|book|order"
    r"|discuss|engage in|support|do that)\b"
)
LACKED = r"(?:the (?:capability|ability|capacity)|access|real-time)\b"
CANNOT = r"i(?: (?:cannot|can't|can not|will not|won't)|(?: a|')m (?:unable|not able) to)"
UNABLE = rf"{CANNOT} {ASKED}"
FORMS = (
    rf"as an? (?:ai|artificial|large language|language model|text-based|chatbot)\b[^.!?\n]{{0,60}}\bi {DENIED}",
    rf"i(?:'| a)m (?:just |only )?an? (?:ai|(?:large )?language model)\b.{{0,60}}\b{DENIED}",
    r"my programming (?:does not|doesn't|prevents|prohibits)",
    r"(?:sorry|apolog(?:y|ies|i[sz]e))\b[^.!?\n]{0,60}"
    rf"\b(?:{UNABLE}|i (?:do not|don't) have {LACKED}|i must decline)",
    r"i (?:cannot|can't|will not|won't|am unable to|am not able to) "
    r"(?:fulfill|comply with|assist with that|help with that)",
    r"i'm (?:unable|not able) to (?:fulfill|comply with|assist with that|help with that)",
    r"tut mir leid,? (?:aber )?(?:ich kann|das kann ich|als)",
    r"als (?:ki\b|künstliche intelligenz|(?:ki-)?sprachmodell).{0,40}\b(?:kann|habe|bin|darf)\b",
    r"ich kann (?:dir|ihnen) dabei (?:leider )?nicht",
    r"en tant qu['’]\s?(?:ia\b|intelligence|assistant|modèle)",
    r"je suis désolée?,? (?:mais )?je (?:ne peux|n['’]ai)",
    r"lo siento,? (?:pero )?(?:no puedo|como)\b",
    r"como (?:un )?modelo de lenguaje|como una ia\b",
    r"mi dispiace,? (?:ma )?(?:non posso|come|in quanto)|(?:in quanto|come) (?:ia\b|modello linguistico)",
    r"(?:desculpe|sinto muito),? (?:mas )?(?:não posso|como)|como (?:um )?modelo de linguagem",
    r"het spijt me,? (?:maar )?(?:ik kan|als)|als ai-(?:taal)?model",
    r"przykro mi,? (?:ale )?nie mog",
    r"к сожалению,? я не могу|как языковая модель",
)
FORMS_WITHOUT_SPACES = (
    r"作[为為]一[个個](?:人工智能|ai|语言模型|語言模型)",
    r"(?:对不起|抱歉)，?(?:但)?我(?:无法|不能)",
    r"申し訳(?:ありません|ございません)が、?.{0,20}(?:できません|お答え)",
    r"죄송합니다(?:만|\.)?.{0,20}(?:수 없|없습니다)",
)
REFUSAL = re.compile(rf"\b(?:{'|'.join(FORMS)})|{'|'.join(FORMS_WITHOUT_SPACES)}")


def refusal_in(row: AuditRow) -> Hit | None:
    """A target that refuses in its first 400 characters."""
    for exchange in row.exchanges:
        beginning = exchange.target[:CHARACTERS_READ].lower().replace("’", "'")
        if has_cue(beginning):
            found = REFUSAL.search(beginning)
            if found:
                return Hit(surroundings(exchange.target, found.start(), found.end()))
    return None


def has_cue(text: str) -> bool:
    for cue in CUES:  # a loop costs half of what any() does
        if cue in text:
            return True
    return not text.isascii() and any(cue in text for cue in FURTHER_CUES)
