"""Build the study design from stores: families, architectures, seeds and untrained networks.

All of these are read from the provenance of the stores. Families can also be named by hand.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import combinations, product
from typing import Literal

from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.extractors.families import family_in
from repsim.extractors.samples.group_files import GroupsOfPictures
from repsim.labels import SampleIds, check_name, noun_of
from repsim.metrics.recipes.groups import Groups
from repsim.results.variables import CONTROL_PAIRS
from repsim.stores.alignment import AlignedView
from repsim.stores.axes import SIZES, check_axis_name, in_words
from repsim.stores.store import ActivationStore
from repsim.study.sample_groups import groups_of

Relation = Literal["other modality", "other family", "same family", "same architecture"]
_SEED = re.compile(r"[.+_-]?(?:random-)?seed-?(\d+)$")


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a study: its store, its family, and the readout that is compared."""

    store: ActivationStore
    family: str
    readout: str
    variant: str = ""
    """Words that tell networks of one architecture apart: their size, such as ``width=64``, or what they read."""

    @cached_property
    def name(self) -> str:
        """Name of the model."""
        return self.store.model

    @property
    def modality(self) -> str:
        """Kind of what the model reads: ``image``, ``text``, ``tensor`` or ``other``; empty if it is not known."""
        return self.store.modality

    @property
    def trained(self) -> bool:
        """Whether the model is trained, that is, its weights are not random."""
        return self.store.provenance.get("weights") != "random"

    @property
    def architecture(self) -> str:
        """Name of the architecture in timm; if the store has none, the model's name without a seed at its end.

        Architectures of several sizes, or of several modalities, have `variant` at the end of their names.
        """
        name = str(self.store.provenance.get("architecture") or _SEED.sub("", self.name))
        return f"{name} {self.variant}" if self.variant else name

    @property
    def seed(self) -> int | None:
        """Seed at the end of the model's name; None if the name has none."""
        match = _SEED.search(self.name)
        return int(match[1]) if match else None

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of its layers in the store, in depth order."""
        return tuple(name for name in self.store.layers if self.store[name].key.readout == self.readout)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the layers within the model."""
        return tuple(self.store[array].key.layer for array in self.arrays)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers in the study: ``model/layer``."""
        return tuple(f"{self.name}/{block}" for block in self.blocks)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models that are compared."""

    a: Member
    b: Member

    @property
    def relation(self) -> Relation:
        """Relation of the two models: "other modality", "other family", "same family" or "same architecture"."""
        if self.across_families:
            modalities = {self.a.modality, self.b.modality} - {""}
            return "other modality" if len(modalities) > 1 else "other family"
        return "same architecture" if self.a.architecture == self.b.architecture else "same family"

    @property
    def across_families(self) -> bool:
        """Whether the models are of different families. Those of different modalities always are."""
        return self.a.family != self.b.family

    @cached_property
    def name(self) -> str:
        """Label of the pair, ``a x b``."""
        return f"{self.a.name} x {self.b.name}"


@dataclass(frozen=True)
class Design:
    """The models of a study."""

    trained: tuple[Member, ...]
    untrained: tuple[Member, ...]
    notes: tuple[str, ...] = field(default=())
    """Sentences about questions that this choice of models cannot answer."""
    groups: Groups | None = None
    """Groups of samples that are not independent; None if every sample is."""

    @property
    def members(self) -> tuple[Member, ...]:
        """All models: the trained ones, then the untrained ones."""
        return (*self.trained, *self.untrained)

    @property
    def stores(self) -> tuple[ActivationStore, ...]:
        """Stores of all models."""
        return tuple(member.store for member in self.members)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the trained models, as far as they are known, each once."""
        return tuple(dict.fromkeys(member.modality for member in self.trained if member.modality))

    @property
    def data(self) -> str:
        """Description of the samples; of several modalities, that of each."""
        return AlignedView(*self.stores).data

    @property
    def ids(self) -> SampleIds:
        """Sample ids, which are the same in every store."""
        return self.members[0].store.sample_ids

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.ids)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of trained models."""
        return tuple(Pair(a, b) for a, b in combinations(self.trained, 2))

    def twins_of(self, member: Member) -> tuple[Member, ...]:
        """Return the untrained networks of the architecture of a model."""
        return tuple(twin for twin in self.untrained if twin.architecture == member.architecture)

    def controls_of(self, pair: Pair) -> dict[str, tuple[Pair, ...]]:
        """Return the pairs of networks that are controls of a pair of trained models, by the name of the control.

        Training of both models is removed, or of one of them: `CONTROL_PAIRS`. A control without networks is empty.
        Every untrained network of an architecture is paired with every one of the other; of one architecture, with
        every other one.
        """
        a, b = self.twins_of(pair.a), self.twins_of(pair.b)
        same = pair.a.architecture == pair.b.architecture
        both = tuple(Pair(*twins) for twins in (combinations(a, 2) if same else product(a, b)))
        of_pairs = both, tuple(Pair(pair.a, twin) for twin in b), tuple(Pair(twin, pair.b) for twin in a)
        return dict(zip(CONTROL_PAIRS, of_pairs, strict=True))


