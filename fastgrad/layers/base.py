"""What all layers share: parameters, their names and devices, and what forward keeps for backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from fastgrad import init
from fastgrad._arrays import Array, array_module, device_module, is_array, kind_name, to_host
from fastgrad._checks import FLOATS, flag
from fastgrad._dispatch import wrong_array
from fastgrad._gpu import mover

if TYPE_CHECKING:
    from fastgrad.gradient_norm import GradientNorm

Rng = np.random.Generator | int | None


class Parameter:
    """An array that is trained: `data`, `grad` (None until a backward pass, then of the same shape) and `name`.

    `gradient_norm`, where an optimizer has set it, is fed `grad` whenever a backward pass has stored it or added to it.
    """

    __slots__ = ("data", "grad", "gradient_norm", "name")

    def __init__(self, data: Array, grad: Array | None = None, name: str = "") -> None:
        if not is_array(data):
            raise wrong_array("data", data)
        if data.dtype not in FLOATS:
            raise TypeError(f"data: expected float32 or float64, got {data.dtype}; convert it with data.astype(...)")
        self.data = data
        self.grad = grad
        self.name = name
        self.gradient_norm: GradientNorm | None = None

    def accumulate(self, gradient: Array) -> None:
        """Add `gradient` to `grad`; the first one becomes `grad` itself, so its caller must not use it further.

        Raises TypeError or ValueError unless it is an array of the kind, dtype and shape of `data`.
        """
        data = self.data
        # NumPy would broadcast another shape into `grad`, and cast another dtype, without a word.
        if type(gradient) is not type(data) or gradient.dtype != data.dtype or gradient.shape != data.shape:
            self._refuse(gradient)
        if self.grad is None:
            self.grad = gradient
        else:
            self.grad += gradient
        if self.gradient_norm is not None:
            self.gradient_norm.add(self.grad)

    def _refuse(self, gradient: Any) -> NoReturn:
        what = type(gradient).__qualname__
        if is_array(gradient):
            what = f"{gradient.dtype} of shape {gradient.shape}"
            if type(gradient) is not type(self.data):
                what += f" of {kind_name(gradient)}, while data is of {kind_name(self.data)}"
        same_dtype = is_array(gradient) and gradient.dtype == self.data.dtype
        raise (ValueError if same_dtype else TypeError)(
            f"gradient of {self.name or 'a parameter'}: expected a {self.data.dtype} array of shape "
            f"{self.data.shape}, that of its data, got {what}"
        )

    def __repr__(self) -> str:
        has = "no grad" if self.grad is None else "grad"
        return f"Parameter({self.name or 'unnamed'}, shape={self.data.shape}, {self.data.dtype}, {has})"


class Layer:
    """What all layers share.

    A layer of your own assigns parameters and layers to attributes, where they are found; in a list they are not: make
    a Sequential of it.
    """

    training: bool = True
    _buffers: tuple[str, ...] = ()  # attributes that hold arrays which are kept with the parameters, but not trained
    _counters: tuple[str, ...] = ()  # attributes that hold numbers which forward changes: Checkpoint puts them back
    # What forward kept for backward, with the shape and the type of the output.
    _kept: tuple[Any, tuple[int, ...], type] | None = None

    def __setattr__(self, attribute: str, value: Any) -> None:
        super().__setattr__(attribute, value)
        if isinstance(value, Parameter):
            value.name = value.name or attribute  # one of another layer keeps the name that it has there
        elif isinstance(value, Layer):
            value._prefix_names(attribute)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy what a forward pass kept: it belongs to one backward pass, and may be scratch."""
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def _members(self) -> Iterator[tuple[str, Any]]:
        """Yield the (name, Parameter or Layer) pairs directly below, in the order of assignment."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter | Layer):
                yield name, value

    def _layers(self) -> Iterator[Layer]:
        """Yield the layers directly below."""
        return (value for _, value in self._members() if isinstance(value, Layer))

    def _walk(self) -> Iterator[Layer]:
        """Yield this layer and all below."""
        yield self
        for layer in self._layers():
            yield from layer._walk()

    def _forget(self) -> None:
        """Let go of what this layer itself has kept for backward."""
        self._kept = None

    def _prefix_names(self, prefix: str) -> None:
        for name, parameter in self.named_parameters(f"{prefix}."):
            parameter.name = name

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield (name, Parameter) of this layer and all below, named by their path as in torch.

        A Parameter that several layers share comes once, under its first name; `state_dict` has it under all.
        """
        seen: set[int] = set()
        for name, value in self._members():
            path = prefix + name
            for pair in [(path, value)] if isinstance(value, Parameter) else value.named_parameters(f"{path}."):
                if id(pair[1]) not in seen:
                    seen.add(id(pair[1]))
                    yield pair

    def parameters(self) -> list[Parameter]:
        """Return the parameters of this layer and all below, in a fixed order."""
        return [parameter for _, parameter in self.named_parameters()]

    def _named_arrays(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """Yield (name, array) of the parameters and buffers of this layer and all below, in torch's order."""
        members = list(self._members())
        yield from ((prefix + name, value.data) for name, value in members if isinstance(value, Parameter))
        for name in self._buffers:
            array = getattr(self, name)
            if array is not None:
                yield prefix + name, array
        for name, value in members:
            if isinstance(value, Layer):
                yield from value._named_arrays(f"{prefix}{name}.")

    def train(self, mode: bool = True) -> Self:
        """Switch this layer and all below to training (or with mode=False to evaluation), and return it."""
        self.training = flag("mode", mode)
        for layer in self._layers():
            layer.train(mode)
        return self

    def eval(self) -> Self:
        """Switch this layer and all below to evaluation, and return it."""
        return self.train(False)

    def to(self, device: str) -> Self:
        """Move this layer and all below to a device, "cpu" or "gpu", and return it.

        Every Parameter stays the same object and gets new `data` and `grad`; arrays in other attributes move as well.
        What a forward pass kept is forgotten. Optimizers made before take their state along in their next step. The
        GPU is the one that is current in CuPy.

        Raises ValueError for another name, and RuntimeError where no GPU can be used, with the reason.
        """
        move = mover(device)
        self._forget()
        for name, value in vars(self).items():
            vars(self)[name] = _moved(value, move)
        for _, member in self._members():
            if isinstance(member, Layer):
                member.to(device)
            else:
                member.data = move(member.data)
                member.grad = None if member.grad is None else move(member.grad)
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return the arrays of parameters and running statistics by name: themselves, on the layer's device."""
        return dict(self._named_arrays())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy `state` (arrays on any device, or CPU tensors of torch, by name) into the parameters, in place.

        Values are converted to the parameters' dtype and device. Raises KeyError when names are missing or too many,
        and ValueError for another shape; nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping of names to arrays, got {type(state).__qualname__}")
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        if missing or unexpected:
            raise KeyError(
                f"state does not fit this {type(self).__name__}: missing {missing or 'nothing'}, "
                f"unexpected {unexpected or 'nothing'}"
            )
        values = {name: _converted(state[name], own[name]) for name in own}
        for name, value in values.items():
            if value.shape != own[name].shape:
                raise ValueError(f"state[{name!r}]: expected shape {own[name].shape}, got {value.shape}")
        for name, value in values.items():
            own[name][...] = value

    def forward(self, x: Any) -> Any:
        """Return the layer's output for `x`, keeping what backward needs."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Any) -> Any:
        """Return the gradient of the last forward's input, adding to the parameters' gradients."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def _check_kind(self, name: str, value: Any, parameter: Parameter, *, integers: bool = False) -> None:
        """Raise TypeError unless `value` is an array on the device of this layer's parameter.

        One of the other float dtype is refused too, unless integers are wanted; the rest is the function's to check.
        """
        data = parameter.data
        if type(value) is type(data):
            if value.dtype == data.dtype or integers or value.dtype not in FLOATS:
                return
            raise TypeError(
                f"{name} is {value.dtype} but this {type(self).__name__} is {data.dtype}; convert with "
                f"{name}.astype({data.dtype.name!r}), or make the layer with dtype={value.dtype.name!r}"
            )
        if not is_array(value):
            raise wrong_array(name, value)
        _, device, convert = _other_device(value)
        raise TypeError(
            f"{name} is a {kind_name(value)} array but this {type(self).__name__} is on the {device.upper()}; "
            f"pass {convert}({name}), or move the layer with .to({'cpu' if device == 'gpu' else 'gpu'!r})"
        )

    def _keep(self, y: Array, saved: Any) -> None:
        """Keep `saved` for the backward pass of an output of y's shape and kind."""
        self._kept = (saved, y.shape, type(y))

    def _take(self, dy: Any) -> Any:
        """Return what forward kept, and forget it: its memory is the backward pass's to reuse.

        Raises RuntimeError without a forward before, ValueError when dy has not the shape of its output, and TypeError
        when it lies on another device.
        """
        kept = self._kept
        if kept is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: expected a forward pass before, got none; call forward(x) once for "
                "each backward(dy)"
            )
        saved, shape, kind = kept
        if dy is not None and getattr(dy, "shape", None) != shape:
            if not is_array(dy):
                raise wrong_array("dy", dy)
            wrong_shape("dy", f"{shape}, that of the output", dy)
        if dy is not None and type(dy) is not kind and is_array(dy):
            wanted, _, convert = _other_device(dy)
            raise TypeError(f"dy is a {kind_name(dy)} array but forward returned a {wanted} array; pass {convert}(dy)")
        self._kept = None
        return saved


