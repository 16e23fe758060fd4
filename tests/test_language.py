"""Plain language, as far as a program can check it: how docstrings begin, and names that say nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VAGUE = {"found", "each", "some", "known", "given", "there", "here"}
"""Names of variables and parameters that do not say what they hold."""
RIDDLES = {
    "Of", "What", "How", "As", "Where", "That", "Those", "This", "These", "By", "From", "In", "On", "At", "To",
    "For", "With", "Its", "It", "But", "No", "Not", "Nothing", "And", "Or", "If", "Each", "Some", "Four", "Which",
    "Who", "Everything", "Whatever", "However", "When", "Before", "After", "Too", "None", "Their", "Why", "Only",
    "So", "Then", "There", "Here", "Since", "Than", "Until", "Because",
}  # fmt: skip
"""Words that begin no subject."""
NO_VERBS = RIDDLES | {"The", "A", "An", "Whether", "One", "All", "Every", "Both", "Two", "Three", "Half"}
VERBS_IN_S = {
    "Process",
    "Pass",
    "Access",
    "Address",
    "Express",
    "Compress",
    "Cross",
    "Guess",
    "Focus",
    "Suppress",
    "Bypass",
}
SOURCES = ("repsim", "metrics", "extractors", "scripts", "tests", "examples", "docs")


def is_linked(path: Path) -> bool:
    return path.relative_to(ROOT).parts[:2] in {("repsim", "metrics"), ("repsim", "extractors")}


def is_python(path: Path) -> bool:
    if path.suffix:
        return path.suffix == ".py"
    return path.is_file() and path.read_bytes()[:30].startswith(b"#!/usr/bin/env python")


FILES = [path for top in SOURCES for path in sorted((ROOT / top).rglob("*")) if not is_linked(path) and is_python(path)]


def is_property(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(ast.unparse(decorator).endswith(("property", ".setter")) for decorator in decorators)


def vague_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names of variables and parameters that are vague, with their lines."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) if name in VAGUE:
                yield f"{node.lineno}: {name}"


def odd_beginnings(tree: ast.AST) -> Iterator[str]:
    """Yield the first lines of docstrings that begin with the wrong kind of word.

    Functions begin with an imperative verb, all others with a noun. Names of tests are sentences themselves, so their
    docstrings are free.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            continue
        text = ast.get_docstring(node)
        name = getattr(node, "name", "module")
        if not text or name.startswith("test_"):
            continue
        word = text.split()[0].strip(".,:;")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node):
            third_person = word.endswith("s") and word not in VERBS_IN_S
            odd = word in NO_VERBS or third_person or not word.isalpha() or not word[0].isupper()
        else:
            odd = word in RIDDLES
        if odd:
            yield f"{getattr(node, 'lineno', 1)}: {name}: {text.splitlines()[0]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_and_docstrings_are_plain(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [*vague_names(tree), *odd_beginnings(tree)] == []


def test_the_check_bites() -> None:
    source = '''
"""What this module does."""
def f(given):
    """Of both."""
    found = [each for each in given]
class C:
    """How it is done."""
    @property
    def p(self):
        """The label of the pair."""
    def m(self):
        """Makes a label."""
'''
    tree = ast.parse(source.strip())
    assert [text.split(": ")[1] for text in vague_names(tree)] == ["given", "found", "each"]
    assert {text.split(": ")[1] for text in odd_beginnings(tree)} == {"module", "f", "C", "m"}
