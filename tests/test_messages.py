"""Tests of errors, notes and remedies: Python's names in the library, options and commands on the command line."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import repsim.errors
from repsim.cli import main
from repsim.commands import remedies
from repsim.commands.remedies import render_for_cli
from repsim.errors import (
    SAME_CALL,
    Argument,
    FormatVersionError,
    Function,
    Hint,
    InvalidArgumentError,
    MissingExtraError,
    OtherSettingsError,
    Remedy,
    RepsimError,
    SampleMismatchError,
    TooLittleMemoryError,
    UnknownNameError,
)
from repsim.extraction.options import Data, Model
from repsim.study.study_file import Protocol

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("repsim", "metrics", "extractors")
    for path in (ROOT / folder).rglob("*.py")
    if "commands" not in path.parts and path.name != "cli.py"
)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
OF_THE_COMMAND_LINE = re.compile(rf"(?<![\w-])--[a-z]|\brepsim ({'|'.join(main.commands)})\b")
DESCRIPTIONS = {"option", "Field"}
"""Functions whose texts describe formats, for the documentation; no message is made of them."""
FOREIGN = {"repsim/stores/reader.py", "repsim/study/study_file.py", "repsim/stores/foreign_arrays.py"}
"""Files that read messages of HDF5, msgspec, numpy and torch, which have no field for what is wrong."""


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every text that is neither a docstring nor a description, with its line."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DESCRIPTIONS:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        yield from texts(node)


def cuts(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield calls of ``str`` with a caught error."""
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name]
    for handler in handlers:
        for node in ast.walk(handler):
            match node:
                case ast.Call(func=ast.Name(id="str"), args=[ast.Name(id=name)]) if name == handler.name:
                    yield node


def named(*kinds: str) -> set[str]:
    """Return the first arguments of calls of these classes of `repsim.errors`, in the library and in the commands."""
    commands = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "repsim/commands").glob("*.py")]
    return {
        str(node.args[0].value)
        for tree in (*TREES.values(), *commands)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds
        if node.args and isinstance(node.args[0], ast.Constant)
    }


