"""The Python code that a template becomes, with guards where Jinja has no hook of its own.

Always: the same values as Jinja's own code. What is added: a tick in each turn of a loop and call of a macro, a count
of each text or list that is put together, and a look at lists before they are written out, compared or hashed.
"""

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators

SMALL_LITERAL = 16
LONGEST_SUM = 8
# An attribute of the environment that is called; there are no other means of adding a statement to a parsed template.
TICK = "tick()"


def add_ticks(template: nodes.Template) -> nodes.Template:
    for node in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        tick = nodes.ExprStmt(nodes.EnvironmentAttribute(TICK)).set_lineno(node.lineno)
        node.body.insert(0, tick)  # type: ignore[attr-defined]
    return template


def uses_name(template: nodes.Template, name: str) -> bool:
    """Whether a template does more with a name than ask if it is defined."""
    named = [node for node in template.find_all(nodes.Name) if node.name == name]
    asked = [test.node for test in template.find_all(nodes.Test) if test.name in {"defined", "undefined"}]
    return any(all(node is not other for other in asked) for node in named)


def is_literal(node: nodes.Node) -> bool:
    """Whether a value stands in the template as it is, so that comparing with it takes no longer than it is long."""
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, (nodes.Const, nodes.TemplateData))


class GuardedCode(CodeGenerator):
    """Jinja's code generator, with guards."""

    def write_commons(self) -> None:
        super().write_commons()
        for name in ("text_of", "texts_of", "made", "weighed", "item_of", "attribute_of"):
            self.writeline(f"{name} = environment.{name}")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802
        """A sum of several texts is counted once; a long one in parts."""
        inner: dict[int, int] = self.__dict__.setdefault("_inner_sums", {})
        length = inner.get(id(node), 0)
        for operand in (node.left, node.right):
            inner[id(operand)] = (length + 1) % LONGEST_SUM
        numbers = any(isinstance(side, nodes.Const) and isinstance(side.value, int) for side in (node.left, node.right))
        self._guard("made", not length and not numbers, super().visit_Add, node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            self.write("made((markup_join if context.eval_ctx.autoescape else str_join)((")
            self._visit_each(node.nodes, frame)
            self.write(")))")
        else:
            self.write("texts_of((")
            for item in node.nodes:
                self.visit(item, frame)
                self.write(", ")
            self.write("))")

    def _visit_each(self, items: list[nodes.Expr], frame: Frame) -> None:
        for item in items:
            self.write("weighed(")
            self.visit(item, frame)
            self.write("), ")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        """To compare with a literal takes no longer than that is long; to search for one does."""
        if len(node.ops) == 1 and not node.ops[0].op.endswith("in") and is_literal(node.ops[0].expr):
            super().visit_Compare(node, frame)
            return
        self.write("(")
        self._guard("weighed", not is_literal(node.expr), self.visit, node.expr, frame)
        for operand in node.ops:
            self.write(f" {operators[operand.op]} ")
            self._guard("weighed", not is_literal(operand.expr), self.visit, operand.expr, frame)
        self.write(")")

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:  # noqa: N802
        self.write("attribute_of(")
        self.visit(node.node, frame)
        self.write(f", {node.attr!r})")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self._guard("made", True, super().visit_Getitem, node, frame)
        elif isinstance(node.arg, nodes.Const):
            self.write("item_of(")
            self.visit(node.node, frame)
            self.write(f", {node.arg.value!r})")
        else:
            super().visit_Getitem(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._guard("made", len(node.items) > SMALL_LITERAL, super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        self._guard("made", len(node.items) > SMALL_LITERAL and node.ctx == "load", super().visit_Tuple, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        """Keys are hashed, which is endless for some."""
        self.write("made({")
        for item in node.items:
            self._guard("weighed", not isinstance(item.key, nodes.Const), self.visit, item.key, frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("})")

    def _guard(self, name: str, wanted: bool, visit: Any, node: nodes.Node, frame: Frame) -> None:
        self.write(f"{name}(" if wanted else "")
        visit(node, frame)
        self.write(")" if wanted else "")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            self.write("made((escape if context.eval_ctx.autoescape else str)(weighed(")
        else:
            self.write("text_of(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")))" if frame.eval_ctx.volatile or frame.eval_ctx.autoescape else ")")
