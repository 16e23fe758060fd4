#!/usr/bin/env python3
"""Write the generated parts of docs/metrics.md, conformance.md and the pages of the formats.

The text comes from the measures and from the definitions of variables and attributes. A generated part stands between
the marks ``<!-- NAME ... -->`` and ``<!-- /NAME -->``. The other parts of the pages are written by hand and are kept.

\b
scripts/maintenance/metrics_docs.py            write the pages
scripts/maintenance/metrics_docs.py --check    list pages that are out of date; exit code 1 if there are any
"""

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for tests.metrics
try:
    import click

    from repsim.metrics import describe
    from repsim.metrics.base import Metric
    from repsim.results import series_variables, variables
    from repsim.testing import MetricContract
    from tests.metrics import oracles
except ModuleNotFoundError as missing:  # not the interpreter of .venv: run again with it, once
    python = ROOT / ".venv" / "bin" / "python"
    if __name__ != "__main__" or Path(sys.prefix) == ROOT / ".venv" or not python.exists():
        sys.exit(f"scripts/maintenance/metrics_docs.py needs {missing.name}; run scripts/setup first")
    os.execv(python, [str(python), __file__, *sys.argv[1:]])  # noqa: S606

WIDTH = 512
"""Number of features for the column "samples needed"."""


def pages() -> dict[Path, str]:
    """Return the up-to-date text of every page."""
    docs = ROOT / "docs"
    blocks = {
        "metrics.md": {"questions": questions(), "traits": traits(), "measures": measures()},
        "conformance.md": {"data": data(), "numbers": numbers(), "without": without(), "references": references()},
        "study-format.md": {
            "coordinates": _fields("coordinate", variables.COORDINATES, dims=True),
            "variables": table(("variable", "dimensions", "values", "what it is"), variables.rows(variables.VARIABLES)),
            "attributes": _fields("attribute of the file", variables.STUDY_ATTRIBUTES),
        },
        "series-format.md": {
            "coordinates": _fields("coordinate", series_variables.SERIES_COORDINATES, dims=True),
            "variables": table(
                ("variable", "dimensions", "values", "what it is"), variables.rows(series_variables.SERIES_VARIABLES)
            ),
            "attributes": _fields("attribute of the file", series_variables.SERIES_ATTRIBUTES),
        },
        "result-format.md": {
            "coordinates": _fields("coordinate", variables.RESULT_COORDINATES, dims=True),
            "variables": _fields("attribute of a variable", variables.METRIC_ATTRIBUTES),
            "attributes": _fields("attribute of the file", variables.RESULT_ATTRIBUTES),
        },
    }
    return {docs / name: filled((docs / name).read_text(), parts) for name, parts in blocks.items()}


def _fields(kind: str, fields: Mapping[str, variables.Field], *, dims: bool = False) -> Iterator[str]:
    """Return the lines of the table of coordinates or attributes."""
    head = (kind, *(("dimension",) if dims else ()), "values", "what it is")
    return table(head, variables.field_rows(fields, dims=dims))


def filled(page: str, parts: Mapping[str, Iterable[str]]) -> str:
    """Return the page with these parts between their marks."""
    for name, lines in parts.items():
        start, end = f"<!-- {name}: written by scripts/maintenance/metrics_docs.py -->", f"<!-- /{name} -->"
        if page.count(start) != 1 or page.count(end) != 1:
            raise click.ClickException(f"the page needs the marks {start} and {end} once")
        before, rest = page.split(start)
        page = "\n".join([before + start, "", *lines, "", end]) + rest.split(end)[1]
    return page


# docs/metrics.md


def families() -> Iterator[tuple[str, str, list[Metric[Any]]]]:
    """Yield for every family its heading, the properties that it compares, and the measures of repsim."""
    for group, members in describe.families().items():
        ours = [metric for metric in members if type(metric).__module__.startswith("repsim.")]
        if ours:
            yield *describe.GROUPS[group], ours


def questions() -> Iterator[str]:
    rows = []
    for heading, what, members in families():
        rows.append((f"**{heading}**: {what}", ""))
        rows += [(escaped(metric.question), link(metric)) for metric in members]
    return table(("question", "measure"), rows)


def traits() -> Iterator[str]:
    yield f"Unchanged by {describe.LEGEND}; in brackets, of the second layer only."
    yield ""
    rows = []
    for _, _, members in families():
        for metric in members:
            n = metric.samples_needed(WIDTH, WIDTH)
            sense = metric.sense + (", a metric" if metric.triangle else "")
            symmetric = "yes" if metric.symmetric else "**no**"
            properties = sense, escaped(describe.interval(metric)), symmetric, describe.letters(metric)
            rows.append((link(metric), *properties, escaped(describe.chance(metric)), "–" if n is None else f"{n:,}"))
    heads = ("measure", "sense", "range", "symmetric", "unchanged by", "chance", f">n for {WIDTH} features")
    yield from table(heads, rows)


def measures() -> Iterator[str]:
    for heading, what, members in families():
        yield from (f"### {heading}", "", f"What is compared: {what}.", "")
        for metric in members:
            yield from measure(metric)


