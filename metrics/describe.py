"""Descriptions of measures in words, for ``repsim metrics NAME`` and for docs/metrics.md.

All words come from the declarations and the docstring of the measure.
"""

import dataclasses
import inspect
import math
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from repsim import metrics
from repsim.errors import UndefinedValueError
from repsim.labels import Form
from repsim.metrics.base import Algorithm, Group, Invariance, Metric

GROUPS: dict[Group, tuple[str, str]] = {
    "rsm": (
        "Similarity matrices",
        "similarities of all pairs of samples in one layer, against those in the other",
    ),
    "cca": ("Subspaces", "the directions that two layers span, in any basis"),
    "alignment": ("Alignment", "the residual after one layer is rotated, permuted or regressed onto the other"),
    "neighbours": ("Neighbourhoods", "which samples are nearest neighbours, at any distance"),
    "statistics": ("Statistics", "differences of statistics, one number per layer"),
    "topology": ("Topology", "the shape of the cloud of samples: holes, components and scales"),
}
"""Heading of each group, and the aspect of two layers that its measures compare."""
EXAMPLE_WIDTHS = (64, 512, 2048)
"""Numbers of features for which the samples needed are given as a number."""

INVARIANCES: dict[Invariance, tuple[str, str]] = {
    "permutation": ("P", "permutation of features"),
    "orthogonal": ("O", "rotation (any orthogonal map)"),
    "isotropic scaling": ("S", "scaling (one factor for all features)"),
    "translation": ("T", "translation"),
    "invertible linear": ("L", "any invertible linear map"),
}
"""Letter for tables, and description, of each invariance."""
_ALGORITHMS: dict[Algorithm, str] = {
    "gram": "products of Gram matrices, tile by tile, for all pairs at once",
    "moments": "cross-moments X'Y, a run of samples at a time",
    "pairs": "pair by pair, from layers that are prepared once",
}
_FORMS: dict[Form, str] = {
    "features": "features",
    "grams": "Gram matrices of blocks (gram:B)",
    "sketches": "random projections (sketch:M)",
}
_CLOSED_FORMS = {
    math.pi: "pi",
    math.pi / 2: "pi/2",
    math.sqrt(2): "sqrt 2",
    math.inf: "infinity",
    -math.inf: "-infinity",
}


_VERBS = {"chance": "Return the chance level: ", "caution": "Warn of ", "diagnostics": "Report "}
"""Beginning of the docstrings of hooks, which descriptions leave out."""
LEGEND = ", ".join(f"{letter} {words}" for letter, words in INVARIANCES.values())
"""Meaning of the letters."""


class Paragraph(NamedTuple):
    """Part of a docstring: prose as one line, a list with one line per item, or literal lines."""

    kind: Literal["prose", "list", "literal"]
    lines: list[str]


@dataclass(frozen=True)
class Parameter:
    """One option of a measure."""

    name: str
    default: Any
    value: Any
    choices: tuple[str, ...]
    """Possible words, if the option is one of a few words."""
    text: str

    @property
    def assignment(self) -> str:
        """Assignment in a spec string, followed by the other choices."""
        others = ", ".join(choice for choice in self.choices if choice != self.value)
        return (self.name if self.value is None else f"{self.name}={self.value}") + (f", or {others}" if others else "")


def families() -> dict[Group, list[Metric[Any]]]:
    """Return all measures with their default options, by group.

    >>> [metric.name for metric in families()["cca"]][:2]
    ['cca', 'pwcca']
    """
    names = metrics.groups()
    return {group: [metrics.get(name) for name in names[group]] for group in GROUPS if names[group]}


