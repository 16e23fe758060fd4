"""Who takes part in a study: which models are of one family, which are seeds of one architecture, which are untrained.

All of it is read from the stores' provenance; families can be named by hand.
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
    """One model of a study: its store, and what is known of it."""

    store: ActivationStore
    family: str
    readout: str

    @property
    def name(self) -> str:
        """The model's name."""
        return self.store.model

    @property
    def trained(self) -> bool:
        """Whether it has learnt anything: its weights are not random."""
        return self.store.provenance.get("weights") != "random"

    @property
    def architecture(self) -> str:
        """As timm names it; of a store made elsewhere, the model's name without a seed at its end."""
        return str(self.store.provenance.get("architecture") or _SEED.sub("", self.name))

    @property
    def seed(self) -> int | None:
        """Where only the seed tells it from others of its architecture."""
        found = _SEED.search(self.name)
        return int(found[1]) if found else None

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its layers' arrays in the store, in depth order."""
        return tuple(name for name in self.store.layers if self.store[name].key.readout == self.readout)

    @property
    def blocks(self) -> tuple[str, ...]:
        """What the layers are called within the model."""
        return tuple(self.store[array].key.layer for array in self.arrays)

    @property
    def layers(self) -> tuple[str, ...]:
        """Their names in the study."""
        return tuple(f"{self.name}/{block}" for block in self.blocks)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models that are compared."""

    a: Member
    b: Member

    @property
    def relation(self) -> Relation:
        """What they have in common."""
        if self.a.family != self.b.family:
            return "other family"
        return "same architecture" if self.a.architecture == self.b.architecture else "same family"

    @property
    def name(self) -> str:
        """Of both."""
        return f"{self.a.name} x {self.b.name}"


@dataclass(frozen=True)
class Design:
    """The models of a study."""

    trained: tuple[Member, ...]
    untrained: tuple[Member, ...]
    notes: tuple[str, ...] = field(default=())
    """What this choice of models cannot tell, in words."""

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them."""
        return (*self.trained, *self.untrained)

    @property
    def ids(self) -> SampleIds:
        """Of every store."""
        return self.members[0].store.sample_ids

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.ids)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of trained models."""
        return tuple(Pair(a, b) for a, b in combinations(self.trained, 2))

    def of(self, relation: Relation) -> Iterator[tuple[int, Pair]]:
        """Pairs with this in common, and their numbers."""
        return ((k, pair) for k, pair in enumerate(self.pairs) if pair.relation == relation)

    def controls_of(self, pair: Pair) -> tuple[Pair, ...]:
        """Untrained networks of the same two architectures, seed by seed; of one architecture, of two seeds.

        a x b and b x a have the very same ones.
        """
        order = sorted([pair.a.architecture, pair.b.architecture])
        sides = [[m for m in self.untrained if m.architecture == architecture] for architecture in order]
        if pair.a.architecture == pair.b.architecture:
            return tuple(Pair(a, b) for a, b in combinations(sides[0], 2))
        return tuple(map(Pair, *sides)) if min(map(len, sides)) else ()


def is_twin(untrained: Member, trained: Member) -> bool:
    """Whether it is the same network before it has learnt, layer by layer."""
    return (untrained.architecture, untrained.blocks) == (trained.architecture, trained.blocks)


def half_trained(design: Design, pair: Pair) -> tuple[Pair, ...]:
    """One of the two with an untrained network of the other's architecture."""
    found = []
    for one, other in ((pair.a, pair.b), (pair.b, pair.a)):
        found += [Pair(one, twin) for twin in design.untrained if twin.architecture == other.architecture]
    return tuple({frozenset({each.a.name, each.b.name}): each for each in found}.values())


def design(
    stores: Sequence[ActivationStore],
    *,
    families: Mapping[str, Sequence[str]] | None = None,
    readout: str | None = None,
) -> Design:
    """Find out who is who.

    Parameters
    ----------
    stores
        Over the same samples in the same order, each of another model.
    families
        Name -> globs over models' names. Models that none matches keep the family that timm's module gives them.
    readout
        Which arrays take part; needed where stores hold several.

    Raises
    ------
    InvalidInputError
        No trained model; two of one name; a glob that matches nothing, or two that match one model; a readout that a
        store has not; compressed readouts, from which samples cannot be left out.
    SampleMismatchError
        Stores of other samples, or in another order.
    """
    if not stores:
        raise InvalidInputError("name at least one store")
    names = [store.model for store in stores]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        files = ", ".join(str(store.path) for store in stores if store.model == twice[0])
        raise InvalidInputError(f"{files} are all of a model named {twice[0]!r}; a study takes every model once")
    view = AlignedView(*stores)
    named = _named(names, families or {})
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
    return Design(trained, untrained, (*_notes(trained), *view.notes))


def _family(store: ActivationStore) -> str:
    member = Member(store, "", "")
    return family_of(member.architecture) or member.architecture


def _named(names: Sequence[str], families: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Model -> family, of those that were named by hand."""
    found: dict[str, str] = {}
    for family, globs in families.items():
        for glob in globs:
            hits = [name for name in names if fnmatchcase(name, glob)]
            if not hits:
                raise InvalidInputError(
                    f"family {family!r}: no model's name matches {glob!r}; they are {', '.join(names)}"
                )
            for name in hits:
                if found.setdefault(name, family) != family:
                    raise InvalidInputError(f"{name} is in two families, {found[name]} and {family}; make one narrower")
    return found


def _readout(stores: Sequence[ActivationStore], wanted: str | None) -> str:
    held = [list(dict.fromkeys(store[name].key.readout for name in store.layers)) for store in stores]
    if wanted is not None:
        for store, there in zip(stores, held, strict=True):
            if wanted not in there:
                raise InvalidInputError(
                    f"{store.path} holds no layer that is read out by {wanted}, only by {', '.join(there)}"
                )
        return wanted
    common = [readout for readout in held[0] if all(readout in there for there in held)]
    if len(common) != 1:
        every = ", ".join(dict.fromkeys(readout for there in held for readout in there))
        if common:
            raise InvalidInputError(
                f"the stores hold these readouts: {every}",
                remedy=Remedy("name one that all of them have with ", Argument("readout")),
            )
        raise InvalidInputError(f"the stores have no readout in common ({every})", remedy=Remedy("extract them alike"))
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
            f"one model of {', '.join(alone)}: what is a family's own and what is a seed's own cannot be told apart "
            "there, and it has no ceiling; add another seed or recipe"
        )
    mixed = [
        family for family in families if len({member.architecture for member in trained if member.family == family}) > 1
    ]
    if mixed:
        yield (
            f"{', '.join(mixed)}: members differ in architecture as well as in seed, and the share called seed has both"
        )
