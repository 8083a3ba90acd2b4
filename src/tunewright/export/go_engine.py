"""A small engine for Go templates: as much of Go's `text/template` as the templates that are written here use.

In go a template's text and the data; out comes the text that Go would write. It is how a template is proven without an
Ollama at hand, and it knows nothing of chats. Texts are bytes, as in Go: `len` and `slice` count bytes.
Language: https://pkg.go.dev/text/template
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright.errors import ExportError

WHERE = "Go template"
ACTION = re.compile(r'\{\{ ((?:"(?:[^"\\]|\\.)*"|[^"])*?) \}\}', re.DOTALL)
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\$[A-Za-z]*(?:\.[A-Za-z]+)*|\.[A-Za-z]+|\.|[A-Za-z]+|-?\d+|:=|[=(),]')
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|(.))")
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "v": "\v", "f": "\f", "a": "\a", "b": "\b", "\\": "\\", '"': '"'}


def go_string(text: str) -> str:
    """`text` as a string literal of Go."""
    written = text.replace("\\", "\\\\").replace('"', '\\"')
    named = {character: f"\\{name}" for name, character in ESCAPED.items() if name not in '\\"'}
    return '"' + "".join(named.get(each) or (each if each.isprintable() else escaped(each)) for each in written) + '"'


def escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}"


def unescaped(literal: str) -> bytes:
    def character(found: re.Match[str]) -> str:
        number = found[1] or found[2]
        return chr(int(number, 16)) if number else ESCAPED[found[3]]

    return ESCAPE.sub(character, literal[1:-1]).encode()


@dataclass
class Scope:
    """The variables of one block, those around it behind them; `root` is what `$` alone means."""

    root: Any
    outer: "Scope | None" = None
    values: dict[str, Any] = field(default_factory=dict)

    def holder(self, name: str) -> "Scope":
        if name in self.values:
            return self
        if self.outer is None:
            raise ExportError(WHERE, f"the variable {name} is not declared")
        return self.outer.holder(name)

    def read(self, name: str) -> Any:
        return self.root if name == "$" else self.holder(name).values[name]


Block = list["Node"]
Node = tuple[str, Any, Any, Any]


class GoTemplate:
    """A template that was read once and can be executed often.

    Raises:
        ExportError: the text uses what is not known here, or is not balanced.
    """

    def __init__(self, text: str) -> None:
        self.defined: dict[str, Block] = {}
        self._parts = ACTION.split(text)
        self._next = 0
        self.root, end = self._block()
        if end:
            raise ExportError(WHERE, f"{end!r} closes nothing")

    def execute(self, data: Any) -> str:
        """What the template writes for `data`: dicts are maps and structs, lists are slices, texts are bytes.

        Raises:
            ExportError: the template refuses the data.
        """
        written: list[bytes] = []
        self._run(self.root, data, Scope(data), written)
        return b"".join(written).decode()

    def _block(self) -> tuple[Block, str]:
        """The nodes up to the action that ends them, and that action."""
        block: Block = []
        while self._next < len(self._parts):
            part, is_action = self._parts[self._next], self._next % 2
            self._next += 1
            if not is_action:
                block.append(("text", part.encode(), None, None))
            elif part == "end" or part.startswith("else"):
                return block, part
            else:
                block.append(self._action(part))
        return block, ""

    def _action(self, code: str) -> Node:
        word, _, rest = code.partition(" ")
        if word == "if":
            return self._if(rest)
        if word == "range":
            names, _, over = rest.partition(" := ")
            body, _ = self._block()
            return "range", names.split(", "), expression(over), body
        if word == "define":
            self.defined[unescaped(rest).decode()], _ = self._block()
            return "text", b"", None, None
        if word == "template":
            (name, *argument) = TOKEN.findall(rest)
            return "template", unescaped(name).decode(), parsed(argument), None
        assigned = re.fullmatch(r"(\$\w+) (:?=) (.*)", code, re.DOTALL)
        if assigned:
            return "declare" if assigned[2] == ":=" else "assign", assigned[1], expression(assigned[3]), None
        return "write", expression(code), None, None

    def _if(self, condition: str) -> Node:
        then, end = self._block()
        otherwise: Block = []
        if end.startswith("else if "):
            otherwise = [self._if(end.removeprefix("else if "))]
        elif end == "else":
            otherwise, end = self._block()
        return "if", expression(condition), then, otherwise

    def _run(self, block: Block, dot: Any, scope: Scope, written: list[bytes]) -> None:
        for kind, first, second, third in block:
            if kind == "text":
                written.append(first)
            elif kind == "write":
                written.append(evaluate(first, dot, scope))
            elif kind == "if":
                self._run(second if evaluate(first, dot, scope) else third, dot, Scope(scope.root, scope), written)
            elif kind == "declare":
                scope.values[first] = evaluate(second, dot, scope)
            elif kind == "assign":
                scope.holder(first).values[first] = evaluate(second, dot, scope)
            elif kind == "range":
                self._range(first, evaluate(second, dot, scope), third, scope, written)
            else:
                self._call(first, evaluate(second, dot, scope), written)

    def _range(self, names: list[str], over: Any, body: Block, scope: Scope, written: list[bytes]) -> None:
        for index, item in enumerate(range(over) if isinstance(over, int) else over):
            values = dict(zip(names, (index, item) if len(names) > 1 else (item,), strict=True))
            self._run(body, item, Scope(scope.root, scope, values), written)

    def _call(self, name: str, data: Any, written: list[bytes]) -> None:
        if name not in self.defined:
            raise ExportError(WHERE, f"it refuses the messages ({name})")
        self._run(self.defined[name], data, Scope(data), written)


Expression = list[Any] | str


def expression(code: str) -> Expression:
    return parsed(TOKEN.findall(code))


def parsed(tokens: Sequence[str]) -> Expression:
    """A call as a list, function first; a single word as it is."""
    stack: list[list[Any]] = [[]]
    for token in tokens:
        if token == "(":  # noqa: S105
            stack.append([])
        elif token == ")":  # noqa: S105
            call = stack.pop()
            stack[-1].append(call)
        else:
            stack[-1].append(token)
    (call,) = stack
    return call[0] if len(call) == 1 else call


def evaluate(code: Expression, dot: Any, scope: Scope) -> Any:
    if isinstance(code, list):
        function = FUNCTIONS.get(code[0])
        if function is None:
            raise ExportError(WHERE, f"the function {code[0]!r} is not known here")
        return function(*(evaluate(each, dot, scope) for each in code[1:]))
    if code.startswith('"'):
        return unescaped(code)
    if code in ("true", "false"):
        return code == "true"
    if code[0] in "-0123456789":
        return int(code)
    name, *fields = code.split(".")
    value = scope.read(name) if name else dot
    for each in fields:
        value = value[each] if each else value
    return value


def sliced(value: Any, start: int, stop: int | None = None) -> Any:
    stop = len(value) if stop is None else stop
    if not 0 <= start <= stop <= len(value):
        raise ExportError(WHERE, f"slice {start}:{stop} is out of range of {len(value)}")
    return value[start:stop]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "slice": sliced,
    "eq": lambda first, *others: first in others,
    "le": lambda left, right: left <= right,
    "lt": lambda left, right: left < right,
    "ge": lambda left, right: left >= right,
    "not": lambda value: not value,
}