def measure(metric: Metric[Any]) -> Iterator[str]:
    """Yield the lines of the section of one measure."""
    sections = describe.sections(type(metric))
    yield from (f"#### {metric.name}", "", f"**{escaped(metric.label)}**. {escaped(metric.question)}", "")
    yield from ("```text", metric.formula, "```", "")
    yield from (*prose(sections[""]), "")
    rows = [(word, escaped(text)) for word, text in describe.traits(metric).items()]
    yield from (*table(("trait", ""), rows), "")
    if options := describe.parameters(metric):
        yield from ("Options:", "")
        yield from (f"- `{option.assignment}`: {escaped(option.text)}" for option in options)
        yield ""
    if metric.others:
        yield from ("Other implementations:", "")
        yield from (f"- {escaped(name)}: {escaped(text)}." for name, text in metric.others.items())
        yield ""
    if "Notes" in sections:
        yield from (*prose(sections["Notes"]), "")
    yield from ("```pycon", *describe.examples(metric), "```", "")
    yield from (f"- {escaped(reference)}" for reference in describe.references(metric))
    yield ""


def link(metric: Metric[Any]) -> str:
    return f"[`{metric.name}`](#{metric.name})"


# docs/conformance.md


def data() -> Iterator[str]:
    yield from (f"- **{name}**: `{code}`" for name, code in oracles.DATA.items())


def numbers() -> Iterator[str]:
    rows = []
    for oracle in oracles.ORACLES:
        if oracle.name in Metric.registry:
            call = f"`{oracle.spec}`" + (", Y against X" if oracle.swapped else "")
            rows.append((call, oracle.data, escaped(oracle.source), f"{oracle.value!r}", f"< {oracle.within:.0e}"))
    yield from table(("measure", "data", "source of truth", ">number", ">difference"), rows)


def without() -> Iterator[str]:
    reasons = oracles.WITHOUT.items()
    yield from (f"- `{name}`: {escaped(reason)}." for name, reason in reasons if name in Metric.registry)


def references() -> Iterator[str]:
    """Yield the table of contracts: measures, reference implementation, tolerances."""
    for path in sorted((ROOT / "tests" / "metrics").glob("test_contract*.py")):
        importlib.import_module(f"tests.metrics.{path.stem}")
    all_contracts = list(contracts(MetricContract))
    rows = []
    for _, _, members in families():
        for metric in members:
            for contract in (c for c in all_contracts if type(c.metrics[0]) is type(metric)):
                slow = contract.reference
                place = f"`{slow.__module__.replace('.', '/')}.py`"
                place = place if slow.__name__ == "<lambda>" else f"`{slow.__name__}` in {place}"
                tolerances = f"{contract.tolerance:.0e}", f"{contract.tolerance_float32:.0e}"
                specs = ", ".join(f"`{tested.spec}`" for tested in contract.metrics)
                rows.append((specs, place, *tolerances))
    yield from table(("measures", "reference", ">float64", ">float32"), rows)


def contracts(cls: type[MetricContract]) -> Iterator[type[MetricContract]]:
    """Yield the contract classes of the measures of repsim."""
    for subclass in cls.__subclasses__():
        if subclass.__module__.startswith("tests.metrics.test_contract") and subclass.__dict__.get("metrics"):
            yield subclass
        yield from contracts(subclass)


# Markdown


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; a column whose heading begins with > is aligned to the right."""
    yield f"| {' | '.join(head.removeprefix('>') for head in heads)} |"
    yield f"|{'|'.join('--:' if head.startswith('>') else '---' for head in heads)}|"
    for row in rows:
        yield f"| {' | '.join(_BAR.sub(_ESCAPED_BAR, cell) for cell in row)} |"


def prose(text: str) -> Iterator[str]:
    for i, paragraph in enumerate(describe.paragraphs(text)):
        if i:
            yield ""
        if paragraph.kind == "literal":
            yield from ("```text", *paragraph.lines, "```")
        elif paragraph.kind == "list":
            yield from (f"- {escaped(item)}" for item in paragraph.lines)
        else:
            yield escaped(paragraph.lines[0])


def escaped(text: str) -> str:
    """Escape text with formulas so that Markdown shows it unchanged; text between backticks is not escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if i % 2 else _SPECIAL.sub(r"\\\g<0>", part) for i, part in enumerate(parts))


_BAR, _ESCAPED_BAR = re.compile(r"(?<!\\)\|"), r"\\|"  # ends a cell of a table, even in code
_SPECIAL = re.compile(
    r"[\\*~]"  # emphasis, strikethrough
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # emphasis; an underscore within a word is not special
    r"|<(?=[A-Za-z/!?])"  # HTML
    r"|\](?=[(\[])"  # a link
    r"|^(?:[|#>]|[+-](?= ))"  # a table, a heading, a quotation, a list
)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Write nothing; exit with code 1 if a page is out of date.")
def main(*, check: bool) -> None:
    stale = [path for path, text in pages().items() if path.read_text() != text]
    for path in stale:
        if check:
            click.echo(f"{path.relative_to(ROOT)} is out of date: run scripts/maintenance/metrics_docs.py", err=True)
        else:
            path.write_text(pages()[path])
            click.echo(path.relative_to(ROOT))
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
