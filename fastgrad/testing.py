"""`gradcheck`: the gradients of a layer, or of a function and its backward, against central differences.

fastgrad's own tests use it, and it serves for a layer that you write yourself. Arrays are NumPy's or CuPy's, float64.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._arrays import Array, array_module, is_array, to_host

__all__ = ["GradcheckError", "Mismatch", "gradcheck"]

# What the rounding of the outputs makes of a difference, in units in the last place of their terms: a dozen operations.
ROUNDINGS = 12.0
# Two sums of the same terms in another order, as a share of the largest.
REORDERED = 1e-9


@dataclass(frozen=True)
class Mismatch:
    """A gradient that is wrong.

    name: of the parameter, or of the input as `forward` names it.
    problem: what is wrong, in words.
    index: of its worst entry; None where it has none to show: there is no gradient, or its shape or dtype is wrong.
    expected, got: that entry by central differences, and as the backward pass has it.
    """

    name: str
    problem: str
    index: tuple[int, ...] | None = None
    expected: float = math.nan
    got: float = math.nan

    def __str__(self) -> str:
        if self.index is None:
            return f"{self.name}: {self.problem}"
        return f"{self.name}: {self.problem} at {self.index}: expected {self.expected!r}, got {self.got!r}"


class GradcheckError(AssertionError):
    """Gradients are wrong; `mismatches` lists them."""

    def __init__(self, title: str, mismatches: list[Mismatch]) -> None:
        super().__init__("\n  ".join([title, *map(str, mismatches)]))
        self.mismatches = mismatches


def gradcheck(
    target: Any,
    inputs: Any,
    backward: Callable[..., Any] | None = None,
    *,
    step: float = 1e-6,
    tolerance: float = 1e-7,
    exhaustive: int = 1000,
    directions: int = 8,
    rng: np.random.Generator | int | None = 0,
) -> None:
    """Check gradients against central differences, (f(x + step) - f(x - step)) / (2 step), in float64.

        gradcheck(layers.LayerNorm(5, dtype=np.float64), x)
        gradcheck(fastgrad.linear.linear, (x, weight, bias), fastgrad.linear.linear_backward)
        gradcheck(lambda z: mse(z, target)[0], z, lambda dloss, z: dloss * mse(z, target)[1])

    The scalar that is differentiated is the sum of dy y over all outputs y, with random dy. Of a layer the gradients of
    inputs and parameters are checked, and that a backward pass adds to what stands in `Parameter.grad`. The layer
    itself is left alone: every evaluation runs on a copy of it, and so starts from the same random numbers and running
    statistics. A Dropout drops the same entries each time, a BatchNorm is checked in training or evaluation, as it is
    given. A function has to see to that itself, as by a fixed seed and offset of `fastgrad.dropout`.

    Args:
        target: a layer, or anything with its forward(*inputs), backward(*dy) and named_parameters(); or a function of
            the inputs. What it returns are arrays or numbers, in tuples of any depth, such as (y, (hn, cn)).
        inputs: the argument, or a tuple or list of all of them. float64 arrays are checked, also those in tuples;
            everything else is handed on as it is, such as integers or None.
        backward: of a function: backward(dy, *inputs), where dy has the form of what the function returned. It returns
            a gradient for each input, or for those with float64 arrays, as a tuple; for one input also without it.
            A layer's takes dy, of one that returns (y, state) dy and dstate, and returns the gradient of its first
            input or a tuple of all; that of a second one may be the attribute `dstate0`.
        step: of the differences. Where an activation has a kink no input may be nearer to it than this.
        tolerance: largest error, as a share of the largest entry of that gradient; what rounding makes of the
            differences comes on top.
        exhaustive: arrays of up to this many entries are checked entry by entry.
        directions: larger ones, n entries, are checked along so many random directions of length 1, where the error of
            one entry shows divided by about the root of n. The entry to blame is then searched for.
        rng: a numpy Generator or a seed, for dy and directions.

    Raises:
        GradcheckError: an AssertionError. Its text and its `mismatches` name each wrong gradient with the index of its
            worst entry, what was expected and what came.
        TypeError: target has no backward where none is given; an input, a parameter or an output is a float array but
            not float64.
        ValueError: nothing to check: no float64 array among inputs and parameters.
    """
    if backward is None and not hasattr(target, "backward"):
        raise TypeError(
            f"target: expected a layer with forward and backward, got {type(target).__qualname__}; pass the gradient "
            f"of a function as backward=..."
        )
    random = np.random.default_rng(rng)
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    check = _OfLayer(target, given) if backward is None else _OfFunction(target, given, backward)
    outputs = check.evaluate()
    dy = _drawn(outputs, random)
    weights = [array.copy() for _, array in _floats(dy, "dy")]
    # In their sum rounding errors come together like those of independent terms.
    sizes = [float(np.linalg.norm(w * to_host(y))) for w, (_, y) in zip(weights, _floats(outputs, "y"), strict=True)]
    noise = ROUNDINGS * np.finfo(np.float64).eps * math.hypot(*sizes) / step
    check.differentiate(_like(dy, outputs))

    def slope(leaf: _Leaf, direction: np.ndarray) -> float:
        """Return the derivative of the scalar along a direction in one array."""
        start = leaf.host.copy()
        ends, moved = [], []
        for sign in (1.0, -1.0):
            leaf.host[...] = start + sign * step * direction
            moved.append(leaf.host.copy())
            leaf.write()
            ends.append([to_host(y).copy() for _, y in _floats(check.evaluate(), "y")])
        leaf.host[...] = start
        leaf.write()
        # What was rounded off the step itself: large entries are further apart than it.
        went = float(np.vdot(moved[0] - moved[1], direction) / np.vdot(direction, direction))
        return sum(float(np.vdot(w, a - b)) for w, a, b in zip(weights, *ends, strict=True)) / went

    mismatches = list(check.mismatches)
    for leaf in check.leaves:
        gradient = leaf.gradient
        if gradient is None:
            continue
        if leaf.host.size <= exhaustive:
            found = _by_entries(leaf, gradient, slope, tolerance, noise)
        else:
            found = _by_directions(leaf, gradient, slope, tolerance, noise, directions, random)
        mismatches += found
    if mismatches:
        count = f"{len({m.name for m in mismatches})} of {len(check.leaves)}"
        raise GradcheckError(f"gradcheck of {check.title}: {count} gradients are wrong", mismatches)


Slope = Callable[["_Leaf", np.ndarray], float]


@dataclass(eq=False)
class _Leaf:
    """A float64 array that is checked: `array` itself, its numbers on the host, and the gradient that came for it."""

    name: str
    array: Array
    host: np.ndarray
    gradient: np.ndarray | None = None

    def write(self) -> None:
        self.array[...] = self.host if type(self.array) is np.ndarray else array_module(self.array).asarray(self.host)


def _by_entries(leaf: _Leaf, gradient: np.ndarray, slope: Slope, tolerance: float, noise: float) -> list[Mismatch]:
    expected = np.empty(gradient.shape)
    for index in np.ndindex(gradient.shape):
        expected[index] = slope(leaf, _unit(gradient.shape, index))
    largest = float(np.max(np.abs(expected), initial=0.0))
    error = np.abs(gradient - expected)
    wrong = ~(error <= tolerance * largest + noise)  # NaN is wrong too
    if not wrong.any():
        return []
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, np.where(wrong, error, 0.0))), error.shape)
    index = tuple(map(int, worst))
    problem = (
        f"{wrong.sum()} of {wrong.size} entries are off by more than {tolerance:g} of the largest, {largest:.6g}; worst"
    )
    return [Mismatch(leaf.name, problem, index, float(expected[worst]), float(gradient[worst]))]


def _by_directions(
    leaf: _Leaf, gradient: np.ndarray, slope: Slope, tolerance: float, noise: float, count: int,
    random: np.random.Generator,
) -> list[Mismatch]:  # fmt: skip
    if not np.isfinite(gradient).all():
        index = tuple(map(int, np.argwhere(~np.isfinite(gradient))[0]))
        expected = slope(leaf, _unit(gradient.shape, index))
        return [Mismatch(leaf.name, "an entry is not finite", index, expected, float(gradient[index]))]
    largest = float(np.max(np.abs(gradient)))
    allowed = tolerance * largest + noise

    def error(direction: np.ndarray) -> float:
        return abs(float(np.vdot(gradient, direction)) - slope(leaf, direction))

    for _ in range(count):
        direction = random.standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        if error(direction) <= allowed:
            continue
        # Half of the entries at a time, the one that is further off.
        entries = np.arange(gradient.size)
        while entries.size > 1:
            halves = np.array_split(entries, 2)
            parts = []
            for half in halves:
                part = np.zeros(gradient.size)
                part[half] = direction.reshape(-1)[half]
                parts.append(error(part.reshape(gradient.shape)))
            entries = halves[0] if parts[0] >= parts[1] else halves[1]
        index = tuple(map(int, np.unravel_index(entries[0], gradient.shape)))
        expected = slope(leaf, _unit(gradient.shape, index))
        problem = (
            f"off along a random direction by more than {tolerance:g} of the largest entry, {largest:.6g}, for one"
        )
        return [Mismatch(leaf.name, problem, index, expected, float(gradient[index]))]
    return []


def _unit(shape: tuple[int, ...], index: tuple[int, ...]) -> np.ndarray:
    direction = np.zeros(shape)
    direction[index] = 1.0
    return direction


class _Check:
    """The arrays that are checked, and the two passes; see the subclasses."""

    title: str
    leaves: list[_Leaf]
    mismatches: list[Mismatch]

    def __init__(self, title: str, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        self.title, self.mismatches = title, []
        self.inputs = copy.deepcopy(inputs)
        self.names = _argument_names(function, len(inputs))
        self.of_input = [
            [_leaf(name, array) for name, array in _floats(value, argument)]
            for argument, value in zip(self.names, self.inputs, strict=True)
        ]
        self.leaves = [leaf for leaves in self.of_input for leaf in leaves]

    def evaluate(self) -> Any:
        """Return the outputs for the arrays as they are."""
        raise NotImplementedError

    def differentiate(self, dy: Any) -> None:
        """Take the gradients of all leaves from a backward pass; `mismatches` gets what is wrong by itself."""
        raise NotImplementedError

    def _wrong(self, leaf: _Leaf, problem: str) -> None:
        self.mismatches.append(Mismatch(leaf.name, problem))

    def _assign(self, leaves: list[_Leaf], value: Any) -> None:
        """Take the gradients of an input, which have its form."""
        found = [array for _, array in _arrays(value, "")]
        if leaves and not found:
            for leaf in leaves:
                self._wrong(leaf, "backward returned no gradient")
            return
        if len(found) != len(leaves):
            for leaf in leaves:
                self._wrong(leaf, f"backward returned {len(found)} arrays for the {len(leaves)} of this input")
            return
        for leaf, array in zip(leaves, found, strict=True):
            self._take(leaf, array)

    def _take(self, leaf: _Leaf, array: Array) -> None:
        if tuple(array.shape) != leaf.host.shape:
            self._wrong(leaf, f"the gradient has shape {tuple(array.shape)}, expected {leaf.host.shape}")
        elif array.dtype != np.float64:
            self._wrong(leaf, f"the gradient is {array.dtype}, expected float64")
        else:
            leaf.gradient = to_host(array).copy()


class _OfFunction(_Check):
    def __init__(self, forward: Callable[..., Any], inputs: tuple[Any, ...], backward: Callable[..., Any]) -> None:
        super().__init__(_name_of(forward), forward, inputs)
        self.forward, self.backward = forward, backward
        _require(self.leaves)

    def evaluate(self) -> Any:
        return self.forward(*self.inputs)

    def differentiate(self, dy: Any) -> None:
        result = self.backward(dy, *self.inputs)
        checked = [leaves for leaves in self.of_input if leaves]
        if len(checked) == 1 and not (isinstance(result, tuple | list) and len(result) == 1):
            several = isinstance(result, tuple | list) and len(result) == len(self.inputs) > 1
            self._assign(checked[0], result[self.of_input.index(checked[0])] if several else result)
            return
        if not isinstance(result, tuple | list) or len(result) not in (len(self.inputs), len(checked)):
            came = f"{len(result)}" if isinstance(result, tuple | list) else type(result).__qualname__
            for leaf in self.leaves:
                self._wrong(leaf, f"backward: expected {len(checked)} gradients in a tuple, got {came}")
            return
        for leaves, value in zip(self.of_input if len(result) == len(self.inputs) else checked, result, strict=True):
            if leaves:
                self._assign(leaves, value)


class _OfLayer(_Check):
    def __init__(self, layer: Any, inputs: tuple[Any, ...]) -> None:
        super().__init__(type(layer).__qualname__, layer.forward, inputs)
        self.layer = copy.deepcopy(layer)
        parameters = [(name, p.data) for name, p in self.layer.named_parameters()]
        self.of_parameter = {name: _leaf(name, array) for own, data in parameters for name, array in _floats(data, own)}
        self.leaves += self.of_parameter.values()
        _require(self.leaves)

    def evaluate(self) -> Any:
        return copy.deepcopy(self.layer).forward(*self.inputs)

    def _passes(self, dy: Any, before: dict[str, Array | None]) -> tuple[Any, Any]:
        """Run forward and backward, with what the parameters' gradients are before; return the layer and dx."""
        layer = copy.deepcopy(self.layer)
        for name, parameter in layer.named_parameters():
            parameter.grad = before[name]
        y = layer.forward(*self.inputs)
        return layer, layer.backward(*dy) if isinstance(y, tuple) else layer.backward(dy)

    def differentiate(self, dy: Any) -> None:
        layer, dx = self._passes(dy, dict.fromkeys(self.of_parameter))
        if isinstance(dx, tuple | list) and len(dx) == len(self.inputs):
            results = list(dx)
        else:
            results = [dx, *([getattr(layer, "dstate0", None)] if len(self.inputs) > 1 else [])]
        results += [None] * (len(self.inputs) - len(results))
        for leaves, value in zip(self.of_input, results, strict=True):
            if leaves:
                self._assign(leaves, value)
        grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
        for name, leaf in self.of_parameter.items():
            if grads[name] is None:  # as of a parameter that took no part
                leaf.gradient = np.zeros(leaf.host.shape)
            else:
                self._take(leaf, grads[name])
        self._check_sums(dy, grads)

    def _check_sums(self, dy: Any, grads: dict[str, Array | None]) -> None:
        """Look whether a backward pass adds to the gradients that are there."""
        twice, _ = self._passes(dy, {name: None if grad is None else grad.copy() for name, grad in grads.items()})
        for name, parameter in twice.named_parameters():
            leaf, total = self.of_parameter[name], parameter.grad
            once = leaf.gradient
            if once is None or grads[name] is None:
                continue
            if total is None or tuple(total.shape) != once.shape:
                self._wrong(leaf, "a second backward pass left no gradient of its shape")
                continue
            error = np.abs(to_host(total) - 2.0 * once)
            if (error <= REORDERED * np.max(np.abs(once), initial=0.0)).all() or np.isnan(once).any():
                continue
            index = tuple(map(int, np.unravel_index(np.nanargmax(error), error.shape)))
            problem = "a second backward pass does not add to the gradient of the first"
            self.mismatches.append(
                Mismatch(name, f"{problem}; worst", index, 2.0 * float(once[index]), float(to_host(total)[index]))
            )


