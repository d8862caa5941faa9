"""What is wrong with gradients, found look by look and told in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._checks import integer, number
from fastgrad.monitor.history import INF, NAN, NORM, RATIO, ZERO, Look

# Causes before what they may lead to.
KINDS = ("nonfinite", "updates", "exploding", "dead", "vanishing", "saturated", "clipping")

# Looks over which the usual size of a gradient is taken, and before which nobody knows it.
MEMORY, FAMILIAR = 50, 10


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When something is a trouble. The reason stands with each; all are arguments of `GradientMonitor`.

    vanishing: a gradient whose root mean square is below this share of the largest of all tensors in the same step. At
        one learning rate such a weight learns a millionth as fast as another: in no run does it learn anything.
    exploding: a gradient whose root mean square is this many times its usual one, the geometric mean of some 50 looks:
        a batch seldom makes it 10 times as large.
    largest: a gradient whose root mean square is above this, however usual: with a loss of order 1, a change of the
        weights by a thousandth then changes it by as much as itself. Make it larger for losses that are sums.
    update_ratio: a step changes a tensor by this share of its own norm, three looks in a row, or by three times as much
        in one. Common is 1e-4 to 0.1; from a third on, what a weight had learnt is gone within a few steps. Tensors
        that begin at zero are left out until they have grown.
    dead: share of the units in front of a relu whose bias had a gradient of exactly 0: no example of the batch reached
        them. A few are common, and every second one is a loss of half of the layer.
    saturated: share of the values of a gate of an LSTM or GRU below 0.01 or above 0.99, where its derivative is below 4
        % of its largest: such a gate hardly learns. A forget gate that stays open is good at remembering, so that it
        takes nearly all of them.
    clipped: as many looks in a row that were all clipped: then max_norm has taken the place of the learning rate.
    patience: looks in a row before a vanishing gradient is told. Tensors that begin at zero leave others without a
        gradient in the first step or two.
    """

    vanishing: float = 1e-6
    exploding: float = 100.0
    largest: float = 1e3
    update_ratio: float = 1 / 3
    dead: float = 0.5
    saturated: float = 0.95
    clipped: int = 100
    patience: int = 5

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Thresholds:
        """Return the thresholds with those given in place of their defaults.

        Raises TypeError for an unknown one and for no number, ValueError for one below 0, or looks below 1.
        """
        for name, value in given.items():
            if name not in cls.__slots__:
                raise TypeError(f"{name}: expected one of the thresholds {', '.join(cls.__slots__)}")
            if name in ("clipped", "patience"):
                integer(name, value, 1)
            else:
                number(name, value, 0.0, finite=False)
        return cls(**given)

    def looks(self, kind: str) -> int:
        """Return for how many looks in a row something must hold before it is told."""
        return {
            "vanishing": self.patience,
            "updates": 3,  # a single large step, as behind a jump of the schedule, need not do harm
            "dead": 4 * self.patience,  # batches differ: a unit that fires seldom is not dead
            "saturated": 4 * self.patience,
            "clipping": self.clipped,
        }.get(kind, 1)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something wrong, in words; `str` gives them.

    kind: one of "nonfinite", "updates", "exploding", "dead", "vanishing", "saturated", "clipping".
    layer, tensor: the first concerned, "" where it is the whole run.
    since, until: the first step and the last, as far as looked at. ongoing: whether the last look still saw it.
    words: one or two sentences.
    """

    kind: str
    layer: str
    tensor: str
    since: int
    until: int
    ongoing: bool
    words: str

    def __str__(self) -> str:
        return self.words


def layer_of(name: str) -> str:
    """Return the layer of a tensor: "rnn" of "rnn.weight_hh_l0"."""
    return name.rpartition(".")[0] or name


class _Episodes:
    """Where one kind of trouble is, and since when: of n places."""

    def __init__(self, count: int, patience: int) -> None:
        self.patience = patience
        self.run = np.zeros(count, np.int64)  # looks in a row
        self.began = np.zeros(count, np.int64)  # the step of the first of them
        self.since, self.until = np.full(count, -1), np.full(count, -1)  # of the last that lasted long enough
        self.worst, self.first = np.full(count, np.nan), np.full(count, np.nan)

    def take(
        self,
        step: int,
        bad: np.ndarray,
        value: np.ndarray,
        known: np.ndarray,
        *,
        high: bool = True,
        at_once: np.ndarray | bool = False,
    ) -> None:
        """Go on with a look: where it is bad, by how much, where anything is known at all.

        high: larger values are worse. at_once: where it is so bad that one look is enough.
        """
        begins = known & bad & (self.run == 0)
        self.began, self.first = np.where(begins, step, self.began), np.where(begins, value, self.first)
        more = np.where(at_once, self.patience, 1)
        self.run = np.where(known, np.where(bad, self.run + more, 0), self.run)
        told = known & bad & (self.run >= self.patience)
        fresh = told & (self.since != self.began)
        self.since = np.where(told, self.began, self.since)
        self.until = np.where(told, step, self.until)
        worse = value if high else -value
        before = self.worst if high else -self.worst
        self.worst = np.where(told & (fresh | ~(worse <= before)), value, self.worst)

    def places(self) -> np.ndarray:
        """Return where it was ever told."""
        return np.flatnonzero(self.since >= 0)


class Diagnosis:
    """The troubles of a run, look by look.

    names, sizes: of the tensors.
    relus: of tensors that are biases in front of a relu, the place.
    """

    def __init__(self, names: tuple[str, ...], sizes: Sequence[int], relus: Sequence[int], limits: Thresholds) -> None:
        self.names, self.sizes, self.limits = names, np.maximum(np.array(sizes, np.float64), 1), limits
        self.relus = np.array(relus, np.int64)
        self.gates: list[tuple[str, str]] = []  # layer and gate of each place of "saturated"
        count = len(names)
        each = {"nonfinite": 1, "clipping": 1, "saturated": 0, "dead": len(relus)}
        self.episodes = {kind: _Episodes(each.get(kind, count), limits.looks(kind)) for kind in KINDS}
        self.looks, self.last, self.skipped, self.clipped = 0, -1, 0, 0
        self.first_nonfinite: tuple[int, str, int, int] | None = None  # step, tensor, NaN or Inf in it, tensors
        self.ratios = (math.inf, 0.0)  # range of the medians of updates
        self._usual, self._familiar = np.zeros(count), np.zeros(count, np.int64)
        self._from_zero = np.zeros(count, bool)
        layers = list(dict.fromkeys(map(layer_of, names)))
        self._layers = np.array([layers.index(layer_of(name)) for name in names], np.int64)
        self._reference, self._coefficients = "", list[float]()

    def take(self, look: Look, gates: dict[tuple[str, str], float]) -> None:
        """Go on with a look, and the saturated share of each (layer, gate)."""
        step, values = look.step, look.values
        self.looks, self.last = self.looks + 1, step
        norm, ratio = values[NORM], values[RATIO]
        present = ~np.isnan(values[NAN])
        known = present & np.isfinite(norm)
        rms = np.where(known, norm, np.nan) / np.sqrt(self.sizes)
        self._nonfinite(look, present, known)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            # Against the usual size, before this look is part of it.
            usual = np.where(self._familiar >= FAMILIAR, np.exp(self._usual), np.inf)
            exploding = (rms > self.limits.exploding * usual) | (rms > self.limits.largest)
            self.episodes["exploding"].take(step, exploding, rms, known)
            largest = np.nanmax(rms, initial=0.0) if known.any() else 0.0
            # Beside one that has exploded others look small, and are not.
            vanishing = (rms < self.limits.vanishing * largest) | (rms == 0)
            calm = known & (largest <= self.limits.largest) & ~exploding.any()
            if largest > 0:
                self._reference = self.names[int(np.nanargmax(rms))]
            # A single tensor may have none by right: a bias in front of batch_norm, or of the keys of attention.
            vanishing &= np.bincount(self._layers, known & ~vanishing)[self._layers] == 0
            share = np.where(largest > 0, rms / largest, 0.0)
            self.episodes["vanishing"].take(step, vanishing, share, calm & (self.sizes > 0), high=False)
            counted = known & (rms > 0)
            self._familiar += counted
            weight = 1 / np.clip(self._familiar, 1, MEMORY)
            self._usual = np.where(counted, self._usual + weight * (np.log(rms) - self._usual), self._usual)
            if not look.skipped:
                self._updates(step, ratio, known)
        dead = values[ZERO][self.relus] / self.sizes[self.relus]
        self.episodes["dead"].take(step, dead >= self.limits.dead, dead, known[self.relus])
        self._clipping(look)
        self._saturated(step, gates)

    def _nonfinite(self, look: Look, present: np.ndarray, known: np.ndarray) -> None:
        self.skipped += look.skipped
        bad = np.flatnonzero(present & ~known)
        if bad.size and self.first_nonfinite is None:
            # Backward goes from the last parameter to the first: that one was reached first.
            first = int(bad[-1])
            counts = look.values[[NAN, INF], first]
            self.first_nonfinite = (look.step, self.names[first], int(counts[0]), bad.size)
        found = np.array([bad.size > 0 or not math.isfinite(look.grad_norm)])
        self.episodes["nonfinite"].take(look.step, found, np.array([float(bad.size)]), np.array([True]))

    def _updates(self, step: int, ratio: np.ndarray, known: np.ndarray) -> None:
        # What begins at zero moves by all of itself at first, and in the k-th step of Adam by 1 / k.
        self._from_zero |= known & np.isinf(ratio)
        self._from_zero &= ~(ratio < self.limits.update_ratio)
        measured = known & np.isfinite(ratio) & ~self._from_zero
        limit = self.limits.update_ratio
        self.episodes["updates"].take(step, ratio >= limit, ratio, measured, at_once=ratio >= 3 * limit)
        if measured.any():
            middle = float(np.median(ratio[measured]))
            self.ratios = min(self.ratios[0], middle), max(self.ratios[1], middle)

    def _clipping(self, look: Look) -> None:
        if look.skipped:
            return
        clipped = look.clip_coefficient < 1
        self.clipped += clipped
        self._coefficients = [*self._coefficients[-self.limits.clipped + 1 :], look.clip_coefficient] if clipped else []
        value = float(np.median(self._coefficients)) if clipped else 1.0
        self.episodes["clipping"].take(look.step, np.array([clipped]), np.array([value]), np.array([True]), high=False)

    def _saturated(self, step: int, gates: dict[tuple[str, str], float]) -> None:
        if not gates:
            return
        if list(gates) != self.gates:
            self.gates = list(gates)
            self.episodes["saturated"] = _Episodes(len(gates), self.limits.looks("saturated"))
        shares = np.array(list(gates.values()))
        known = ~np.isnan(shares)
        self.episodes["saturated"].take(step, shares >= self.limits.saturated, shares, known)

    # --- words

    def troubles(self) -> list[Trouble]:
        """Return what was wrong, in the order of KINDS."""
        found = []
        for kind in KINDS:
            episodes = self.episodes[kind]
            places = episodes.places()
            if places.size:
                found.append(getattr(self, f"_tell_{kind}")(kind, episodes, places))
        return found

    def _trouble(self, kind: str, episodes: _Episodes, places: np.ndarray, name: str, words: str) -> Trouble:
        until = int(episodes.until[places].max())
        ongoing = until == self.last
        if not ongoing:
            words += f" It was last seen in step {until:,}."
        return Trouble(kind, layer_of(name), name, int(episodes.since[places].min()), until, ongoing, words)

    def _more(self, names: list[str]) -> str:
        """Say in how many further layers it is so."""
        layers = list(dict.fromkeys(map(layer_of, names)))[1:]
        if not layers:
            return ""
        if len(layers) <= 3:
            return (
                f" The same holds for {' and '.join([', '.join(layers[:-1]), layers[-1]] if layers[1:] else layers)}."
            )
        return f" The same holds for {len(layers)} further layers, the last of them {layers[-1]}."

    def _tell_nonfinite(self, kind: str, episodes: _Episodes, places: np.ndarray) -> Trouble:
        since = int(episodes.since[0])
        if self.first_nonfinite is None:
            return self._trouble(
                kind, episodes, places, "", f"The norm of the gradients overflows since step {since:,}, while each of "
                "them is finite."
            )  # fmt: skip
        step, name, nan, tensors = self.first_nonfinite
        what = "NaN" if nan else "an infinite entry"
        spread = "" if tensors == 1 else f" and in {tensors - 1} further tensors"
        words = (
            f"The gradient of {name} has {what} in step {step:,}{spread}; it is the first that backward reached. "
            f"{self.skipped:,} of the {self.looks:,} steps looked at were skipped."
        )
        return self._trouble(kind, episodes, places, name, words)

    def _tell_exploding(self, kind: str, episodes: _Episodes, places: np.ndarray) -> Trouble:
        first = places[np.argmin(episodes.since[places])]
        name, worst = self.names[first], episodes.worst[first]
        words = (
            f"The gradient of {name} has exploded in step {int(episodes.since[first]):,}: a root mean square of "
            f"{worst:.2g}.{self._more([name, *(self.names[k] for k in places if k != first)])} "
            "A smaller lr or max_norm helps."
        )
        return self._trouble(kind, episodes, places, name, words)

    def _tell_vanishing(self, kind: str, episodes: _Episodes, places: np.ndarray) -> Trouble:
        now = places[episodes.until[places] == episodes.until[places].max()]
        names = [self.names[k] for k in now]
        name, worst, since = names[0], float(episodes.worst[now[0]]), int(episodes.since[now[0]])
        if worst > 0:
            how = f"its root mean square is {worst:.1g} of that of {self._reference}, the largest"
        else:
            how = "it is exactly 0"
        words = (
            f"The gradient of {name} has vanished since step {since:,}: {how}.{self._more(names)} Activations that do "
            "not saturate (relu, gelu), residual connections, norms between layers or an LSTM keep it alive."
        )
        return self._trouble(kind, episodes, places, name, words)

    def _tell_updates(self, kind: str, episodes: _Episodes, places: np.ndarray) -> Trouble:
        first = places[np.argmax(episodes.worst[places])]
        name, worst, since = self.names[first], episodes.worst[first], int(episodes.since[first])
        usual = _factor(max(2.0, episodes.first[first] / 0.05))
        ongoing = int(episodes.until[places].max()) == self.last
        words = (
            f"The learning rate is too high: {f'from step {since:,} on' if ongoing else f'in step {since:,}'} a step "
            f"changes {name} by up to {worst:.2g} times its own norm, where 0.1 is much."
            f"{self._more([name, *(self.names[k] for k in places if k != first)])} "
            f"A lr {usual} times smaller would be usual."
        )
        return self._trouble(kind, episodes, places, name, words)

    def _tell_dead(self, kind: str, episodes: _Episodes, places: np.ndarray) -> Trouble:
        names = [self.names[self.relus[k]] for k in places]
        first = places[0]
        words = (
            f"Units of a relu are dead: in each look since step {int(episodes.since[first]):,} at least "
            f"{self.limits.dead:.0%} of the units of {layer_of(names[0])}, and up to {episodes.worst[first]:.0%}, got "
            f"a gradient of exactly 0."
            f"{self._more(names)} A smaller lr, he_normal or leaky_relu keeps them alive."
        )
        return self._trouble(kind, episodes, places, names[0], words)

    def _tell_saturated(self, kind: str, episodes: _Episodes, places: np.ndarray) -> Trouble:
        parts: dict[str, list[str]] = {}
        for k in places:
            parts.setdefault(self.gates[k][0], []).append(self.gates[k][1])
        gates = "; ".join(f"{_listed(names)} gate{'s' * (len(names) > 1)} of {layer}" for layer, names in parts.items())
        first = places[0]
        words = (
            f"Gates are saturated: {episodes.worst[first]:.0%} of the values of the {gates} lie below 0.01 "
            f"or above 0.99 since step {int(episodes.since[first]):,}, where they hardly learn. A smaller lr, weight "
            "decay or smaller inputs help."
        )
        return self._trouble(kind, episodes, places, self.gates[first][0], words)

    def _tell_clipping(self, kind: str, episodes: _Episodes, places: np.ndarray) -> Trouble:
        share = float(np.median(self._coefficients or episodes.worst))
        words = (
            f"Every step since step {int(episodes.since[0]):,} was clipped, to {share:.2g} of the gradient in the "
            "median: max_norm has taken the place of the learning rate. A larger max_norm, or a smaller lr, gives it "
            "back."
        )
        return self._trouble(kind, episodes, places, "", words)

    def verdict(self) -> str:
        """Return one or two sentences on the run."""
        if self.looks == 0:
            return "nothing was looked at yet."
        found = self.troubles()
        if found:
            told = " ".join(_first_sentence(trouble.words) for trouble in found[:2])
            more = len(found) - 2
            others = "" if more <= 0 else f" And {more} more."
            past = not any(trouble.ongoing for trouble in found)
            return f"{'calm at the end, after trouble: ' if past else ''}{told}{others}"
        parts = ["no gradient vanished, exploded or was not finite"]
        if self.ratios[1] > 0:
            low, high = self.ratios
            parts.append(f"a step changed a tensor by {low:.1g} to {high:.1g} of its norm in the median")
        if self.clipped:
            parts.append(f"{self.clipped / self.looks:.0%} of the steps were clipped")
        return f"healthy in {self.looks:,} looks up to step {self.last:,}: {', '.join(parts)}."


def _first_sentence(words: str) -> str:
    head, dot, _ = words.partition(". ")
    return head + dot.strip() if dot else words


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _factor(number: float) -> str:
    power = 10 ** math.floor(math.log10(number))
    return f"{round(number / power) * power:,.0f}"
