"""Templates that attack: none reads what it was not given, none takes long or much, each is refused by name."""

import threading
import time
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from tunewright.chat.budget import Budget, LimitError, Limits
from tunewright.chat.conversation import Message
from tunewright.chat.sandbox import compiled
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError

MESSAGES = (Message("user", "hello world"),)
LIMITS = Limits(seconds=0.3, memory_bytes=96 << 20, characters=4 << 20, items=1 << 18)


def nest(what: str) -> str:
    """A value that holds itself twice, 60 times over, in `ns.x`; and then `what`."""
    twice = "{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
    return "{% set ns = namespace(x=(1,), y=(1,)) %}" + twice + what


def long(what: str) -> str:
    """Two texts of four million characters in `x` and `y` that differ at the end only; and then `what`."""
    return "{% set x = 'a' * 4000000 ~ 'b' %}{% set y = 'a' * 4000000 ~ 'c' %}" + what


def forever(what: str) -> str:
    return "{% for i in range(99999) %}{% for j in range(99999) %}" + what + "{% endfor %}{% endfor %}"


def grow(what: str) -> str:
    return "{% set ns = namespace(x=[], y='a' * 4000000) %}" + forever("{% set ns.x = [ns.x, " + what + "] %}")


TIME, MEMORY, TEXT, LIST = "takes longer than", "MB of memory", "makes a text of more than", "makes a list of more than"
WEIGHT, FIELD, BITS, CALLS = (
    "writes out or compares",
    "a field",
    "makes an integer of more than",
    "calls itself too often",
)
BOMBS = {
    **dict.fromkeys(
        [
            *(forever(""), forever("{{ 'zzz' in messages[0].content }}"), forever("{{ i * j % 7 }}")),
            long(forever("{{ x == y }}")),
            long(forever("{{ 'zzz' in x }}")),
            *(forever("{{ range(99999)|select('none')|first }}"), forever("{{ range(99999)|sum }}")),
            "{% for i in range(99999) if range(99999)|select('odd')|list and false %}{% endfor %}",
            "{% macro m() %}{% endmacro %}" + forever("{{ m() }}"),
            "{% set ns = namespace(x=[1]) %}{% for i in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}"
            "{{ ([ns.x] * 100000)|map(attribute='0.' * 8000 ~ '0')|list|length }}",
        ],
        TIME,
    ),
    **dict.fromkeys(
        [
            *(grow("ns.y[9:] ~ i"), grow("ns.y[9:] + 'a'"), grow("ns.y[j:]"), grow("ns.y.upper()"), grow("ns.y|upper")),
            *(
                grow("(ns.y[99999:] ~ j).partition('a')"),
                grow("(ns.y[99999:] ~ i).split('q')"),
                grow("'{}{}'.format(ns.y[99999:], i)"),
            ),
            "{{ (['a' * 3000000] * 100000)|map('upper')|list|length }}",
        ],
        MEMORY,
    ),
    **dict.fromkeys(
        [
            "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% macro m(x) %}{{ '' + m(x + x) }}{% endmacro %}{{ m('aa') }}",
            *("{{ 'a' * 10**10 }}", "{{ 10**10 * 'a' }}", "{{ ('ä'.encode() * 10**10)|length }}"),
            *(
                "{{ 'a'.rjust(10**10) }}",
                "{{ 'a'.ljust(10**10) }}",
                "{{ 'a'.center(10**10) }}",
                "{{ 'a'.zfill(10**10) }}",
            ),
            *("{{ 'a'|center(9999999999) }}", "{{ 'a'|center(width=10**10) }}", "{{ '\\t'.expandtabs(10**10) }}"),
            *("{{ ('a' * 99999)|replace('a', 'b' * 99999) }}", "{{ ('a' * 99999).replace('', 'b' * 99999) }}"),
            *("{{ range(99999)|join('a' * 99999) }}", "{{ ('a' * 99999).join(['b'] * 99999) }}"),
            *("{{ ('a\\n' * 9999)|indent(999999) }}", "{{ messages|tojson(separators=('a' * 999999, ':')) }}"),
            *(long("{% for i in range(99) %}{{ x }}{% endfor %}"), long("{{ x ~ x }}"), long("{{ x + x }}")),
            long("{% set z %}{% for i in range(99) %}{{ x }}{% endfor %}{% endset %}"),
            long("{{ '%s%s' % (x, x) }}"),
            "{% autoescape true %}{{ '<' * 4000000 }}{% endautoescape %}",
            "{% autoescape true %}{{ ('<' * 999999) ~ ('<' * 999999) ~ messages[0] }}{% endautoescape %}",
        ],
        TEXT,
    ),
    **dict.fromkeys(
        [
            "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            *("{{ ([1] * 10**10)|length }}", "{{ ((1, 2) * 10**10)|length }}", "{{ ('a' * 4000000)|list|length }}"),
            *(
                "{{ [1]|batch(10**10, 'x')|list }}",
                "{{ [1]|slice(10**10)|list }}",
                "{{ ('a ' * 999999).split()|length }}",
            ),
            "{{ ('a\\n' * 999999).splitlines()|length }}",
        ],
        LIST,
    ),
    **dict.fromkeys(
        [
            *map(
                nest,
                ("{{ ns.x }}", "{{ ns.x|tojson }}", "{{ ns.x == ns.y }}", "{{ ns.x is eq ns.y }}", "{{ {ns.x: 1} }}"),
            ),
            *map(
                nest,
                ("{{ messages[0][ns.x] }}", "{{ messages[0].get(ns.x) }}", "{{ 'a' ~ ns.x }}", "{{ ns.x|pprint }}"),
            ),
            *map(nest, ("{{ [ns.x, ns.y]|unique|list }}", "{{ '%s' % [ns.x] }}", "{{ '{0!r}'.format(ns.x) }}")),
            *map(nest, ("{{ ns.x|safe }}", "{{ ns.x is lower }}", "{{ dict([(ns.x, 1)]) }}", "{{ [ns.x]|join }}")),
            *map(nest, ("{{ [ns.x, ns.y]|sort }}", "{{ ns.x in [ns.y] }}", "{{ [ns.x].index(ns.y) }}", "{{ ns }}")),
            nest("{% for i in [ns.x, ns.y] %}{{ loop.changed(i) }}{% endfor %}"),
            "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
            *(long("{{ x in [y] * 99999 }}"), long("{{ ([y] * 99999).count(x) }}")),
            *(
                "{{ ('a ' * 99999)|wordwrap(1) }}",
                "{{ ('<!--' * 99999)|striptags }}",
                "{{ ('http://a ' * 9999)|urlize }}",
            ),
        ],
        WEIGHT,
    ),
    **dict.fromkeys(
        [
            *("{{ '%9999999999d' % 1 }}", "{{ '%.999999999f' % 1.5 }}", "{{ '%*d' % (9999999999, 1) }}"),
            *("{{ '%(a)999999999s' % {'a': 1} }}", "{{ '%(a(b))999999999s' % {'a(b)': 1} }}"),
            *(
                "{{ '%999999999d'|format(1) }}",
                "{{ '{:>9999999999}'.format(1) }}",
                "{{ '{:>{w}}'.format(1, w=10**10) }}",
            ),
            "{{ '{a:>9999999999}'.format_map({'a': 1}) }}",
        ],
        FIELD,
    ),
    **dict.fromkeys(
        [
            *("{{ 9**(9**9) }}", "{{ (2**9999) * (2**9999) }}"),
            "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        ],
        BITS,
    ),
    **dict.fromkeys(
        [
            "{% macro m(x) %}{{ m(x + 1) }}{% endmacro %}{{ m(1) }}",
            "{% macro m(n) %}{{ m(n - 1) }}{{ m(n - 1) }}{% endmacro %}{{ m(200) }}",
            "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            "{% set ns = namespace(x=[1]) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        ],
        CALLS,
    ),
    "{{ 3|round(10**10, 'floor') }}": "rounds to more than",
    "{{ ('f' * 99999)|int(0, 16) }}": "reads an integer of more than",
    "{{ messages|tojson(indent=10**9) }}": "indents by more than",
    "{{ range(10**12)|list }}": "counts through more than",
    "{{ ('%s' * 99999) % messages }}": "formats more than",
    "{{ 'a%99999d'.encode() % 1 }}": "formats bytes",
    "{{ lipsum(n=10**9) }}": "asks for chance",
    "{{ [1, 2]|random }}": "asks for chance",
    "{{ strftime_now('%Y' * 9999) }}": "formats a date with more than",
    long("{{ x.rfind('b' ~ y) }}"): "searches texts that are too long",
    long("{{ x.strip(y)|length }}"): "searches texts that are too long",
    "{{ (range(2000)|batch(1)|list)|sum(start=[])|length }}": "adds up more than",
}


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_a_bomb_is_stopped_by_the_limit_that_it_meets(source: str) -> None:
    # A busy machine must not turn the limit under test into that of time.
    limits = LIMITS if BOMBS[source] == TIME else replace(LIMITS, seconds=100)
    template = ChatTemplate(source, limits=limits)
    before = time.thread_time()
    with pytest.raises(RenderError, match=f"it was stopped: it .*{BOMBS[source]}"):
        template.render(MESSAGES)
    assert time.thread_time() - before < 3


@pytest.mark.parametrize(
    "source",
    [
        "{{ (((((" * 900 + "1" + ")))))" * 900 + " }}",
        "{{ " + "+".join("x" * 3000) + " }}",
        "{% if 1 %}" * 300 + "{% endif %}" * 300,
        "{{ " + "[" * 500 + "]" * 500 + " }}",
        "x" * (1 << 20) + "y",
    ],
    ids=range(5),
)
def test_a_source_that_is_nested_or_long_beyond_measure_is_refused(source: str) -> None:
    with pytest.raises(RenderError, match="it is not valid Jinja"):
        ChatTemplate(source, limits=LIMITS).render(MESSAGES)


ATTACKS = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ ''['__class__']['__base__'] }}",
    "{{ [messages]|map(attribute='__class__')|map(attribute='__name__')|first }}",
    "{{ messages|map('attr', '__class__')|map('attr', '__name__')|list }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0[__class__].__name__}'.format('') }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__.__mro__}'|attr('format'))('') }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler(1).__init__.__globals__.os.system('true') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace().__class__.__init__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(__class__=1) }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ range.__self__.open }}",
    "{{ raise_exception.__globals__.json }}",
    "{{ strftime_now.__self__.globals }}",
    "{{ strftime_now.__func__.__globals__ }}",
    "{{ self._TemplateReference__context.globals }}",
    "{{ self.__init__.__globals__ }}",
    "{{ loop.__class__.x }}{% for i in [1] %}{{ loop._iterable.x }}{% endfor %}",
    "{% for i in [1] %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__class__.__init__.__globals__ }}",
    "{{ messages|select.__globals__ }}",
    "{{ (messages|select('mapping')).gi_frame.f_globals }}",
    "{{ (messages|map('length')).gi_code.co_code }}",
    "{{ frobnicate.__class__.__base__ }}",
    "{{ none.__class__.__base__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].__setitem__('role', 'x') }}",
    "{{ messages.sort(reverse=true) }}",
    "{{ messages.clear() }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ (1).__class__(1) }}",
    "{{ 'a'.translate({97: 'b'}) }}",
    "{{ 'a'.encode().hex() }}",
    "{{ (1.0).fromhex('0x1') }}",
    "{% include '/etc/passwd' %}",
    "{% include ['a', 'b'] ignore missing %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'base' %}",
    "{{ messages.append }}{{ messages.copy }}",
    "{{ range }}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_an_attack_is_refused(source: str) -> None:
    with pytest.raises(RenderError, match=r"^chat template"):
        ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES)