def traits(metric: Metric[Any]) -> dict[str, str]:
    """Return the declarations of a measure, in a few words each.

    >>> traits(metrics.get("cka"))["range"]
    '-1 to 1'
    """
    declared = {
        "sense": f"{metric.sense}: {'larger' if metric.sense == 'similarity' else 'smaller'} for more similar layers",
        "range": range_of(metric),
        "symmetric": "yes" if metric.symmetric else "no: exchanging the layers changes the value",
        "unchanged by": _unchanged(metric),
        "samples": "must be the same, in the same order"
        if metric.paired
        else "two clouds: samples need not correspond",
    }
    if metric.sense == "distance":
        declared["triangle"] = (
            "holds: d(x, z) <= d(x, y) + d(y, z)" if metric.triangle else "does not hold, or is not known to"
        )
    declared["gradient"] = "yes: it can be a loss" if metric.differentiable else "none: it counts, ranks or draws"
    if metric.stochastic:
        declared["random"] = "the value is a seeded estimate"
    declared["readouts"] = ", ".join(text for form, text in _FORMS.items() if form in forms(metric))
    declared["computed by"] = "; or ".join(_ALGORITHMS[algorithm] for algorithm in metric.algorithms)
    declared["needs"] = metric.needs
    declared["samples needed"] = samples(metric)
    declared["chance"] = chance(metric)
    for word, hook in (("warns of", "caution"), ("reports", "diagnostics")):
        if text := _hook_text(metric, hook):
            declared[word] = text
    if metric.extra is not None:
        declared["installed by"] = f"pip install 'repsim-toolkit[{metric.group}]'"
    return declared


def range_of(metric: Metric[Any]) -> str:
    """Return the bounds in words.

    >>> range_of(metrics.get("cca"))
    '0 to 1'
    """
    low, high = (_CLOSED_FORMS.get(bound, f"{bound:g}") for bound in metric.bounds)
    return f"{low} to {high}"


def interval(metric: Metric[Any]) -> str:
    """Return the bounds as an interval for a table.

    >>> interval(metrics.get("cka"))
    '[-1, 1]'
    """
    text = range_of(metric).replace("infinity", "inf").replace(" to ", ", ")
    return f"{'(' if text.startswith('-inf') else '['}{text}{')' if text.endswith('inf') else ']'}"


def invariances(metric: Metric[Any], *, of_y: bool = False) -> list[Invariance]:
    """Return the invariances in a fixed order; with ``of_y``, those that only the second layer has."""
    unchanged = metric.invariances_of_y - metric.invariances if of_y else metric.invariances
    return [invariance for invariance in INVARIANCES if invariance in unchanged]


def letters(metric: Metric[Any]) -> str:
    """Return the letters of the invariances for a table; in brackets, those that only the second layer has.

    >>> letters(metrics.get("cka"))
    'P O S T'
    """
    both, more = (" ".join(INVARIANCES[name][0] for name in invariances(metric, of_y=of_y)) for of_y in (False, True))
    return f"{both or '-'} ({more})" if more else both or "-"


def forms(metric: Metric[Any]) -> list[Form]:
    """Return the forms of stored layers that the measure can compare."""

    def is_supported(form: Form) -> bool:
        try:
            metric.recipe_for(form)
        except UndefinedValueError:
            return False
        return True

    return [form for form in _FORMS if is_supported(form)]


def samples(metric: Metric[Any]) -> str:
    """Return `Metric.samples_needed` for a few widths, in words.

    >>> samples(metrics.get("cka")), samples(metrics.get("cca:summary=r2"))
    ('20 at any width', '321 for 64 features, 2,561 for 512, 10,241 for 2,048')
    """
    needed = {width: metric.samples_needed(width, width) for width in EXAMPLE_WIDTHS}
    numbers = [f"{n:,} for {width:,}" for width, n in needed.items() if n is not None]
    if not numbers:
        why = "a distance without a fixed scale" if metric.sense == "distance" else "not known"
        return f"no number: {why}"
    if len(set(needed.values())) == 1:
        return f"{needed[EXAMPLE_WIDTHS[0]]:,} at any width"
    numbers[0] += " features"
    return ", ".join(numbers)


