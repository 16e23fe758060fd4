"""Networks as random draws: intervals over networks, and how often something is claimed."""

from collections.abc import Iterator

import numpy as np

from repsim.runtime import tuning
from repsim.study.design import Design
from simulations.cells import ANY, Cell, Numbers, Simulation
from simulations.nothing_learned import levels
from simulations.studies import FeatureKernels, families, inference, places, some_of

_GIVEN = 0.4
"""Share of the input in the energy of every layer."""
_UNTRAINED = 0.5
"""Mean of c of untrained networks, where two networks have a partial CKA of c c'."""
_EFFECTS, _SPREADS = (0.0, 0.02, 0.05, 0.1, 0.2), (0.02, 0.05)
_NUMBERS = ((2, 2), (2, 3), (3, 3), (4, 4), (5, 5))


def level_of_trained(effect: float) -> float:
    """Return the mean c of trained networks, so that their partial CKA exceeds every control by the effect at least.

    The strongest control has one trained network: c_T^2 - c_T c_U = effect.
    """
    return float((_UNTRAINED + np.sqrt(_UNTRAINED**2 + 4 * effect)) / 2)


def random_networks(rng: np.random.Generator, design: Design, n: int, effect: float, spread: float) -> FeatureKernels:
    """Draw networks of one layer whose similarity with networks of other families varies from network to network.

    The kernel of a layer is sqrt(.4) I + sqrt(.6) (c S + sqrt(1 - c^2) O): I is the input, S what all networks share
    and O their own. The spread is the standard deviation, over networks, of the mean partial CKA of a trained network.
    """
    mean, sizes = level_of_trained(effect), {"input": 8, "shared": 8, "own": 10}
    latents = {part: rng.normal(size=(n, size)) / size**0.25 for part, size in sizes.items() if part != "own"}
    layers = []
    for network in design.members:
        c = float(np.clip(rng.normal(mean if network.trained else _UNTRAINED, spread / mean), 0.01, 0.99))
        own = rng.normal(size=(n, sizes["own"])) / sizes["own"] ** 0.25
        weights = _GIVEN, (1 - _GIVEN) * c**2, (1 - _GIVEN) * (1 - c**2)
        parts = zip(weights, (latents["input"], latents["shared"], own), strict=True)
        layers.append(np.hstack([weight**0.25 * part for weight, part in parts]))
    return FeatureKernels((*layers, latents["input"]), places(design, 1))


def networks(simulation: Simulation, n: int = 500) -> Iterator[Cell]:
    """Yield how often a claim about architectures is made, and intervals over networks hold the truth."""
    power, rates = "claims about architectures", "intervals over networks and samples hold the truth"
    most = families(3, *_NUMBERS[-1], layers=1)
    cases = [(0.1, 0.02)] if simulation.quick else [(effect, spread) for spread in _SPREADS for effect in _EFFECTS]
    counts = _NUMBERS[1:2] if simulation.quick else _NUMBERS
    designs = {
        f"{trained} + {untrained}": Design(
            tuple(member for member in most.trained if int(member.name[1:]) < trained),
            tuple(member for member in most.untrained if int(member.name.split("untrained")[1]) < untrained),
        )
        for trained, untrained in counts
    }
    cells = []
    for effect, spread in cases:

        def one(run: int, effect: float = effect, spread: float = spread) -> Numbers:
            rng = np.random.default_rng([7, round(100 * effect), round(100 * spread), run])
            kernels, numbers = random_networks(rng, most, n, effect, spread), dict[str, float]()
            for name, design in designs.items():
                with tuning.using(halvings=2):
                    study = inference(design, some_of(kernels, design), run)
                reached, table = levels(study)
                of_kernel = table.sel(kernel="cka given input", measure="cka given input")
                low, high = (of_kernel[f"effect_network_{end}"].values for end in ("low", "high"))
                numbers |= {f"{name}, {key}": value for key, value in reached.items()}
                numbers[f"{name}, covered"] = float(np.mean((low <= effect) & (effect <= high)))
                numbers[f"{name}, below"] = float(np.mean(high < effect))
                numbers[f"{name}, width"] = float(np.mean(high - low))
            return numbers

        runs = 4 if simulation.quick else 200
        numbers = simulation.runs(f"networks effect {effect} spread {spread}", runs, one)
        if not numbers:
            continue
        for name in designs:
            row, bounds = f"{name} networks a family, spread {spread}", (0, 0.05) if effect == 0 else ANY
            for families_, key in (("two families", "pair"), ("three families", "all")):
                column, rate = f"effect {effect:g}, {families_}", numbers[f"{name}, {key}, architectures"].mean()
                yield Cell(power, row, column, float(rate), bounds[0], bounds[1], "{:.0%}")
            if effect:
                cells.append(Cell(rates, row, f"effect {effect:g}", float(numbers[f"{name}, covered"].mean()), 0.93, 1))
    yield from cells