def _require(leaves: list[_Leaf]) -> None:
    if not leaves:
        raise ValueError("inputs: expected a float64 array there or among the parameters, got none: nothing to check")


def _leaf(name: str, array: Array) -> _Leaf:
    return _Leaf(name, array, np.array(to_host(array), order="C"))


def _arrays(value: Any, name: str) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of tuples of any depth, with names; a number counts as an array."""
    if isinstance(value, tuple | list):
        for position, part in enumerate(value):
            yield from _arrays(part, f"{name}[{position}]")
    elif is_array(value):
        yield name, value
    elif isinstance(value, np.floating | float):
        yield name, np.asarray(value)


def _floats(value: Any, name: str) -> Iterator[tuple[str, Array]]:
    """Yield the float64 arrays."""
    for part, array in _arrays(value, name):
        if array.dtype == np.float64:
            yield part, array
        elif array.dtype.kind == "f":
            raise TypeError(f"{part}: expected float64, got {array.dtype}; differences need it: pass dtype=np.float64")


def _drawn(value: Any, random: np.random.Generator) -> Any:
    """Return normal numbers on the host, in the form of the outputs; None for what is no float array."""
    if isinstance(value, tuple | list):
        return tuple(_drawn(part, random) for part in value)
    if not any(True for _ in _floats(value, "y")):
        return None
    return np.asarray(random.standard_normal(value.shape if is_array(value) else ()))


def _like(dy: Any, outputs: Any) -> Any:
    """Return dy where the outputs lie."""
    if isinstance(dy, tuple):
        return tuple(_like(part, output) for part, output in zip(dy, outputs, strict=True))
    return dy if dy is None or not is_array(outputs) else array_module(outputs).asarray(dy)


def _argument_names(function: Callable[..., Any], count: int) -> list[str]:
    """Return the names of the first arguments of a function, as far as it tells them."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        names = []
    return (names + [f"inputs[{k}]" for k in range(len(names), count)])[:count]


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__).replace("<locals>.", "")
