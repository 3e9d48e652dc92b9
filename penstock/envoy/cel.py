"""The few CEL expressions that Envoy must evaluate, as parsed trees (Envoy takes no CEL text)."""

from __future__ import annotations

from collections.abc import Sequence

from google.api.expr.v1alpha1.syntax_pb2 import Constant, Expr


def const(value: str) -> Expr:
    return Expr(const_expr=Constant(string_value=value))


def attribute(path: str) -> Expr:
    """`connection.requested_server_name` and the like."""
    first, *rest = path.split(".")
    expression = Expr(ident_expr=Expr.Ident(name=first))
    for field in rest:
        expression = Expr(select_expr=Expr.Select(operand=expression, field=field))
    return expression


def call(function: str, *args: Expr, target: Expr | None = None) -> Expr:
    return Expr(call_expr=Expr.Call(function=function, args=args, target=target))


def index(operand: Expr, key: str) -> Expr:
    return call("_[_]", operand, const(key))


def one_of(operand: Expr, values: Sequence[str]) -> Expr:
    if len(values) == 1:
        return call("_==_", operand, const(values[0]))
    return call("@in", operand, Expr(list_expr=Expr.CreateList(elements=[const(value) for value in values])))


def either(left: Expr, right: Expr) -> Expr:
    return call("_||_", left, right)


def concat(*parts: Expr) -> Expr:
    first, *rest = parts
    for part in rest:
        first = call("_+_", first, part)
    return first


def starts_with(operand: Expr, prefix: Expr) -> Expr:
    return call("startsWith", prefix, target=operand)


def numbered(expression: Expr) -> Expr:
    """The expression with the ids that the evaluator needs, distinct and from 1."""
    result = Expr()
    result.CopyFrom(expression)
    pending, number = [result], 0
    while pending:
        node = pending.pop()
        number += 1
        node.id = number
        kind = node.WhichOneof("expr_kind")
        if kind == "select_expr":
            pending.append(node.select_expr.operand)
        elif kind == "list_expr":
            pending.extend(node.list_expr.elements)
        elif kind == "call_expr":
            pending.extend(node.call_expr.args)
            if node.call_expr.HasField("target"):
                pending.append(node.call_expr.target)
    return result
