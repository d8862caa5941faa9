"""Run the cases of the CPU on device arrays: the public functions, given NumPy arrays, called with arrays on a device.

Every NumPy array of a call becomes a device array with the same layout, aliasing and views included; after the call
what was written is found in the NumPy arrays, and results come back as NumPy arrays.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastgrad
import fastgrad.linear
from fastgrad import _gpu

DEVICES = ("emulated", "gpu")
NAMES = ("reference", "cpu", *DEVICES)


def missing(name: str) -> str | None:
    """Say why a backend can't be tested on this machine; None if it can."""
    if name == "emulated":
        if importlib.util.find_spec("devtools") is None:
            return "devtools/ is not importable; run the tests of a checkout from its root"
        from devtools.cuda_on_cpu import why_unavailable

        return why_unavailable()
    if name == "gpu":
        from fastgrad._gpu import gpu_status

        return gpu_status().reason
    return None


def trouble_of_the_gpu() -> str | None:
    """Say what CUDA says once a kernel has done what it must not: no later call of this process will succeed."""
    cupy = module("gpu")
    try:
        cupy.cuda.runtime.deviceSynchronize()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return str(error)
    return None


@functools.cache
def chosen() -> list[str]:
    """Return the backends to test: those that FASTGRAD_TEST_BACKENDS names, else all that the machine has."""
    named = os.environ.get("FASTGRAD_TEST_BACKENDS")
    if not named:
        return [name for name in NAMES if missing(name) is None]
    names = named.split(",")
    for name in names:
        if name not in NAMES:
            raise pytest.UsageError(f"FASTGRAD_TEST_BACKENDS: expected names of {NAMES}, got {name!r}")
        reason = missing(name)
        if reason is not None:
            raise pytest.UsageError(f"FASTGRAD_TEST_BACKENDS names {name!r}, which is missing here: {reason}")
    return names


reached: list[str] = []  # a name for each time that somebody asked for a device