def is_twin(untrained: Member, trained: Member) -> bool:
    """Return whether the untrained network has the same architecture and layers as the trained one."""
    return (untrained.architecture, untrained.blocks) == (trained.architecture, trained.blocks)


def design(
    stores: Sequence[ActivationStore],
    *,
    families: Mapping[str, Sequence[str]] | None = None,
    family_by: str | None = None,
    readout: str | None = None,
    groups: GroupsOfPictures | None = None,
) -> Design:
    """Build the study design from stores.

    Parameters
    ----------
    stores : sequence of ActivationStore
        Stores of different models, over the same samples in the same order.
    families : mapping, optional
        Name of each family -> globs over names of models. The family of models that match no glob follows from the name
        of their architecture (`repsim.extractors.families`), and a note says so.
    family_by : str, optional
        Axis of the stores whose values are the families of the trained models, instead of ``families``. If it is a size
        (``parameters``, ``depth``, ``width``), networks of one architecture and of different sizes are architectures of
        their own, each with its own untrained networks.
    readout : str, optional
        Readout of the arrays to compare; required if stores hold several.
    groups : str, path, mapping or sequence, optional
        Groups of samples that are not independent, as in `groups_of`; by default those that stores hold.

    Raises
    ------
    InvalidInputError
        If there is no trained model, two models have the same name, a family's name makes sentences ambiguous (`a x b`
        or `universal`), a glob matches no model, a model is in two families, a family that is named by hand has models
        of several modalities, a store lacks the axis of the families or
        the readout, the readout is compressed (samples cannot be left out of it), or `groups_of` refuses the groups.
    SampleMismatchError
        If the stores have different samples, or another order.
    """
    if not stores:
        raise InvalidInputError("name at least one store")
    names = [store.model for store in stores]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        files = ", ".join(str(store.path) for store in stores if store.model == twice[0])
        raise InvalidInputError(f"{files} are all of a model named {twice[0]!r}; a study takes every model once")
    view = AlignedView(*stores)
    named = _families_by_hand(names, families or {})
    variants: dict[str, str] = {}
    if family_by is not None:
        if families:
            raise InvalidInputError(Argument("families"), " and ", Argument("family_by"), ": state one of them")
        named, variants = _families_by_axis(stores, check_axis_name(family_by, "family_by"))
    chosen = _readout(stores, readout)
    members = _by_modality(
        [
            Member(store, named.get(store.model) or _family(store), chosen, variants.get(store.model, ""))
            for store in stores
        ],
        fixed=() if family_by is not None else named,
    )
    for member in members:
        forms = {member.store[array].key.form for array in member.arrays}
        if forms != {"features"}:
            raise InvalidInputError(
                f"{member.store.path}: a study needs the features of every sample, and {chosen} keeps only what CKA "
                "needs",
                remedy=Remedy("extract with ", Argument("readout", "mean", of="extract"), ", cls or grid:K"),
            )
    trained = tuple(member for member in members if member.trained)
    of_trained: dict[str, str] = {}
    for member in trained:
        of_trained.setdefault(member.architecture, member.family)
    untrained = tuple(  # in the family of their trained twins, unless it is named by hand
        member if member.name in named else replace(member, family=of_trained.get(member.architecture, member.family))
        for member in members
        if not member.trained
    )
    if not trained:
        raise InvalidInputError(
            f"all of these networks are untrained ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); "
            "add stores of trained ones"
        )
    by_name = [member for member in (*trained, *untrained) if member.name not in named]
    by_name = [member for member in by_name if member.trained or member.architecture not in of_trained]
    axis_note = [] if family_by is None else [_families_in_words(trained, family_by)]
    notes = (*axis_note, *_families_by_name(by_name), *_notes(trained), *view.notes)
    return Design(trained, untrained, notes, groups_of(stores, groups))


