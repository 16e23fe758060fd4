"""Format tables as plain text and as HTML, for the terminal and notebooks.

The HTML inherits its colours, so that it is legible on light and dark pages. It has no scripts, makes no network
requests, and escapes all names, because a store may come from an untrusted source.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

FOLDED = 12
"""Number of rows above which a table is folded in a notebook."""
_CELL = "padding:.15em .8em .15em 0;border:0;white-space:nowrap"
_LINE = "border-bottom:1px solid color-mix(in srgb,currentColor 30%,transparent)"


@dataclass(frozen=True)
class Table:
    """Rows of text with a title and column heads; a column whose head begins with > is aligned to the right."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ends: frozenset[int] = frozenset()
    """Indices of rows that end a section."""

    def thinned(self, most: int) -> "Table":
        """Return the table with at most this many rows, with the first and the last; its title says so.

        The rows of a list are evenly spaced. Of sections, which are the two ends of a longer list, as many of the first
        and of the last rows are shown, so that no row may be of either end.

        >>> Table("all", ("k",), (("0",), ("1",), ("2",))).thinned(2)
        Table(title='all; 2 of 3 rows', heads=('k',), rows=(('0',), ('2',)), ends=frozenset())
        >>> both = Table("both ends", ("k",), (("0",), ("1",), ("8",), ("9",)), frozenset({1})).thinned(3)
        >>> both.title, both.rows, both.ends
        ('both ends; of these the first and the last', (('0',), ('9',)), frozenset({0}))
        """
        count = len(self.rows)
        if count <= most:
            return self
        if self.ends:
            half = max(1, most // 2)
            which = f"the first {half} and the last {half}" if half > 1 else "the first and the last"
            rows = (*self.rows[:half], *self.rows[-half:])
            return Table(f"{self.title}; of these {which}", self.heads, rows, frozenset({half - 1}))
        rows = tuple(self.rows[round(k * (count - 1) / max(1, most - 1))] for k in range(most))
        return Table(f"{self.title}; {most} of {count} rows", self.heads, rows)

    def __str__(self) -> str:
        """Return the table as plain text.

        >>> print(Table("two layers", ("layer", ">cka"), (("stem", "0.912"), ("head", "1"))))
        two layers
        layer    cka
        stem   0.912
        head       1
        """
        heads = [head.removeprefix(">") for head in self.heads]
        widths = [max(map(len, column)) for column in zip(heads, *self.rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if head.startswith(">") else cell.ljust(width)
                for cell, width, head in zip(row, widths, self.heads, strict=True)
            ).rstrip()
            for row in (heads, *self.rows)
        ]
        return "\n".join([*([self.title] if self.title else []), *lines])

    def html(self, *, folded: bool = False) -> str:
        """Return the table as HTML; a long table is always folded.

        >>> "&lt;script&gt;" in Table("", ("layer",), (("<script>",),)).html()
        True
        """
        sides = ["right" if head.startswith(">") else "left" for head in self.heads]
        heads = "".join(
            f'<th scope="col" style="text-align:{side};font-weight:600;{_CELL};{_LINE}">'
            f"{escape(head.removeprefix('>'))}</th>"
            for head, side in zip(self.heads, sides, strict=True)
        )
        rows = "".join(
            "<tr>"
            + "".join(
                f'<td style="text-align:{side};{_CELL}{";" + _LINE if k in self.ends else ""}">{escape(cell)}</td>'
                for cell, side in zip(row, sides, strict=True)
            )
            + "</tr>"
            for k, row in enumerate(self.rows)
        )
        table = (
            '<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:.3em 0;color:inherit;'
            'font-variant-numeric:tabular-nums">'
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
        if not self.title:
            return table
        opened = "" if folded or len(self.rows) > FOLDED else " open"
        return f'<details{opened}><summary style="cursor:pointer">{escape(self.title)}</summary>{table}</details>'


def times(shape: Iterable[int]) -> str:
    """Return a shape as text.

    >>> times((64, 7, 7))
    '64 x 7 x 7'
    """
    return " x ".join(map(str, shape))


def card(heading: str, *parts: str) -> str:
    """Return one block of HTML with a heading, which is escaped, and parts, which are HTML."""
    body = "".join(parts)
    return f'<div style="color:inherit;line-height:1.4"><div><strong>{escape(heading)}</strong></div>{body}</div>'


def paragraphs(texts: Iterable[str]) -> str:
    """Return the texts as paragraphs of HTML, escaped."""
    return "".join(f'<p style="margin:.3em 0;max-width:60em">{escape(text)}</p>' for text in texts)