def chance(metric: Metric[Any]) -> str:
    """Return the distribution of values of unrelated layers, if it is known."""
    if not metric.paired:
        return "none: permuting the samples of one layer changes nothing"
    return _hook_text(metric, "chance") or "not known in closed form; permute the samples (repsim.permuted)"


def parameters(metric: Metric[Any]) -> list[Parameter]:
    """Return the options of a measure, with their descriptions from the docstring."""
    hints = typing.get_type_hints(type(metric))
    texts = dict(entries(sections(type(metric)).get("Parameters", "")))
    return [
        Parameter(
            field.name,
            field.default,
            getattr(metric, field.name),
            tuple(typing.get_args(hints[field.name])) if typing.get_origin(hints[field.name]) is Literal else (),
            texts.get(field.name, ""),
        )
        for field in dataclasses.fields(metric)
    ]


def facts(metric: Metric[Any]) -> dict[str, Any]:
    """Return the declarations and the docstring of a measure as a dictionary for programs."""
    plain = (
        "name",
        "spec",
        "label",
        "title",
        "group",
        "question",
        "formula",
        "citation",
        "needs",
        "counted",
        "sense",
        "symmetric",
    )
    flags = ("triangle", "paired", "differentiable", "stochastic", "extra", "min_samples")
    text_of = sections(type(metric))
    return {
        **{key: getattr(metric, key) for key in (*plain, *flags)},
        "bounds": [bound if math.isfinite(bound) else None for bound in metric.bounds],
        "invariances": sorted(metric.invariances),
        "invariances_of_y": sorted(metric.invariances_of_y),
        "forms": forms(metric),
        "algorithms": list(metric.algorithms),
        "roads": list(metric.algorithms),  # the name before 0.2
        "samples_needed": {str(width): metric.samples_needed(width, width) for width in EXAMPLE_WIDTHS},
        "chance": chance(metric),
        "others": dict(metric.others),
        "parameters": [dataclasses.asdict(parameter) for parameter in parameters(metric)],
        "description": text_of.pop(""),
        "notes": text_of.get("Notes", ""),
        "references": references(metric),
        "examples": "\n".join(examples(metric)),
    }


def sections(cls: type) -> dict[str, str]:
    """Return the sections of a numpydoc docstring by their headings; the text before them has the key "".

    >>> list(sections(metrics.Metric.registry["svcca"]))
    ['', 'Parameters', 'References', 'Examples']
    """
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(cls) or "", flags=re.MULTILINE)
    return {
        "": parts[0].strip(),
        **{head: text.strip("\n") for head, text in zip(parts[1::2], parts[2::2], strict=True)},
    }


def references(metric: Metric[Any]) -> list[str]:
    """Return the references, one per item: a reference ends with a sentence after a year.

    >>> len(references(metrics.get("cka")))
    4
    """
    items: list[str] = []
    is_open = False
    for line in filter(None, map(str.strip, sections(type(metric)).get("References", "").splitlines())):
        items = [*items[:-1], f"{items[-1]} {line}"] if is_open else [*items, line]
        is_open = not (re.search(r"\b(19|20)\d\d\b", items[-1]) and line.endswith((".", ")")))
    return items


def examples(metric: Metric[Any]) -> list[str]:
    """Return the lines of the example, starting with the import.

    >>> examples(metrics.get("cka"))[0]
    '>>> from repsim.metrics.cka import CKA'
    """
    cls = type(metric)
    text = sections(cls).get("Examples", "")
    return [f">>> from {cls.__module__} import {cls.__name__}", *text.splitlines()]