def test_no_text_of_the_library_names_an_option_or_a_command() -> None:
    """Messages are also read in Python: options and commands are written as `Argument` and `Function`."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path, tree in TREES.items()
        for line, text in texts(tree)
        if OF_THE_COMMAND_LINE.search(text)
    ]
    assert not wrong


def test_nobody_takes_the_text_of_an_error_apart() -> None:
    """A caught error is inserted into another message whole, or by its attributes, never through ``str(error)``."""
    wrong = {path.relative_to(ROOT).as_posix() for path, tree in TREES.items() if any(cuts(tree))}
    assert wrong == FOREIGN


def test_the_scans_see_what_they_look_for() -> None:
    tree = ast.parse('"""docstring --x"""\nraise E("use --overwrite")\nx = Field("--y")\nf"repsim run {y}"')
    seen = [text for _, text in texts(tree) if OF_THE_COMMAND_LINE.search(text)]
    assert seen == ["use --overwrite", "repsim run "]
    tree = ast.parse('try:\n  x\nexcept E as error:\n  str(error).split()\n  raise E(f"{error}") from None')
    assert len(list(cuts(tree))) == 1


def test_every_argument_that_is_named_is_an_option_of_a_command() -> None:
    """Other names are parameters that only Python has."""
    options = {name for command in main.commands.values() for option in command.params for name in option.opts}
    names = named("Argument", "InvalidArgumentError")
    assert len(names) > 15
    of_python_only = {"transform", "provenance"}
    study_file = {"out"}
    for name in names - of_python_only - study_file:
        assert render_for_cli(Hint("x", remedy=Remedy(Argument(name)))).removeprefix("x; ") in options, name
    keys = {field for kind in (Protocol, Data, Model) for field in kind.__dataclass_fields__}
    renamed = {"metrics", "pair_by", "pairs", "readouts"}  # no message of an extraction or a study names them
    of_series_and_pages = {"run", "scale", "thumbnails"}  # nor these
    of_functions = {"overwrite", "memory", "ids", "interval"} | of_python_only
    of_model = {"labels", "download", "skip_bad"}
    for name in names - renamed - of_functions - of_model - of_series_and_pages:
        key = render_for_cli(Hint("x", remedy=Remedy(Argument(name))), click.Command("run"))
        assert key.removeprefix("x; the key `").removesuffix("`") in keys | {"data"}, name


def test_every_function_that_is_named_can_be_called_or_is_a_command() -> None:
    names = named("Function")
    for name in (names | set(remedies._COMMAND_TEXTS)) - {SAME_CALL.name}:
        module, _, attribute = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[attribute]), attribute), name
    for command in remedies._COMMAND_TEXTS.values():
        if words := re.findall(r"`repsim (\w+)", command):
            assert words[0] in main.commands


def test_an_error_is_said_as_its_reader_knows_it() -> None:
    error = RepsimError(
        Argument("model_kwargs", {"a": 1, "b": "x"}),
        " is wrong",
        remedy=Remedy("see ", Function("repsim.heatmap"), ", or give ", Argument("weights", metavar="FILE")),
    )
    assert str(error) == "model_kwargs={'a': 1, 'b': 'x'} is wrong; see repsim.heatmap, or give weights=FILE"
    assert error.problem == "model_kwargs={'a': 1, 'b': 'x'} is wrong"
    assert (
        render_for_cli(error)
        == "--model-kwarg a=1 --model-kwarg b=x is wrong; see `repsim heatmap`, or give --weights FILE"
    )
    run = main.commands["run"]
    assert render_for_cli(error, run).endswith("or give the key `weights: FILE`")
    error.remedy = Remedy("use ", Argument("overwrite", value=True))
    assert render_for_cli(error, run).endswith("use --overwrite")
    error.remedy = Remedy("use ", Argument("readout", "mean,cls me", of="extract"))
    assert render_for_cli(error, main.commands["compare"]).endswith("use --readout 'mean,cls me'")
    error.add_note("while\nreading")
    assert render_for_cli(error).endswith("me' (while reading)")
    assert render_for_cli("a text") == "a text"


def test_a_note_is_a_text_that_knows_its_remedy() -> None:
    note = Hint("3 parts are kept", remedy=Remedy(SAME_CALL, " goes on"))
    assert note == "3 parts are kept; the same call goes on"
    assert render_for_cli(note) == "3 parts are kept; the same command goes on"
    assert note.problem == "3 parts are kept"
    assert Hint("bare") == "bare"


LIMIT = InvalidArgumentError("limit", "at least 1", 0)
MEMORY = TooLittleMemoryError("too little", metrics=["cka"], needed=2, allowed=1, remedy=Remedy("give more"))
NAME = UnknownNameError("metric", "CKA", ["cka"], where="line 3")
EXTRA = MissingExtraError("figures", "matplotlib", extra="figures")
SAMPLES = SampleMismatchError("other samples", paths=[Path("a.h5"), Path("b.h5")])
VERSION = FormatVersionError("version 9", path=Path("a.h5"), version=9, remedy=Remedy("install a newer repsim"))
SETTINGS = OtherSettingsError(Path("a.h5"), "seed: 3 there, 4 now")


@pytest.mark.parametrize(
    "error", [LIMIT, MEMORY, NAME, EXTRA, SAMPLES, VERSION, SETTINGS], ids=lambda error: type(error).__name__
)
def test_errors_pass_between_processes_whole(error: RepsimError) -> None:
    error.add_note("in a worker")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(copy), str(copy), copy.args, vars(copy)) == (type(error), str(error), error.args, vars(error))


def test_fields_say_what_a_program_wants_to_know() -> None:
    assert (LIMIT.parameter, LIMIT.expected, LIMIT.got) == ("limit", "at least 1", 0)
    assert (MEMORY.metrics, MEMORY.needed, MEMORY.allowed) == (frozenset({"cka"}), 2, 1)
    assert (NAME.kind, NAME.name, NAME.candidates) == ("metric", "CKA", ["cka"])
    assert (EXTRA.library, EXTRA.extra) == ("matplotlib", "figures")
    assert SAMPLES.paths == (Path("a.h5"), Path("b.h5"))
    assert (VERSION.path, VERSION.version) == (Path("a.h5"), 9)
    assert (SETTINGS.path, SETTINGS.difference) == (Path("a.h5"), "seed: 3 there, 4 now")
    assert SETTINGS.remedy is not None
    assert SETTINGS.remedy.arguments == (Argument("overwrite", value=True),)


def test_all_classes_are_of_one_tree() -> None:
    classes = [kind for kind in vars(repsim.errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, RepsimError | Warning) for kind in classes)
