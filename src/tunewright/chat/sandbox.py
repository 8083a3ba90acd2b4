"""The Jinja that chat templates are rendered in: the language of transformers, with limits and without a way out.

In: the source of a template, then names and values. Out: the text, and what the rendering did. Always: byte for byte
what transformers' own environment gives, as long as no limit is met; nothing but the values that were given, the
attributes of `checked.ATTRIBUTES` and Jinja's own filters, tests and functions can be reached. See decision 006.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time
from functools import lru_cache
from threading import RLock
from types import BuiltinMethodType, MethodType
from typing import Any, NamedTuple, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace
from markupsafe import Markup

from tunewright.chat.budget import NAMESPACE_ATTRIBUTES, Budget, LimitError, Limits
from tunewright.chat.checked import (
    ATTRIBUTES,
    COMPARING_TESTS,
    FREE,
    METHOD_GUARDS,
    OPERATOR_GUARDS,
    Guard,
    checked_filter,
    checked_join,
    checked_range,
    checked_test,
    field_width,
    json_filter,
    length_of,
    percent_guard,
)
from tunewright.chat.template_code import GuardedCode, add_ticks, uses_name

Span = tuple[int, int]
LONGEST_DATE_FORMAT = 1000
LONGEST_SOURCE = 1 << 20
Test = Callable[..., Any]
METHODS = (BuiltinMethodType, MethodType)
NO_GUARDS: dict[str, Guard] = {}
FORMATTING = ("format", "format_map")
TEMPLATE_FILE = "<template>"
OF_DICTIONARIES = frozenset(dir(dict))


class Rendered(NamedTuple):
    """One rendering.

    Attributes:
        text: what the template wrote.
        generation: the characters of each `{% generation %}` block; None where a block was written into a variable
            or macro first, so that its place is not known.
        read_clock: whether the template asked for the date.
    """

    text: str
    generation: tuple[Span, ...] | None
    read_clock: bool


class GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        self._owner.marks_generation = True
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("record"), [], [], body).set_lineno(line)

    def record(self, caller: Callable[[], str]) -> str:
        text = caller()
        self._owner.recorded.append((self._owner.written, text))
        return text

    @property
    def _owner(self) -> "TemplateEnvironment":
        return cast(TemplateEnvironment, self.environment)


class TemplateDict:
    """`dict` for templates, without the type's attributes."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return self._budget.made(dict(*self._weighed(args), **kwargs))

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return self._budget.made(dict.fromkeys(*self._weighed(args)))

    def _weighed(self, args: tuple[Any, ...]) -> list[Any]:
        return [self._budget.weighed(value) for value in args]


