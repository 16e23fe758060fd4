"""What results and studies show of themselves: ``result.repsim`` and ``study.repsim``, in a notebook or as plain text.

Both are `xarray.Dataset`, and xarray shows them as it shows everything; this is the answer in them. `repsim` loads this
module with the first of its functions that return or open one.
"""

import base64
import json
from typing import TYPE_CHECKING

import xarray as xr

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.results.summary import closest, notes
from repsim.results.versions import FORMAT, STUDY
from repsim.runtime.text_tables import Table, card, paragraphs
from repsim.study.tables import all_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OF_STUDY = {"pairs": "How alike all pairs of models are", "shares": "Shares of energy by depth"}
"""Figures of a study that are shown, and what they are to those who cannot see them."""
_MANY = 4
"""Measures: of more, tables are folded, and only the first have a picture."""


class View:
    """One data set, shown: a heading, sentences, tables, and pictures."""

    def __init__(self, found: xr.Dataset) -> None:
        self._found = found

    @property
    def heading(self) -> str:
        """What it is."""
        raise NotImplementedError

    @property
    def tables(self) -> list[Table]:
        """The numbers that matter."""
        raise NotImplementedError

    @property
    def summary(self) -> list[str]:
        """What was found, in sentences."""
        return []

    @property
    def warnings(self) -> list[str]:
        """What is to be known before any of the numbers is believed."""
        raise NotImplementedError

    def _pictures(self) -> str:
        """As HTML."""
        return ""

    def __repr__(self) -> str:
        said = [self.heading, *self.summary, *(f"note: {text}" for text in self.warnings), *map(str, self.tables)]
        return "\n\n".join(said)

    def _repr_html_(self) -> str:
        said = paragraphs([*self.summary, *(f"Note: {text}" for text in self.warnings)])
        tables = self.tables
        shown = "".join(table.html(folded=len(tables) > _MANY) for table in tables)
        return card(self.heading, said, self._pictures(), shown)


class ResultView(View):
    """What `repsim.compare` found: the closest layers, what is to be known of the values, and the heatmaps."""

    @property
    def heading(self) -> str:
        """Who was compared, on what."""
        sides = [list(dict.fromkeys(self._found[f"model_{side}"].values.tolist())) for side in "ab"]
        names = [side[0] if len(side) == 1 else f"{len(side)} models" for side in sides]
        who = names[0] if sides[0] == sides[1] and len(sides[0]) > 1 else " x ".join(names)
        return f"{who}: {self._found['n_samples'].item():,} samples of {self._found['data'].item()}"

    @property
    def _measures(self) -> list[str]:
        """Variables that `repsim.compare` made, whole: a user may have added others, or taken a part."""
        return [str(name) for name, each in self._found.data_vars.items() if "sense" in each.attrs and each.ndim == 2]

    @property
    def tables(self) -> list[Table]:
        """The closest layers under every measure."""
        return [closest(self._found[name]) for name in self._measures]

    @property
    def warnings(self) -> list[str]:
        """What was left out, which values are missing, and which say little."""
        return list(notes(self._found[self._measures]))

    def heatmap(self, metric: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw one measure, by default the first; see `repsim.heatmap`."""
        from repsim.figures import heatmap  # noqa: PLC0415 - loads matplotlib

        name = next(iter(self._measures), "") if metric is None else metric
        if name not in self._measures:
            raise UnknownNameError("measure in this result", name, self._measures)
        return heatmap(self._found[name], ax)

    def _pictures(self) -> str:
        if not self._measures:
            return ""
        from repsim import figures  # noqa: PLC0415 - loads matplotlib

        return _picture(figures.figure(self._found, self._measures[:_MANY]), "Heatmap of all pairs of layers")


class StudyView(View):
    """What `repsim.universality` found: its sentences, and its tables."""

    @property
    def heading(self) -> str:
        """What it is a study of."""
        samples = f"{self._found['n_samples'].item():,} samples of {self._found['data'].item()}"
        count = self._found.sizes["model"]
        return f"A universality study of {count} model{'s' * (count > 1)}: {samples}"

    @property
    def tables(self) -> list[Table]:
        """Pairs of models, measures, and shares."""
        return all_tables(self._found)

    @property
    def summary(self) -> list[str]:
        """What was found, in sentences that follow from the numbers."""
        return [str(text) for text in json.loads(self._found.attrs["summary"])]

    @property
    def warnings(self) -> list[str]:
        """What is to be known before any of the numbers is believed."""
        return [str(text) for text in json.loads(self._found.attrs["warnings"])]

    def _pictures(self) -> str:
        from repsim import figures  # noqa: PLC0415 - loads matplotlib

        drawn = {name: figure for name, _, figure in figures.draw_all(self._found, among=_OF_STUDY) if figure}
        return "".join(_picture(figure, _OF_STUDY[name]) for name, figure in drawn.items())


def _picture(figure: "Figure", what: str) -> str:
    from repsim import figures  # noqa: PLC0415 - loads matplotlib

    data = base64.b64encode(figures.png(figure)).decode()
    return f'<img style="max-width:100%" alt="{what}" src="data:image/png;base64,{data}">'


def view(found: xr.Dataset) -> View:
    """Show a result or a study; ``found.repsim`` is the same.

    Parameters
    ----------
    found
        What `repsim.compare` or `repsim.universality` returned, or what was saved of it.

    Returns
    -------
    View
        In a notebook it is shown; ``print(view)`` is its text, ``view.summary`` and ``view.warnings`` are sentences.
        That of a result has ``heatmap()``.

    Raises
    ------
    InvalidInputError
        It is neither.

    Examples
    --------
    >>> import numpy as np, repsim, tempfile
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = repsim.write_store(f"{folder}/a.h5", {"in": x, "out": x[:, :4]}, model="a")
    ...     repsim.compare(store).repsim
    a x a: 50 samples of given
    <BLANKLINE>
    CKA (linear, debiased): 50 samples of given
    layer of a  closest layer of a   value
    in          in                  1.0000
    out         out                 1.0000
    """
    kinds = {FORMAT: ResultView, STUDY: StudyView}
    kind = found.attrs.get("format")
    if kind not in kinds:
        raise InvalidInputError(
            "this data set is no result of repsim.compare and no study of repsim.universality: "
            f"its 'format' is {kind!r}"
        )
    return kinds[kind](found)


xr.register_dataset_accessor("repsim")(view)