def _family(store: ActivationStore) -> str:
    """Return the family that follows from the architecture; its name is one that `_check_name` accepts."""
    member = Member(store, "", "")
    library = store.provenance.get("library", "")
    if library not in (None, "timm", "torchvision", "transformers"):  # an earlier version, arrays, or a user's entry
        from repsim.extractors.factory import library_of  # noqa: PLC0415 - timm takes seconds

        library = library_of(member.architecture)
    name = (family_in(library, member.architecture) or member.architecture).strip() or member.name.strip()
    if _is_ambiguous(name):
        name = "-".join(name.split())
    return "family universal" if name.lower() == "universal" else name


def _by_modality(members: Sequence[Member], fixed: Container[str]) -> list[Member]:
    """Give networks of different modalities families and architectures of their own.

    Two towers of one model have the same architecture, and yet are neither a family nor twins of each other. Families
    of the models in ``fixed`` are named by the user, and are not changed.
    """

    def read_by(name: str, of: Callable[[Member], str]) -> list[str]:
        return list(dict.fromkeys(member.modality for member in members if of(member) == name and member.modality))

    apart = []
    for member in members:
        own = member
        if len(kinds := read_by(member.family, lambda other: other.family)) > 1:
            if member.name in fixed:
                examples = (
                    next(m.name for m in members if (m.family, m.modality) == (member.family, k)) for k in kinds
                )
                listed = " and ".join(
                    f"{name} reads {noun_of([kind])}" for name, kind in zip(examples, kinds, strict=True)
                )
                raise InvalidInputError(
                    f"family {member.family!r}: {listed}; networks of different modalities are no family, because what "
                    "they share is the question: name them apart"
                )
            reads = f" ({noun_of([member.modality])})" if member.modality else ""
            own = replace(own, family=f"{member.family}{reads}")
        if len(read_by(member.architecture, lambda other: other.architecture)) > 1:
            own = replace(own, variant=f"{member.variant} {noun_of([member.modality])}".strip())
        apart.append(own)
    return apart


def _is_ambiguous(family: str) -> bool:
    """Return whether a label ``a x b`` with this name can be read in two ways."""
    return "x" in family.split() and family.strip() != "x"


def _check_name(family: str) -> None:
    """Refuse a name with which the labels of two pairs of families can be equal, or a sentence looks like a claim."""
    if not family.strip():
        raise InvalidInputError("a family has an empty name; give it one")
    check_name("family", family)
    if _is_ambiguous(family):
        raise InvalidInputError(
            f"family {family!r}: a name may not contain a separate x, because a pair of families is called a x b; "
            "write a*b or a-x-b"
        )
    if family.strip().lower() == "universal":
        raise InvalidInputError(f"family {family!r}: this word is kept for claims; give the family another name")


def _families_by_name(members: Sequence[Member]) -> Iterator[str]:
    """Yield a note on architectures that were put into a family of another name."""
    families: dict[str, list[str]] = {}
    for member in members:
        if member.architecture != member.family:
            families.setdefault(member.family, []).append(member.architecture)
    if families:
        listed = "; ".join(f"{family} ({', '.join(dict.fromkeys(names))})" for family, names in families.items())
        yield f"families by the names of the architectures: {listed}"