class TemplateNamespace(Namespace):
    """`namespace` for templates, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            validate_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        validate_name(name)
        super().__setitem__(name, value)


def validate_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, found {name!r}")


ATTRIBUTES[TemplateDict] = frozenset({"fromkeys"})


def refuse_chance(*_: Any, **__: Any) -> None:
    raise LimitError("it asks for chance, so that no two renderings would be the same")


def raise_exception(message: Any) -> None:
    raise TemplateError(message)


class _CheckedFields:
    """What `str.format` writes in each place, with limits."""

    _env: Any  # the TemplateEnvironment

    def format_field(self, value: Any, format_spec: str) -> Any:
        budget = self._env.budget
        budget.tick()
        for digits in re.findall(r"\d+", format_spec):
            field_width(digits)
        return budget.made(super().format_field(budget.weighed(value), format_spec))  # type: ignore[misc]

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(self._env.budget.weighed(value), conversion)  # type: ignore[misc]


class CheckedFormatter(_CheckedFields, SandboxedFormatter):
    pass


class CheckedEscapeFormatter(_CheckedFields, SandboxedEscapeFormatter):
    pass


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the names of transformers, guarded by a budget. One template, one rendering at a time."""

    code_generator_class = GuardedCode
    # "+" is guarded where it stands, see template_code.
    intercepted_binops = frozenset({"*", "%", "**"})

    def __init__(self, limits: Limits) -> None:
        self.budget = budget = Budget(limits)
        # Generated code takes these as local names.
        self.tick, self.made, self.weighed = budget.tick, budget.made, budget.weighed
        self.text_of, self.texts_of = budget.text, budget.texts
        self.attribute_of = self.getattr
        self.concat = budget.joined  # type: ignore[method-assign]
        self.written = 0
        self.recorded: list[tuple[int, str]] = []
        self.today = date.min
        self.read_clock = False
        self.may_read_clock = False
        self.marks_generation = False
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols])
        self.globals = self._functions()
        self.filters = self._checked_filters()
        for name in COMPARING_TESTS:
            self.tests[name] = checked_test(budget, cast(Test, self.tests[name]))

    def begin(self, today: date) -> None:
        """Forget the last rendering."""
        self.budget.start()
        self.today, self.read_clock = today, False
        self.written, self.recorded = 0, []

    def recording(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same pieces, while it is known how many characters came before each."""
        for piece in pieces:
            self.written += len(piece)
            yield piece

    def spans_in(self, text: str) -> tuple[Span, ...] | None:
        if not self.recorded:
            return ()
        spans = [(start, start + len(said)) for start, said in self.recorded]
        known = all(text[start:end] == said for (start, end), (_, said) in zip(spans, self.recorded, strict=True))
        return tuple(spans) if known else None

    def _functions(self) -> dict[str, Any]:
        return {
            "cycler": Cycler,
            "dict": TemplateDict(self.budget),
            "joiner": Joiner,
            "lipsum": refuse_chance,
            "namespace": TemplateNamespace,
            "raise_exception": raise_exception,
            "range": checked_range,
            "strftime_now": self._strftime_now,
        }

    def _checked_filters(self) -> dict[str, Any]:
        checked = {
            name: function if name in FREE else checked_filter(self.budget, name, function)
            for name, function in self.filters.items()
        }
        join = checked_join(self.budget, self.filters["join"])
        return {**checked, "join": join, "tojson": json_filter(self.budget)}

    def _strftime_now(self, format: str) -> str:  # noqa: A002
        self.read_clock = True
        if length_of(format) > LONGEST_DATE_FORMAT:
            raise LimitError(f"it formats a date with more than {LONGEST_DATE_FORMAT} characters")
        return datetime.combine(self.today, time.min).strftime(format)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self.may_read_clock = uses_name(tree, "strftime_now")
        return add_ticks(tree)

    def _load_template(self, name: Any, globals: Any) -> Any:  # noqa: A002
        raise SecurityError(f"it asks for another file ({name!r}), and a chat template stands alone")

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in OF_DICTIONARIES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        if kind is TemplateNamespace:
            names = object.__getattribute__(obj, NAMESPACE_ATTRIBUTES)
            return names[attribute] if attribute in names else self._no_attribute(obj, attribute)
        if attribute in ATTRIBUTES.get(kind, ()):
            value = getattr(obj, attribute)
            return value if attribute not in FORMATTING else self.wrap_str_format(value)
        return self._other_attribute(obj, attribute)

    def _other_attribute(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Undefined):
            return obj[attribute]  # which raises, and says what is undefined
        if not hasattr(type(obj), attribute):
            try:
                return obj[attribute]
            except (TypeError, LookupError):
                pass
        return self._no_attribute(obj, attribute)

    def _no_attribute(self, obj: Any, attribute: str) -> Undefined:
        if attribute.startswith("_") or hasattr(type(obj), attribute):
            return self.unsafe_undefined(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def item_of(self, obj: Any, key: Any) -> Any:
        try:
            return obj[key]
        except (TypeError, LookupError):
            return self._item_by_name(obj, key)

    def _item_by_name(self, obj: Any, key: Any) -> Any:
        """`message['items']` is the method where there is no such key."""
        if isinstance(key, str) and hasattr(obj, key):
            return self.getattr(obj, str(key))
        return self.undefined(obj=obj, name=key)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.tick()
        return self.item_of(obj, self.weighed(argument))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if type(__obj) in METHODS:
            # Jinja's own names for macros that see the variables around them.
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __self._call_method(__obj, args, kwargs)
        __self.tick()
        return super().call(__context, __obj, *args, **kwargs)

    def _call_method(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner, budget = method.__self__, self.budget
        kind = str if isinstance(owner, str) else type(owner)
        budget.tick()
        if kind is str:
            budget.used(len(owner))
            if method.__name__ == "join" and len(args) == 1:
                args = (list(map(budget.weighed, args[0])),)
        guard = METHOD_GUARDS.get(kind, NO_GUARDS).get(method.__name__)
        if guard is not None:
            guard(budget, owner, *args, **kwargs)
        return budget.made(method(*args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if type(left) is int and operator == "%":
            return left % right
        if operator != "%":
            OPERATOR_GUARDS[operator](self.budget, left, right)
        elif isinstance(left, (str, bytes)):
            percent_guard(self.budget, left, *(right if isinstance(right, tuple) else (right,)))
        return self.made(self.binop_table[operator](left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str]:
        """`format` and `format_map` of a text, field by field."""
        text = value.__self__
        is_map = value.__name__ == "format_map"
        formatter = (
            CheckedEscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else CheckedFormatter(self)
        )

        def formatted(*args: Any, **kwargs: Any) -> str:
            if is_map:
                args, kwargs = (), *args
            self.budget.room_for_items(len(text) // 2)
            written: str = type(text)(formatter.vformat(text, args, kwargs))
            return written

        return formatted


class CompiledTemplate:
    """A template, ready to be rendered many times.

    Raises:
        TemplateSyntaxError: the source is not valid Jinja. Other exceptions of Python are possible for odd sources.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        self._environment = environment = TemplateEnvironment(limits)
        self._lock = RLock()
        if len(source) > LONGEST_SOURCE:
            raise LimitError(f"it has more than {LONGEST_SOURCE} characters")
        environment.budget.start()
        self._template = environment.from_string(source)

    def render(self, names: Mapping[str, Any], today: date) -> Rendered:
        environment = self._environment
        with self._lock:
            environment.begin(today)
            pieces = self._template.root_render_func(self._template.new_context(dict(names)))
            if environment.marks_generation:
                pieces = environment.recording(pieces)
            text = environment.budget.joined(pieces)
            return Rendered(text, environment.spans_in(text), environment.read_clock)

    @property
    def may_read_clock(self) -> bool:
        return self._environment.may_read_clock

    def line_of(self, error: BaseException) -> int | None:
        """The line of the template at which an error rose."""
        line, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == TEMPLATE_FILE:
                line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line


@lru_cache(maxsize=64)
def compiled(source: str, limits: Limits) -> CompiledTemplate:
    return CompiledTemplate(source, limits)
