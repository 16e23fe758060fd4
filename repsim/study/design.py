"""Build the study design from stores: families, architectures, seeds and untrained networks.

All of these are read from the provenance of the stores. Families can also be named by hand.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Literal

from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.extractors.factory import family_of
from repsim.labels import SampleIds
from repsim.stores.alignment import AlignedView
from repsim.stores.store import ActivationStore

Relation = Literal["other family", "same family", "same architecture"]
_SEED = re.compile(r"[.+_-]?(?:random-)?seed-?(\d+)$")


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a study: its store, its family, and the readout that is compared."""

    store: ActivationStore
    family: str
    readout: str

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.store.model

    @property
    def trained(self) -> bool:
        """Whether the model is trained, that is, its weights are not random."""
        return self.store.provenance.get("weights") != "random"

    @property
    def architecture(self) -> str:
        """Name of the architecture in timm; if the store has none, the model's name without a seed at its end."""
        return str(self.store.provenance.get("architecture") or _SEED.sub("", self.name))

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
        """Relation of the two models: "other family", "same family" or "same architecture"."""
        if self.a.family != self.b.family:
            return "other family"
        return "same architecture" if self.a.architecture == self.b.architecture else "same family"

    @property
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

    @property
    def members(self) -> tuple[Member, ...]:
        """All models: the trained ones, then the untrained ones."""
        return (*self.trained, *self.untrained)

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

    def controls_of(self, pair: Pair) -> tuple[Pair, ...]:
        """Return the pairs of untrained networks that are controls of a pair of trained models.

        If the two models have different architectures, the controls pair untrained networks of these architectures,
        seed by seed. If they have the same, the controls are all pairs of untrained networks of it. a x b and b x a
        have the same controls.
        """
        order = sorted([pair.a.architecture, pair.b.architecture])
        sides = [[m for m in self.untrained if m.architecture == architecture] for architecture in order]
        if pair.a.architecture == pair.b.architecture:
            return tuple(Pair(a, b) for a, b in combinations(sides[0], 2))
        return tuple(map(Pair, *sides)) if min(map(len, sides)) else ()


def is_twin(untrained: Member, trained: Member) -> bool:
    """Return whether the untrained network has the same architecture and layers as the trained one."""
    return (untrained.architecture, untrained.blocks) == (trained.architecture, trained.blocks)


def half_trained(design: Design, pair: Pair) -> tuple[Pair, ...]:
    """Return the pairs of one of the two models with an untrained network of the other's architecture."""
    controls = []
    for one, other in ((pair.a, pair.b), (pair.b, pair.a)):
        controls += [Pair(one, twin) for twin in design.untrained if twin.architecture == other.architecture]
    return tuple({frozenset({control.a.name, control.b.name}): control for control in controls}.values())


def design(
    stores: Sequence[ActivationStore],
    *,
    families: Mapping[str, Sequence[str]] | None = None,
    readout: str | None = None,
) -> Design:
    """Build the study design from stores.

    Parameters
    ----------
    stores : sequence of ActivationStore
        Stores of different models, over the same samples in the same order.
    families : mapping, optional
        Name of each family -> globs over names of models. The family of models that match no glob follows from the name
        of their architecture (`repsim.extractors.families`), and a note says so.
    readout : str, optional
        Readout of the arrays to compare; required if stores hold several.

    Raises
    ------
    InvalidInputError
        If there is no trained model, two models have the same name, a glob matches no model, a model is in two
        families, a store lacks the readout, or the readout is compressed (samples cannot be left out of it).
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
    chosen = _readout(stores, readout)
    members = [Member(store, named.get(store.model) or _family(store), chosen) for store in stores]
    for member in members:
        forms = {member.store[array].key.form for array in member.arrays}
        if forms != {"features"}:
            raise InvalidInputError(
                f"{member.store.path}: a study needs the features of every sample, and {chosen} keeps only what CKA "
                "needs",
                remedy=Remedy("extract with ", Argument("readout", "mean", of="extract"), ", cls or grid:K"),
            )
    trained = tuple(member for member in members if member.trained)
    untrained = tuple(member for member in members if not member.trained)
    if not trained:
        raise InvalidInputError(
            f"all of these networks are untrained ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); "
            "add stores of trained ones"
        )
    by_name = [member for member in members if member.name not in named]
    return Design(trained, untrained, (*_families_by_name(by_name), *_notes(trained), *view.notes))


def _family(store: ActivationStore) -> str:
    member = Member(store, "", "")
    return family_of(member.architecture) or member.architecture


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