def _families_by_hand(names: Sequence[str], families: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the family of each model whose family is named by hand."""
    family_by_model: dict[str, str] = {}
    for family, globs in families.items():
        _check_name(family)
        for glob in globs:
            matches = [name for name in names if fnmatchcase(name, glob)]
            if not matches:
                raise InvalidInputError(
                    f"family {family!r}: no model's name matches {glob!r}; they are {', '.join(names)}"
                )
            for name in matches:
                if (earlier := family_by_model.setdefault(name, family)) != family:
                    raise InvalidInputError(f"{name} is in two families, {earlier} and {family}; make one narrower")
    return family_by_model


def _families_by_axis(stores: Sequence[ActivationStore], axis: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the families of trained models by their values on an axis, and the variants of all models (`Member`)."""
    axes = {store.model: store.axes for store in stores}
    members = [Member(store, "", "") for store in stores]
    for member in members:
        own = axes[member.name]
        if member.trained and axis not in own:
            raise InvalidInputError(
                f"{member.store.path} has no axis {axis}, which is to name its family; it has "
                f"{in_words(own) or 'no axes'}",
                remedy=Remedy("state it with ", Argument("axes", of="extract"), ", or leave the model out"),
            )
    families = {m.name: f"{axis}={axes[m.name][axis]}" for m in members if m.trained}
    for family in families.values():
        _check_name(family)
    sizes: dict[str, set[str]] = {}
    for member in members:
        if member.trained and axis in SIZES:
            sizes.setdefault(member.architecture, set()).add(families[member.name])
    several = {architecture for architecture, values in sizes.items() if len(values) > 1}
    for member in members:
        if member.architecture in several and axis not in axes[member.name]:
            raise InvalidInputError(
                f"{member.store.path} has no axis {axis}, and {member.architecture} has several of them",
                remedy=Remedy("state it with ", Argument("axes", of="extract"), ", or leave the model out"),
            )
    variants = {m.name: f"{axis}={axes[m.name][axis]}" for m in members if m.architecture in several}
    return families, variants


def _families_in_words(trained: Sequence[Member], axis: str) -> str:
    counts: dict[str, int] = {}
    for member in trained:
        counts[member.family] = counts.get(member.family, 0) + 1
    listed = ", ".join(f"{family} ({count} model{'s' * (count > 1)})" for family, count in counts.items())
    return f"families by the axis {axis}: {listed}"


def _readout(stores: Sequence[ActivationStore], requested: str | None) -> str:
    by_store = [list(dict.fromkeys(store[name].key.readout for name in store.layers)) for store in stores]
    if requested is not None:
        for store, readouts in zip(stores, by_store, strict=True):
            if requested not in readouts:
                raise InvalidInputError(
                    f"{store.path} holds no layer that is read out by {requested}, only by {', '.join(readouts)}"
                )
        return requested
    common = [readout for readout in by_store[0] if all(readout in readouts for readouts in by_store)]
    if len(common) != 1:
        listed = ", ".join(dict.fromkeys(readout for readouts in by_store for readout in readouts))
        if common:
            raise InvalidInputError(
                f"the stores hold these readouts: {listed}",
                remedy=Remedy("name one that all of them have with ", Argument("readout")),
            )
        raise InvalidInputError(
            f"the stores have no readout in common ({listed})", remedy=Remedy("extract all of them with the same one")
        )
    return common[0]


def _notes(trained: Sequence[Member]) -> Iterator[str]:
    families = list(dict.fromkeys(member.family for member in trained))
    if len(trained) == 1:
        yield f"one trained model ({trained[0].name}): there is nothing to compare its representation with"
    elif len(families) == 1:
        yield f"all trained models are of one family ({families[0]}): nothing can be said across architectures"
    alone = [family for family in families if sum(member.family == family for member in trained) == 1]
    if alone and len(trained) > 1:
        yield (
            f"one model of {', '.join(alone)}: the shares of family and seed cannot be told apart there, and there is "
            "no ceiling; add another seed or recipe"
        )
    mixed = [
        family for family in families if len({member.architecture for member in trained if member.family == family}) > 1
    ]
    if mixed:
        yield (
            f"{', '.join(mixed)}: members differ in architecture as well as in seed, and the share called seed "
            "contains both"
        )
