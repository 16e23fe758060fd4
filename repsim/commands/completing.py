"""What the shell completes. Names are read from source text: importing timm takes seconds, a key press must not."""

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


def _texts(package: str, *parts: str) -> list[str]:
    """The source of the modules of a package, which is found and not imported."""
    spec = find_spec(package)
    homes = spec.submodule_search_locations if spec is not None else None
    files = [file for home in homes or () for file in sorted(Path(home, *parts).glob("*.py"))]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def _beginning(names: list[str], word: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(word)]


def models(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
    """Names of timm's models and of the zoo's; after a dot, of their weights."""
    texts = _texts("timm", "models")
    base, dot, _tag = word.partition(".")
    zoo = Path(__file__).parents[1] / "zoo"
    names = [file.stem for file in zoo.glob("*.safetensors")] + ["digits_resnet", "digits_vit"]
    names += [name for text in texts for name in _MODEL.findall(text)]
    if dot:
        tagged = re.compile(rf"""["']({re.escape(base)}\.\w+)["']\s*:""")
        names += [name for text in texts for name in tagged.findall(text)]
    return _beginning(names, word)


def metrics(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
    """Names of the measures that come with repsim."""
    return _beginning([name for text in _texts("repsim", "metrics") for name in _METRIC.findall(text)], word)


def files(*suffixes: str) -> Completer:
    """Files of some kinds, where there are any; else whatever the shell finds, folders to go into first of all."""

    def complete(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
        folder, start = Path(word or ".").parent if not word.endswith("/") else Path(word), word.rpartition("/")[2]
        there = [path for path in folder.glob("*") if path.name.startswith(start)] if folder.is_dir() else []
        fitting = sorted(path.name for path in there if path.suffix in suffixes)
        if not fitting or any(path.is_dir() for path in there):
            return [CompletionItem(word, type="file")]
        return [CompletionItem(word[: len(word) - len(start)] + name) for name in fitting]

    return complete


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script with which SHELL completes commands, options, models, measures, stores and results.

    It goes into ~/.bashrc, into ~/.zshrc, or, of fish, into a file of its own.

    \b
    Examples:
      repsim completion bash
      echo 'eval "$(repsim completion bash)"' >> ~/.bashrc
      echo 'eval "$(repsim completion zsh)"' >> ~/.zshrc
      repsim completion fish > ~/.config/fish/completions/repsim.fish
    """
    made = get_completion_class(shell)
    assert made is not None, "one of the choices"
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, "repsim", "_REPSIM_COMPLETE").source())