def test_what_was_given_is_as_it_was() -> None:
    names: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "tools": [{"a": [1]}]}
    for source in ATTACKS:
        with pytest.raises(Exception):  # noqa: B017, PT011
            compiled(source, LIMITS).render(names, date(2025, 1, 1))
    assert names == {"messages": [{"role": "user", "content": "x"}], "tools": [{"a": [1]}]}


def test_the_next_rendering_has_its_whole_budget() -> None:
    template = ChatTemplate(
        "{% for i in range(messages[0].content|int) %}{% for j in range(9999) %}{% endfor %}{% endfor %}x"
    )
    template = replace(template, limits=LIMITS)
    for content, works in (("1", True), ("99999", False), ("1", True)):
        try:
            assert template.render((Message("user", content),)) == "x"
            assert works
        except RenderError:
            assert not works


def test_limits_hold_in_a_thread() -> None:
    errors: list[str] = []

    def render() -> None:
        try:
            ChatTemplate(forever(""), limits=LIMITS).render(MESSAGES)
        except RenderError as error:
            errors.append(error.found)

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert errors == ["it was stopped: it takes longer than 0.3 seconds"] * 2


def test_a_value_weighs_what_it_takes_to_write_it() -> None:
    budget = Budget(Limits())
    assert budget.weigh("abc") == 19
    assert budget.weigh(["abc", {"k": 1}]) > budget.weigh("abc")
    with pytest.raises(LimitError):
        budget.weigh(["a" * 100] * 3, 200)
