"""Complete names in the shell, and print the script that installs completion.

Names are read from source files without importing them, because importing timm takes seconds.
"""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from repsim.commands.shared import Command

_MODEL = re.compile(r"^@register_model\ndef (\w+)", re.MULTILINE)
_METRIC = re.compile(r'^    name: ClassVar\[str\] = "(\w+)"', re.MULTILINE)
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _sources(package: str, *parts: str) -> list[str]:
    """Read the source of the modules of a package without importing it."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or () for file in sorted(Path(folder, *parts).glob("*.py"))]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def _matching_items(names: list[str], word: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(word)]


def models(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete names of models of timm and of the embedded networks; after a dot, names of their weights."""
    sources = _sources("timm", "models")
    base, dot, _tag = word.partition(".")
    zoo = Path(__file__).parents[1] / "zoo"
    names = [file.stem for file in zoo.glob("*.safetensors")] + ["digits_resnet", "digits_vit"]
    names += [name for text in sources for name in _MODEL.findall(text)]
    if dot:
        tagged = re.compile(rf"""["']({re.escape(base)}\.\w+)["']\s*:""")
        names += [name for text in sources for name in tagged.findall(text)]
    return _matching_items(names, word)


def metrics(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete names of the measures that come with repsim."""
    return _matching_items([name for text in _sources("repsim", "metrics") for name in _METRIC.findall(text)], word)


def files(*suffixes: str) -> Completer:
    """Return a completer of files with these suffixes.

    It leaves the completion to the shell where there is no such file, or where a folder matches.
    """

    def complete(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
        folder, start = Path(word or ".").parent if not word.endswith("/") else Path(word), word.rpartition("/")[2]
        paths = [path for path in folder.glob("*") if path.name.startswith(start)] if folder.is_dir() else []
        names = sorted(path.name for path in paths if path.suffix in suffixes)
        if not names or any(path.is_dir() for path in paths):
            return [CompletionItem(word, type="file")]
        return [CompletionItem(word[: len(word) - len(start)] + name) for name in names]

    return complete


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete commands, options, models, measures, stores and results.

    Add it to ~/.bashrc or ~/.zshrc; for fish, write it to a separate file.

    \b
    Examples:
      repsim completion bash
      echo 'eval "$(repsim completion bash)"' >> ~/.bashrc
      echo 'eval "$(repsim completion zsh)"' >> ~/.zshrc
      repsim completion fish > ~/.config/fish/completions/repsim.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None, "click supports every shell of the choices"
    root = click.get_current_context().find_root().command
    click.echo(completion_class(root, {}, "repsim", "_REPSIM_COMPLETE").source())