def module(name: str) -> Any:
    """Return the array module of a device backend."""
    reached.append(name)
    if name == "gpu":
        import cupy

        return cupy
    import emulated

    emulated.register()
    return emulated.Module


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let layers and the trainer find this device where they look for a GPU."""
    if name == "emulated":
        status = _gpu.GPUStatus(module(name))
        monkeypatch.setattr(_gpu, "gpu_status", lambda: status)


class LayerOnDevice:
    """A layer on a device, given and giving NumPy arrays: what the cases of the CPU ask of a layer."""

    def __init__(self, layer: Any, name: str) -> None:
        self._layer, self._xp = layer.to("gpu"), module(name)

    def _through(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self._layer, method)(
            *[self._there(a) for a in args], **{k: self._there(v) for k, v in kwargs.items()}
        )
        return self._here(result)

    def _there(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._there, value))
        return self._xp.asarray(value) if isinstance(value, np.ndarray) else value

    def _here(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._here, value))
        assert not isinstance(value, np.ndarray), "a layer on a device returned a NumPy array"
        return value.get() if type(value) is self._xp.ndarray else value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._through("forward", *args, **kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        return self._through("backward", *args, **kwargs)

    def named_parameters(self) -> list[tuple[str, Any]]:
        return [
            (name, fastgrad.layers.Parameter(self._here(p.data), self._here(p.grad), p.name))
            for name, p in self._layer.named_parameters()
        ]

    def parameters(self) -> list[Any]:
        return [parameter for _, parameter in self.named_parameters()]

    def state_dict(self) -> dict[str, np.ndarray]:
        return {name: self._here(array) for name, array in self._layer.state_dict().items()}

    dstate0 = property(lambda self: self._here(self._layer.dstate0))


def placed(layer: Any, name: str) -> Any:
    """Return the layer; on a device, what stands for it there."""
    return LayerOnDevice(layer, name) if name in DEVICES else layer


class _Transfer:
    """The arrays of one call, on the host and on the device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.xp = module(name)
        self.roots: dict[tuple[int, int], tuple[np.ndarray, Any]] = {}
        self.pairs: list[tuple[Any, np.ndarray]] = []

    def to_device(self, value: Any) -> Any:
        if type(value) is np.ndarray:
            found = [device for device, host in self.pairs if host is value]
            if found:
                return found[0]
            device = self._array(value)
            self.pairs.append((device, value))
            return device
        if isinstance(value, list | tuple) and not isinstance(value, str):
            parts = [self.to_device(v) for v in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value

    def _array(self, host: np.ndarray) -> Any:
        if self.name == "emulated":
            return self.xp.ndarray(host)
        root = host
        while isinstance(root.base, np.ndarray):
            root = root.base
        low, high = np.lib.array_utils.byte_bounds(root)
        size = high - low if root.size else 0
        if not size:
            return self.xp.empty(host.shape, host.dtype)
        if (low, size) not in self.roots:
            raw = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * size).from_address(low))
            self.roots[low, size] = raw, self.xp.asarray(raw)
        start = host.__array_interface__["data"][0] - low
        memory = self.roots[low, size][1].data + start
        return self.xp.ndarray(host.shape, host.dtype, memory, strides=host.strides)

    def back(self) -> None:
        for raw, device in self.roots.values():
            now = device.get()
            changed = now != raw
            raw[changed] = now[changed]  # a read-only array that nobody wrote stays untouched

    def to_host(self, value: Any) -> Any:
        for device, host in self.pairs:
            if value is device:
                return host
        if type(value) is self.xp.ndarray:
            return value.get()
        if isinstance(value, list | tuple):
            parts = [self.to_host(v) for v in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value


def on_device(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its NumPy arrays carried to a device and back."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if fastgrad.get_backend() == "reference":  # the oracle inside of a test
            return function(*args, **kwargs)
        transfer = _Transfer(name)
        try:
            result = function(
                *[transfer.to_device(a) for a in args], **{k: transfer.to_device(v) for k, v in kwargs.items()}
            )
        finally:
            transfer.back()
        return transfer.to_host(result)

    return call


def divert(monkeypatch: pytest.MonkeyPatch, name: str, test_module: Any) -> None:
    """Let a test module, and whoever says fastgrad.<function>, call the public functions on device arrays."""
    for holder, public in [*((fastgrad, public) for public in fastgrad.__all__), *OF_LAYERS]:
        function = getattr(holder, public)
        if callable(function) and not isinstance(function, type) and public not in NOT_ON_ARRAYS:
            wrapped = on_device(name, function)
            if holder is fastgrad:
                monkeypatch.setattr(fastgrad, public, wrapped)
            _replace(monkeypatch, vars(test_module), function, wrapped)


def _replace(monkeypatch: pytest.MonkeyPatch, names: dict[Any, Any], function: Any, wrapped: Any) -> None:
    # Also in the tables of a test module, where a name is not what the test calls.
    for key, value in list(names.items()):
        if value is function:
            monkeypatch.setitem(names, key, wrapped)
        elif isinstance(value, dict) and key != "__builtins__":
            _replace(monkeypatch, value, function, wrapped)
        elif type(value) in (list, tuple) and any(v is function for v in value):
            monkeypatch.setitem(names, key, type(value)(wrapped if v is function else v for v in value))


class _Held:
    """The arrays of one optimizer on the host and on the device, over all its calls."""

    def __init__(self, name: str) -> None:
        self.transfer = _Transfer(name)
        self.links: list[tuple[Any, Any]] = []  # Parameters of the test, and those that stand for them

    def there(self, value: Any) -> Any:
        if isinstance(value, fastgrad.layers.Parameter):
            other = fastgrad.layers.Parameter(self.there(value.data), name=value.name)
            self.links.append((value, other))
            return other
        if isinstance(value, dict):
            return {key: self.there(v) for key, v in value.items()}
        if isinstance(value, list):
            return [self.there(v) for v in value]
        return self.transfer.to_device(value) if isinstance(value, np.ndarray) else value

    def again(self) -> None:
        for raw, device in self.transfer.roots.values():
            device.set(raw)


def divert_optimizers(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let optimizers that are given NumPy arrays step on device arrays; what they write is found in NumPy arrays."""
    from fastgrad._optimizer import Optimizer

    plain = {method: getattr(Optimizer, method) for method in ("__init__", "step", "zero_grad", "state_dict")}

    def __init__(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        self.held = _Held(name)
        plain["__init__"](self, self.held.there(params), *args, **kwargs)

    def step(self: Any, grads: Any = None, **more: Any) -> Any:
        held = self.held
        held.again()
        for mine, other in held.links:
            other.grad = None if mine.grad is None else held.there(mine.grad)
        try:
            return plain["step"](self, held.there(grads), **more)
        finally:
            held.transfer.back()

    def zero_grad(self: Any) -> None:
        plain["zero_grad"](self)
        for mine, _ in self.held.links:
            mine.grad = None

    def state_dict(self: Any) -> Any:
        found = plain["state_dict"](self)
        for entry in found["state"].values():
            entry.update({key: value.get() for key, value in entry.items() if key != "step"})
        return found

    for method, function in (
        ("__init__", __init__),
        ("step", step),
        ("zero_grad", zero_grad),
        ("state_dict", state_dict),
    ):
        monkeypatch.setattr(Optimizer, method, function)


# Functions on arrays that only the layers call, and their own tests.
OF_LAYERS = [(fastgrad.linear, name) for name in ("linear", "linear_backward", "embedding", "embedding_backward")]

NOT_ON_ARRAYS = {
    "backend", "doctor", "get_backend", "get_subnormals", "profile_model", "set_backend", "set_num_threads",
    "set_subnormals", "subnormals", "tune_recurrent", "warmup",
}  # fmt: skip
