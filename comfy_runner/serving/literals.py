"""The values in predict.py that Cog's command line reads off the text, and Python by running it.

Cog copies a string's source from between its quotes, parses a number's source as Go does, and
drops most else without a word: a computed default makes an input required. A value here is one
that both see alike; everything else is `Wrong`. The rules are those of replicate/cog at commit
6110c912 (0.22.0, the last before 0.23.0): `pkg/schema/python/{literals,module_scope,inputs}.go`.
"""

import ast
import io
import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from typing import Any

_NUMBER = re.compile(r"[+-]?[0-9.][0-9a-fA-FxXoO_.+-]*")
_DECIMAL = re.compile(r"[+-]?[0-9.][0-9eE_.+-]*")
_PART_OF_DICT = re.compile(r"list\((\w+)\.(keys|values)\(\)\)")
_OPENED = re.compile(rb"\((?:[\s\\]|#[^\n]*\n)*\Z")
_EXACT = 2**53
"""The largest size up to which a 64-bit float holds every integer."""


class Wrong(Exception):
    """Something in predict.py that makes no schema; ends the reading of one thing only."""

    def __init__(self, code: str, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.code, self.what, self.hint = code, what, hint


class Source:
    """The text of a predict.py with its syntax tree; whatever takes a node may raise `Wrong`."""

    def __init__(self, text: str) -> None:
        """Raises: `SyntaxError`."""
        self.tree = ast.parse(text)
        self._text = text
        # Bytes, as ast counts columns in bytes, and as bytes end lines only where Python does.
        self._lines = text.encode().splitlines(keepends=True)
        self._constants = dict(_assignments(self.tree))
        self._stores = Counter(
            node.id
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
        )

    def text(self, node: ast.expr) -> str:
        """The expression as it was written, without parentheses around it."""
        return ast.get_source_segment(self._text, node) or ""

    def check_bare(self, node: ast.expr) -> None:
        """Refuses parentheses around an expression, to which those of a call count as well."""
        row = node.lineno - 1
        if _OPENED.search(b"".join(self._lines[:row]) + self._lines[row][: node.col_offset]):
            raise Wrong("parentheses", "Cog does not look into parentheses.", "Take them away.")

    def value(self, node: ast.expr) -> Any:
        """A literal, or the one that a constant of the file is set to."""
        return self.literal(self._followed(node))

    def literal(self, node: ast.expr) -> Any:
        self.check_bare(node)
        match node:
            case ast.Constant(value=None | bool()):
                return node.value
            case ast.Constant(value=str() as value):
                return self._string(node, value)
            case ast.Constant(value=int() | float()) | ast.UnaryOp(operand=ast.Constant()):
                return self._number(node)
            case ast.List(elts=elements):
                lines = io.StringIO(self.text(node)).readline
                if any(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(lines)):
                    what = "Cog cannot read a list with a comment in it."
                    raise Wrong("comment_in_list", what, "Put the comment before the list.")
                return [self.literal(element) for element in elements]
            case ast.Dict():
                pairs = self._pairs(node)
                if all(isinstance(key, str) for key, _ in pairs):
                    return dict(pairs)
        what = f"{ast.unparse(node)} is no literal that Cog can read."
        hint = "Write the value itself, or Input(...) with Input imported from cog by name."
        raise Wrong("not_literal", what, hint)

    def limit(self, node: ast.expr) -> float:
        """A bound as Cog keeps it: a float, read from decimal digits only."""
        value, text = self.literal(node), self.text(node)
        if not _DECIMAL.fullmatch(text):
            raise Wrong("not_literal", f"Cog reads no limit in {text}.", "Write a decimal number.")
        if isinstance(value, int) and abs(value) > _EXACT:
            what = f"Cog keeps limits as floats, which cannot hold {text}."
            raise Wrong("number_too_large", what, f"Leave it out, or stay within {_EXACT}.")
        return float(value)

    def length(self, node: ast.expr) -> int:
        limit = self.limit(node)
        if not 0 <= limit <= _EXACT or not limit.is_integer():
            raise Wrong("bad_length", f"{self.text(node)} is no length.", "Write a whole number.")
        return int(limit)

    def choices(self, node: ast.expr) -> list[Any]:
        """A list, a constant, `A + [...]`, or `list(D.keys())` or `.values()` of a dict."""
        self.check_bare(node)
        found = self._followed(node)
        if isinstance(found, ast.List):
            return list(self.literal(found))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.choices(node.left) + self.choices(node.right)
        if call := _PART_OF_DICT.fullmatch("".join(self.text(node).split())):
            constant = self._followed(ast.Name(call[1]))
            self.check_bare(constant)
            if isinstance(constant, ast.Dict):
                return [pair[call[2] == "values"] for pair in self._pairs(constant)]
        what = f"Cog cannot work out the choices {ast.unparse(node)}."
        hint = "Write a list, a constant of this file, A + [...], or list(D.keys())."
        raise Wrong("not_literal", what, hint)

    def _string(self, node: ast.expr, value: str) -> str:
        text = self.text(node)
        quotes = 3 if text.startswith(('"""', "'''")) else 1
        if text.removeprefix("r")[quotes:-quotes] != value:
            hint = "Write one literal, without escapes but in r'...'; triple quotes span lines."
            raise Wrong("garbled_string", f"Cog reads {text} otherwise than Python.", hint)
        return value

    def _number(self, node: ast.expr) -> int | float:
        text = self.text(node)
        if not _NUMBER.fullmatch(text):
            raise Wrong("not_literal", f"Cog reads no number in {text}.", "Write plain digits.")
        value: int | float = ast.literal_eval(node)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            what = f"Cog drops {text}: it does not fit into 64 bits with a sign."
            raise Wrong("number_too_large", what, f"The largest is {2**63 - 1}.")
        if not math.isfinite(value):
            raise Wrong("number_too_large", f"{text} is infinite.", "Write a smaller one.")
        return value

    def _pairs(self, node: ast.Dict) -> list[tuple[Any, Any]]:
        if None in node.keys:
            raise Wrong("not_literal", "Cog ignores ** in a dict.", "Write the pairs out.")
        keys = [self.literal(key) for key in node.keys if key]
        return list(zip(keys, map(self.literal, node.values), strict=True))

    def _followed(self, node: ast.expr) -> ast.expr:
        """The expression, or for a name what the constant of that name is set to."""
        if not isinstance(node, ast.Name):
            return node
        if node.id not in self._constants or self._stores[node.id] > 1:
            what = f"{node.id} is not set once, at the top level of this file."
            raise Wrong("not_literal", what, "Cog sees no imports and no later changes.")
        return self._constants[node.id]


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Name and value of the constants: what is assigned at the top level."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