def _moved(value: Any, move: Callable[[Array], Array]) -> Any:
    """Return an array, or a tuple with arrays in it, on another device; anything else as it is."""
    if is_array(value):
        return move(value)
    if type(value) is tuple and any(map(is_array, value)):
        return tuple(_moved(part, move) for part in value)
    return value


def _converted(value: Any, like: Array) -> Array:
    """Return an array on any device, or what NumPy makes one of, as an array of the dtype and device of `like`."""
    if device_module(value) is not None:
        if type(value) is type(like):
            return value.astype(like.dtype, copy=False)
        value = to_host(value)
    host = np.asarray(np.asarray(value), like.dtype)
    return host if type(like) is np.ndarray else array_module(like).asarray(host)


def _other_device(array: Array) -> tuple[str, str, str]:
    """Return kind of array, name of the device, and cupy's function that takes an array there from where it is."""
    return ("CuPy", "gpu", "cupy.asarray") if device_module(array) is None else ("NumPy", "cpu", "cupy.asnumpy")


def parameter_list(name: str, value: Any) -> list[Any]:
    """Return one parameter or array, or any iterable of such, as a list; the entries are not looked at.

    Raises TypeError for something else.
    """
    if isinstance(value, np.ndarray | Parameter) or is_array(value):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return list(value)
    what = "None" if value is None else type(value).__qualname__
    advice = "; pass its parameters()" if isinstance(value, Layer) else ""
    raise TypeError(f"{name}: expected a list of Parameters or arrays, got {what}{advice}")


def uniform(shape: tuple[int, ...], bound: float, rng: np.random.Generator, dtype: Any) -> Array:
    return init.uniform(shape, bound, rng, dtype)


def positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")


def describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {shape}"


def wrong_shape(name: str, expected: str, value: Any) -> NoReturn:
    raise ValueError(f"{name}: expected shape {expected}, got {describe(value)}")
