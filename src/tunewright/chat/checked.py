"""The methods and filters of Jinja whose work or result can be out of all proportion to what they are given.

Each has a guard that works out, before the call, how large the result would be. A guard has the parameters of what it
guards; wrong arguments are left to the method or filter itself, which has the better message. Always: what is not
named in `ATTRIBUTES` cannot be reached at all.
"""

import json
import re
from collections.abc import Callable
from functools import wraps
from types import GeneratorType
from typing import Any

from jinja2.filters import _GroupTuple, make_attrgetter
from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Cycler
from markupsafe import Markup

from tunewright.chat.budget import LONG_TEXT, VALUE_COST, Budget, LimitError

Guard = Callable[..., None]

CONVERSION = re.compile(r"%(?:\([^()]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")
WIDEST_FIELD = 10_000
MOST_FIELDS = 10_000
# Filters that take quadratic time, or run many lines of Python for each character.
SLOW_TEXT = 1 << 16
LONGEST_RANGE = 100_000  # as in Jinja's own sandbox
MOST_LISTS_TO_ADD = 1000
LONGEST_INDENT = 100
LARGEST_PRECISION = 300
LONGEST_INTEGER_TEXT = 4300


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


STR_METHODS = names(
    "capitalize casefold center count encode endswith expandtabs find format format_map index isalnum isalpha isascii "
    "isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip "
    "partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines "
    "startswith strip swapcase title upper zfill"
)
ATTRIBUTES: dict[type, frozenset[str]] = {
    str: STR_METHODS,
    Markup: STR_METHODS | {"unescape", "striptags"},
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    int: frozenset({"bit_count", "bit_length", "conjugate", "denominator", "imag", "numerator", "real"}),
    bool: frozenset({"denominator", "imag", "numerator", "real"}),
    _GroupTuple: frozenset({"count", "grouper", "index", "list"}),
    float: frozenset({"as_integer_ratio", "conjugate", "hex", "imag", "is_integer", "real"}),
    range: frozenset({"count", "index", "start", "step", "stop"}),
    Cycler: frozenset({"current", "items", "next", "pos", "reset"}),
    Macro: frozenset({"arguments", "caller", "catch_kwargs", "catch_varargs", "name"}),
    LoopContext: names(
        "changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"
    ),
}


