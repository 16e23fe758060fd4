"""Show results, studies and series in a notebook or as plain text: ``result.repsim`` and the like.

They are `xarray.Dataset`, whose own representation lists variables; the view of this module shows the findings.
`repsim` imports this module with the first function that returns or opens such a data set.
"""

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.results.summary import closest, notes
from repsim.results.versions import FORMAT, SERIES, STUDY
from repsim.runtime.deprecation import rename_keyword
from repsim.runtime.text_tables import Table, card, paragraphs
from repsim.study.tables import all_tables
from repsim.trends import tables as series_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STUDY_FIGURES = {
    "pairs": "How alike all pairs of models are",
    "families": "What pairs of families share that was learned",
    "shares": "Shares of energy by depth",
}
"""Figures of a study that a notebook shows, with their alternative texts."""
_SERIES_FIGURES = {
    "trajectories": "Similarity of layers along the axis",
    "convergence": "Where layers settle, by depth",
    "trend": "Similarity of networks along the axis",
}
"""Figures of a series that a notebook shows, with their alternative texts."""
_MAX_OPEN = 4
"""Number of measures up to which all tables are open and every measure has a picture."""


class View:
    """View of one data set: a heading, sentences, tables and pictures."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def heading(self) -> str:
        """Models or kind of analysis, number of samples, and data."""
        raise NotImplementedError

    @property
    def tables(self) -> list[Table]:
        """Tables of the main numbers."""
        raise NotImplementedError

    @property
    def summary(self) -> list[str]:
        """Sentences that summarise the findings."""
        return []

    @property
    def warnings(self) -> list[str]:
        """Sentences about the reliability of the numbers."""
        raise NotImplementedError

    def _pictures(self) -> str:
        """Return pictures as HTML."""
        return ""

    def __repr__(self) -> str:
        parts = [self.heading, *self.summary, *(f"note: {text}" for text in self.warnings), *map(str, self.tables)]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        text = paragraphs([*self.summary, *(f"Note: {text}" for text in self.warnings)])
        tables = self.tables
        html = "".join(table.html(folded=len(tables) > _MAX_OPEN) for table in tables)
        return card(self.heading, text, self._pictures(), html)


class ResultView(View):
    """View of a result of `repsim.compare`: the closest layers, notes on the values, and the heatmaps."""

    @property
    def heading(self) -> str:
        """Models on both sides, number of samples, and data."""
        sides = [list(dict.fromkeys(self._dataset[f"model_{side}"].values.tolist())) for side in "ab"]
        names = [side[0] if len(side) == 1 else f"{len(side)} models" for side in sides]
        models = names[0] if sides[0] == sides[1] and len(sides[0]) > 1 else " x ".join(names)
        return f"{models}: {self._dataset['n_samples'].item():,} samples of {self._dataset['data'].item()}"

    @property
    def _measures(self) -> list[str]:
        """Names of the complete variables of `repsim.compare`; users may have added others, or selected a part."""
        variables = self._dataset.data_vars.items()
        return [str(name) for name, values in variables if "sense" in values.attrs and values.ndim == 2]

    @property
    def tables(self) -> list[Table]:
        """Tables of the closest layers under every measure."""
        return [closest(self._dataset[name]) for name in self._measures]

    @property
    def warnings(self) -> list[str]:
        """Sentences about layers left out, missing values and unreliable values."""
        return list(notes(self._dataset[self._measures]))

    def heatmap(self, metric: str | None = None, ax: "Axes | None" = None, **options: Any) -> "Axes":
        """Draw one measure, by default the first; see `repsim.heatmap`, whose keywords it takes."""
        from repsim.figures import heatmap  # noqa: PLC0415 - loads matplotlib

        name = next(iter(self._measures), "") if metric is None else metric
        if name not in self._measures:
            raise UnknownNameError("measure in this result", name, self._measures)
        return heatmap(self._dataset[name], ax, **options)

    def _pictures(self) -> str:
        if not self._measures:
            return ""
        from repsim import figures  # noqa: PLC0415 - loads matplotlib

        return _picture(figures.figure(self._dataset, self._measures[:_MAX_OPEN]), "Heatmap of all pairs of layers")


class _SentencesView(View):
    """View of a data set with sentences: those of its summary and its warnings, its tables, and some of its figures."""

    figures: Mapping[str, str]
    """Names of the figures that are shown, with their alternative texts."""

    @property
    def summary(self) -> list[str]:
        """Sentences that summarise the findings."""
        return [str(text) for text in json.loads(self._dataset.attrs["summary"])]

    @property
    def warnings(self) -> list[str]:
        """Sentences about the reliability of the numbers."""
        return [str(text) for text in json.loads(self._dataset.attrs["warnings"])]

    def _pictures(self) -> str:
        from repsim import figures  # noqa: PLC0415 - loads matplotlib

        drawn = {name: figure for name, _, figure in figures.draw_all(self._dataset, among=self.figures) if figure}
        return "".join(_picture(figure, self.figures[name]) for name, figure in drawn.items())


class StudyView(_SentencesView):
    """View of a study of `repsim.universality`: its sentences and its tables."""

    figures = _STUDY_FIGURES

    @property
    def heading(self) -> str:
        """Number of models and of samples, and data."""
        samples = f"{self._dataset['n_samples'].item():,} samples of {self._dataset['data'].item()}"
        count = self._dataset.sizes["model"]
        return f"A universality study of {count} model{'s' * (count > 1)}: {samples}"

    @property
    def tables(self) -> list[Table]:
        """Tables of pairs of models, measures, pairs of families, controls and shares."""
        return all_tables(self._dataset)


class SeriesView(_SentencesView):
    """View of a series of `repsim.series`: its sentences and its tables."""

    figures = _SERIES_FIGURES

    @property
    def heading(self) -> str:
        """Number of networks and of samples, the axis, and data."""
        samples = f"{self._dataset['n_samples'].item():,} samples of {self._dataset['data'].item()}"
        return f"A series of {self._dataset.sizes['point']} networks along {self._dataset.attrs['axis']}: {samples}"

    @property
    def tables(self) -> list[Table]:
        """Tables of points, layers and trends."""
        return series_tables.all_tables(self._dataset)


def _picture(figure: "Figure", alternative: str) -> str:
    from repsim import figures  # noqa: PLC0415 - loads matplotlib

    data = base64.b64encode(figures.png(figure)).decode()
    return f'<img style="max-width:100%" alt="{alternative}" src="data:image/png;base64,{data}">'


@rename_keyword("found", "dataset", gone_in="2.0.0")
def view(dataset: xr.Dataset) -> View:
    """Show a result, a study or a series; the accessor ``.repsim`` of the data set returns the same view.

    Parameters
    ----------
    dataset : xarray.Dataset
        Result of `repsim.compare`, study of `repsim.universality` or series of `repsim.series`, returned or opened from
        a file.

    Returns
    -------
    View
        Notebooks show it, ``print(view)`` prints its text; ``view.summary`` and ``view.warnings`` are lists of
        sentences. The view of a result has the method ``heatmap()``.

    Raises
    ------
    InvalidInputError
        If the data set is no result, study or series.

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
    kinds: dict[str, type[View]] = {FORMAT: ResultView, STUDY: StudyView, SERIES: SeriesView}
    kind = dataset.attrs.get("format")
    if kind not in kinds:
        raise InvalidInputError(
            "this data set is no result of repsim.compare, study of repsim.universality or series of repsim.series: "
            f"its 'format' is {kind!r}"
        )
    return kinds[kind](dataset)


xr.register_dataset_accessor("repsim")(view)