def paragraphs(text: str) -> list[Paragraph]:
    r"""Split text into prose and lists without line breaks, and indented lines unchanged.

    >>> paragraphs('One\nline.\n\n- a\n  b\n- c')
    [Paragraph(kind='prose', lines=['One line.']), Paragraph(kind='list', lines=['a b', 'c'])]
    """
    result = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.replace("``", "`").splitlines()
        if not lines:
            continue
        if lines[0].startswith("- "):
            items = re.split(r"^- ", "\n".join(lines), flags=re.MULTILINE)[1:]
            result.append(Paragraph("list", [" ".join(item.split()) for item in items]))
        elif lines[0].startswith("    "):
            result.append(Paragraph("literal", inspect.cleandoc(f"\n{block}").splitlines()))
        else:
            prose = " ".join(" ".join(lines).split())
            result.append(Paragraph("prose", [prose[:-1] if prose.endswith("::") else prose]))
    return result


def entries(text: str) -> list[tuple[str, str]]:
    r"""Return the names in a section such as Parameters, with the text that is indented below each.

    >>> entries('one\n    The first.\ntwo\n    The\n    second.')
    [('one', 'The first.'), ('two', 'The second.')]
    """
    parts = re.split(r"^(\w+).*\n(?=[ ]+)", text, flags=re.MULTILINE)
    return [
        (name, " ".join(body.replace("``", "`").split())) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    ]


def lines(metric: Metric[Any], width: int) -> Iterator[str]:
    """Yield the full description of a measure as a manual page: headings, and indented text."""
    text_of = sections(type(metric))
    yield f"{metric.spec}: {metric.label}"
    yield from _folded(metric.question, width)
    yield ""
    yield from _beside({"formula": metric.formula, "source": metric.citation, **traits(metric)}.items(), width)
    if options := parameters(metric):
        yield from ("", "Options")
        for option in options:
            yield f"  {option.assignment}"
            yield from _folded(option.text, width, 6)
    yield from ("", "Definition", *_prose(text_of[""], width))
    if metric.others:
        yield from ("", "Other implementations")
        for name, difference in metric.others.items():
            yield from _folded(name, width)
            yield from _folded(difference, width, 6)
    for heading, text in text_of.items():
        if heading == "References":
            yield from ("", heading, *_beside((("-", reference) for reference in references(metric)), width))
        elif heading == "Examples":
            yield from ("", heading, *(f"  {line}" for line in examples(metric)))
        elif heading == "Raises":
            yield from ("", heading, *_beside(entries(text), width))
        elif heading not in {"", "Parameters"}:
            yield from ("", heading, *_prose(text, width))


def _prose(text: str, width: int) -> Iterator[str]:
    for i, paragraph in enumerate(paragraphs(text)):
        if i:
            yield ""
        if paragraph.kind == "list":
            yield from _beside((("-", item) for item in paragraph.lines), width)
        elif paragraph.kind == "literal":
            yield from (f"      {line}" for line in paragraph.lines)
        else:
            yield from _folded(paragraph.lines[0], width)


def _beside(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield terms with their texts beside them."""
    rows = list(rows)
    margin = 4 + max((len(term) for term, _ in rows), default=0)
    for term, text in rows:
        first, *rest = _folded(text, width, margin)
        yield f"  {term}".ljust(margin) + first.strip()
        yield from rest


def _folded(text: str, width: int, indent: int = 2) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(
        text, width, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def _unchanged(metric: Metric[Any]) -> str:
    both, more = ([INVARIANCES[name][1] for name in invariances(metric, of_y=of_y)] for of_y in (False, True))
    text = ", ".join(both) or "no transformation of the features"
    return f"{text}; in the second layer also {', '.join(more)}" if more else text


def _hook_text(metric: Metric[Any], hook: str) -> str:
    """Return the first paragraph of a hook's docstring, without its verb, if the measure overrides the hook."""
    method: Callable[..., Any] = getattr(type(metric), hook)
    if method is getattr(Metric, hook):
        return ""
    return paragraphs(inspect.getdoc(method) or "")[0].lines[0].removeprefix(_VERBS[hook]).removesuffix(".")