def length_of(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def width_guard(budget: Budget, text: Any, width: Any = 80, *_: Any) -> None:
    if isinstance(width, int):
        budget.room(width)


def replace_guard(budget: Budget, text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    text, old, new = (budget.text(value) for value in (text, old, new))
    if (len(text) + 1) * len(new) > budget.limits.characters:
        budget.room(len(text) + text.count(old) * max(0, len(new) - len(old)))


def join_guard(budget: Budget, separator: Any, items: Any = ()) -> None:
    """For a list or text; what can be gone through once only is made a list by whoever calls."""
    between = length_of(separator) * max(0, len(items) - 1)
    budget.room(between + sum(map(length_of, items)))


def expandtabs_guard(budget: Budget, text: str, tabsize: Any = 8) -> None:
    if isinstance(tabsize, int):
        budget.room(text.count("\t") * max(0, tabsize) + len(text))


def split_guard(budget: Budget, text: str, sep: Any = None, *_: Any, **__: Any) -> None:
    if len(text) > budget.limits.items:
        # Without a separator there is a part for every second character at most.
        budget.room_for_items(text.count(sep) if isinstance(sep, str) and sep else len(text) // 2)


def rsplit_guard(budget: Budget, text: str, sep: Any = None, *_: Any, **__: Any) -> None:
    split_guard(budget, text, sep)
    search_guard(budget, text, sep)


def search_guard(budget: Budget, text: Any, part: Any = None, *_: Any) -> None:
    """For methods that compare each place of the text with the whole part: those from the right, and `strip`."""
    budget.comparisons(length_of(text) * length_of(part))


def compare_guard(budget: Budget, *values: Any, **_: Any) -> None:
    for value in values:
        budget.weigh(value)


def get_guard(budget: Budget, mapping: Any, key: Any = None, *_: Any) -> None:
    if isinstance(key, tuple):
        budget.weigh(key)


def checked_range(*bounds: Any) -> range:
    found = range(*bounds)
    if len(found) > LONGEST_RANGE:
        raise LimitError(f"it counts through more than {LONGEST_RANGE} numbers")
    return found


def percent_guard(budget: Budget, text: Any, *values: Any, **named: Any) -> None:
    """For `text % values`: no field is wide, and all fields together have room."""
    if isinstance(text, (bytes, bytearray)):
        raise LimitError("it formats bytes")
    fields, total = 0, 0
    for match in CONVERSION.finditer(text):
        fields += 1
        if fields > MOST_FIELDS:
            raise LimitError(f"it formats more than {MOST_FIELDS} fields")
        for width in match.groups():
            total += field_width(width or "0")
        if text.startswith("(", match.end()):
            raise LimitError("it formats a field whose name has brackets")
    budget.room(len(text) + total)
    budget.room(fields * sum(budget.weigh(value) for value in (*values, *named.values())))


def field_width(digits: str) -> int:
    if digits == "*" or int(digits[:9]) > WIDEST_FIELD:
        raise LimitError(f"it formats a field wider than {WIDEST_FIELD} characters")
    return int(digits)


def power_guard(budget: Budget, base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        budget.room_for_bits(base.bit_length() * max(0, exponent))


def times_guard(budget: Budget, left: Any, right: Any) -> None:
    """For numbers, and for a text or list that is repeated."""
    if isinstance(left, int) and isinstance(right, int):
        budget.room_for_bits(left.bit_length() + right.bit_length())
    for repeated, count in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(repeated, (str, bytes)):
            budget.room(len(repeated) * count)
        elif isinstance(count, int) and isinstance(repeated, (list, tuple)):
            budget.room_for_items(len(repeated) * count)


METHOD_GUARDS: dict[type, dict[str, Guard]] = {
    str: {
        **dict.fromkeys(("center", "ljust", "rjust", "zfill"), width_guard),
        **dict.fromkeys(("rfind", "rindex", "rpartition", "strip", "lstrip", "rstrip"), search_guard),
        **dict.fromkeys(("split", "splitlines"), split_guard),
        **dict.fromkeys(("startswith", "endswith"), compare_guard),
        "expandtabs": expandtabs_guard,
        "join": join_guard,
        "replace": replace_guard,
        "rsplit": rsplit_guard,
    },
    dict: {"get": get_guard},
    list: dict.fromkeys(("count", "index"), compare_guard),
    tuple: dict.fromkeys(("count", "index"), compare_guard),
    LoopContext: {"changed": compare_guard},
}
OPERATOR_GUARDS: dict[str, Guard] = {"*": times_guard, "**": power_guard}


def indent_guard(budget: Budget, text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    wide = len(width) if isinstance(width, str) else width
    if isinstance(text, str) and isinstance(wide, int):
        budget.room(len(text) + (len(text.splitlines()) + 1) * max(0, wide))


def integer_guard(budget: Budget, value: Any, *_: Any, **__: Any) -> None:
    if length_of(value) > LONGEST_INTEGER_TEXT:
        raise LimitError(f"it reads an integer of more than {LONGEST_INTEGER_TEXT} characters")


def round_guard(budget: Budget, value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    if isinstance(precision, int) and abs(precision) > LARGEST_PRECISION:
        raise LimitError(f"it rounds to more than {LARGEST_PRECISION} digits")


def parts_guard(budget: Budget, value: Any, *counts: Any, **named: Any) -> None:
    """For `batch` and `slice`, which fill up to a given number of parts."""
    for count in (*counts, *named.values()):
        if isinstance(count, int):
            budget.room_for_items(count)


def sum_guard(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> None:
    if isinstance(start, (list, tuple)) and length_of(value) > MOST_LISTS_TO_ADD:
        raise LimitError(f"it adds up more than {MOST_LISTS_TO_ADD} lists")


def list_guard(budget: Budget, value: Any) -> None:
    budget.room_for_items(length_of(value))


def slow_guard(budget: Budget, *values: Any, **named: Any) -> None:
    for value in (*values, *named.values()):
        budget.weigh(value, SLOW_TEXT)


def attr_guard(budget: Budget, value: Any, name: Any = "", *_: Any) -> None:
    if str(name).startswith("_"):
        raise LimitError(f"it asks for the attribute {name!r}, which no template may see")


def random_guard(budget: Budget, *_: Any, **__: Any) -> None:
    raise LimitError("it asks for chance, so that no two renderings would be the same")


FILTER_GUARDS: dict[str, Guard] = {
    **dict.fromkeys(("pprint", "striptags", "title", "urlencode", "urlize", "wordcount", "wordwrap"), slow_guard),
    **dict.fromkeys(("batch", "slice"), parts_guard),
    "attr": attr_guard,
    "center": width_guard,
    "format": percent_guard,
    "indent": indent_guard,
    "int": integer_guard,
    "list": list_guard,
    "random": random_guard,
    "replace": replace_guard,
    "round": round_guard,
    "sum": sum_guard,
    "trim": search_guard,
    "truncate": width_guard,
    "xmlattr": slow_guard,
}
# What gives a part of its value, or goes through it step by step.
SHALLOW = names(
    "abs attr batch count d default first items last length list map reject rejectattr reverse select selectattr slice"
)
SIZED = (str, list, tuple, dict, range)
# What makes of a short text a text that is about as short.
PLAIN = names("capitalize lower string trim upper")
# What costs nothing and makes nothing.
FREE = names("count d default length")


def checked_filter(budget: Budget, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, guarded, its result counted."""
    guard = FILTER_GUARDS.get(name)
    deep = name not in SHALLOW
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    plain = name in PLAIN

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if plain and len(args) == 1 and type(args[0]) is str and len(args[0]) < LONG_TEXT:
            return function(*args, **kwargs)
        budget.tick()
        if deep:
            for value in (*args[first:], *kwargs.values()):
                budget.weighed(value)
        elif isinstance(args[first], SIZED):
            budget.used(len(args[first]) * VALUE_COST)
        if guard is not None:
            guard(budget, *args[first:], **kwargs)
        result = function(*args, **kwargs)
        return budget.counted(result) if isinstance(result, GeneratorType) else budget.made(result)

    return checked


def checked_join(budget: Budget, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `join`; what it joins is a list first, so that its size is known."""

    @wraps(function)
    def join(eval_ctx: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        budget.tick()
        if attribute is not None:
            value = map(make_attrgetter(eval_ctx.environment, attribute), value)
        items = list(value)
        d, texts = budget.weighed(d), [budget.weighed(item) for item in items]
        budget.room(budget.weigh(d) * len(texts) + budget.weigh(texts))
        return budget.made(function(eval_ctx, texts, d))

    return join


def checked_test(budget: Budget, function: Callable[..., Any]) -> Callable[..., Any]:
    """A test that compares its values."""

    @wraps(function)
    def checked(*args: Any) -> Any:
        for value in args:
            budget.weighed(value)
        return function(*args)

    return checked


COMPARING_TESTS = names("!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper")


def json_filter(budget: Budget) -> Callable[..., str]:
    """The filter `tojson` as transformers has it: no HTML escapes, and all of `json.dumps`' options of form."""

    def tojson(
        x: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
    ) -> str:
        budget.tick()
        weight = budget.weigh(x)
        if separators is not None:
            budget.room(weight * max(map(length_of, separators), default=0))
        if indent is None:
            return budget.made(json.dumps(x, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys))
        if (length_of(indent) or indent) > LONGEST_INDENT:
            raise LimitError(f"it indents by more than {LONGEST_INDENT} characters")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return budget.joined(encoder.iterencode(x))

    return tojson
