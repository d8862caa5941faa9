"""Optimizers: the state behind `adam_step`, `sgd_step` and `rmsprop_step`, clipping inside the update, refusal of NaN.

One step reads the gradients twice and never writes them: once for the global norm over all groups, once in the update,
which applies the clip coefficient as it goes. Each group is one kernel launch, however many tensors it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastgrad._checks import number
from fastgrad._optimizer import MAX_SKIPS, Launch, Optimizer, sign
from fastgrad._step_report import StepReport
from fastgrad.gradient_norm import GradientNorm

if TYPE_CHECKING:
    from fastgrad.schedules import Schedule

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "StepReport"]


class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD.

    g = grad + weight_decay * p;  b = momentum * b + (1 - dampening) * g, in a parameter's first step b = g;
    p -= lr * (g + momentum * b) with nesterov, lr * b with momentum, lr * g without.
    Sutskever, Martens, Dahl & Hinton, On the importance of initialization and momentum in deep learning, 2013.
    """

    _state_arrays = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Schedule = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "skip",
        gradient_norm: GradientNorm | None = None,
        weight_range: tuple[float, float] | None = None,
        max_weight_norm: float | None = None,
        weight_norm_axis: int | None = None,
        max_skips: int | None = MAX_SKIPS,
        health: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "weight_range": weight_range,
            "max_weight_norm": max_weight_norm,
            "weight_norm_axis": weight_norm_axis,
        }
        super().__init__(
            params, defaults, max_norm=max_norm, nonfinite=nonfinite, gradient_norm=gradient_norm, max_skips=max_skips,
            health=health,
        )  # fmt: skip

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for key in ("lr", "momentum", "weight_decay"):
            number(key, group[key], 0.0)
        number("dampening", group["dampening"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("nesterov: needs momentum above 0 and dampening 0")

    def _used(self, group: dict[str, Any]) -> list[str]:
        return list(self._state_arrays) if group["momentum"] else []

    def _rule(self, group: dict[str, Any]) -> tuple[str, list[float], dict[str, bool]]:
        rates = [float(group[key]) for key in ("lr", "weight_decay", "momentum", "dampening")]
        variant = {
            "momentum": bool(group["momentum"]), "nesterov": bool(group["nesterov"]), "decay": bool(rates[1])
        }  # fmt: skip
        return "sgd", [sign(group), *rates], variant

    def _launches(self, group: dict[str, Any], indices: list[int]) -> list[Launch]:
        momentum, dampening = float(group["momentum"]), float(group["dampening"])

        def launch(chosen: list[int], dampening: float) -> Launch:
            rates = (float(group["lr"]), momentum, dampening, bool(group["nesterov"]), float(group["weight_decay"]))
            return self._launch("sgd", group, chosen, self._used(group), (*rates, bool(group["maximize"])))

        if not (momentum and dampening):
            return [launch(indices, dampening)]
        # torch's first step takes the gradient whole into the buffer: zeros and no dampening.
        fresh = [index for index in indices if "momentum_buffer" not in self._state[index]]
        seasoned = [index for index in indices if "momentum_buffer" in self._state[index]]
        return [launch(chosen, share) for chosen, share in ((fresh, 0.0), (seasoned, dampening)) if chosen]


class RMSprop(Optimizer):
    """RMSprop, as torch.optim.RMSprop.

    g = grad + weight_decay * p;  v = alpha * v + (1 - alpha) * g^2;  a = alpha * a + (1 - alpha) * g
    b = momentum * b + g / (sqrt(v) + eps), with v - a^2 in place of v if centered;  p -= lr * b
    Tieleman & Hinton, Lecture 6.5: RMSProp, 2012; Graves, Generating Sequences With Recurrent Neural Networks, 2013
    (centered).
    """

    _state_arrays = ("square_avg", "momentum_buffer", "grad_avg")
    _state_entries = ("step", "square_avg")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Schedule = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "skip",
        gradient_norm: GradientNorm | None = None,
        weight_range: tuple[float, float] | None = None,
        max_weight_norm: float | None = None,
        weight_norm_axis: int | None = None,
        max_skips: int | None = MAX_SKIPS,
        health: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
            "weight_range": weight_range,
            "max_weight_norm": max_weight_norm,
            "weight_norm_axis": weight_norm_axis,
        }
        super().__init__(
            params, defaults, max_norm=max_norm, nonfinite=nonfinite, gradient_norm=gradient_norm, max_skips=max_skips,
            health=health,
        )  # fmt: skip

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for key in ("lr", "eps", "weight_decay", "momentum"):
            number(key, group[key], 0.0)
        number("alpha", group["alpha"], 0.0, 1.0)

    def _used(self, group: dict[str, Any]) -> list[str]:
        used = {"square_avg": True, "momentum_buffer": group["momentum"], "grad_avg": group["centered"]}
        return [key for key in self._state_arrays if used[key]]

    def _rates(self, group: dict[str, Any]) -> list[float]:
        return [float(group[key]) for key in ("lr", "alpha", "eps", "weight_decay", "momentum")]

    def _rule(self, group: dict[str, Any]) -> tuple[str, list[float], dict[str, bool]]:
        variant = {
            "momentum": bool(group["momentum"]), "centered": bool(group["centered"]),
            "decay": bool(group["weight_decay"]),
        }  # fmt: skip
        return "rmsprop", [sign(group), *self._rates(group)], variant

    def _launches(self, group: dict[str, Any], indices: list[int]) -> list[Launch]:
        return [
            self._launch("rmsprop", group, indices, self._used(group), (*self._rates(group), bool(group["maximize"])))
        ]


class Adam(Optimizer):
    """Adam with coupled weight decay (added to the gradient), as torch.optim.Adam.

    g = grad + weight_decay * p;  m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g^2
    p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps);  amsgrad: the largest v so far in place of v.
    Kingma & Ba, Adam: A Method for Stochastic Optimization, 2015; Reddi, Kale & Kumar, On the Convergence of Adam and
    Beyond, 2018 (amsgrad).
    """

    _state_arrays = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _state_entries = ("step", "exp_avg", "exp_avg_sq")
    _decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "skip",
        gradient_norm: GradientNorm | None = None,
        weight_range: tuple[float, float] | None = None,
        max_weight_norm: float | None = None,
        weight_norm_axis: int | None = None,
        max_skips: int | None = MAX_SKIPS,
        health: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "weight_range": weight_range,
            "max_weight_norm": max_weight_norm,
            "weight_norm_axis": weight_norm_axis,
        }
        super().__init__(
            params, defaults, max_norm=max_norm, nonfinite=nonfinite, gradient_norm=gradient_norm, max_skips=max_skips,
            health=health,
        )  # fmt: skip

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for key in ("lr", "eps", "weight_decay"):
            number(key, group[key], 0.0)
        betas = group["betas"]
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas: expected two numbers, got {betas!r}")
        for place, beta in enumerate(betas):
            number(f"betas[{place}]", beta, 0.0, 1.0, open_high=True)

    def _used(self, group: dict[str, Any]) -> list[str]:
        return list(self._state_arrays if group["amsgrad"] else self._state_arrays[:2])

    def _rates(self, group: dict[str, Any]) -> list[float]:
        return list(map(float, (group["lr"], *group["betas"], group["eps"], group["weight_decay"])))

    def _rule(self, group: dict[str, Any]) -> tuple[str, list[float], dict[str, bool]]:
        coupled = bool(group["weight_decay"]) and not self._decoupled
        variant = {"amsgrad": bool(group["amsgrad"]), "coupled": coupled}
        return "adam", [sign(group), *self._rates(group), float(coupled)], variant

    def _launches(self, group: dict[str, Any], indices: list[int]) -> list[Launch]:
        keys, rates = self._used(group), self._rates(group)
        # One launch, unless parameters were left out of steps: their bias correction is another.
        return [
            self._launch("adam", group, chosen, keys, (step, *rates, self._decoupled, bool(group["maximize"])))
            for step, chosen in self._by_step(indices).items()
        ]


class AdamW(Adam):
    """Adam with decoupled weight decay (p *= 1 - lr * weight_decay before the step), as torch.optim.AdamW.

    Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019.
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "skip",
        gradient_norm: GradientNorm | None = None,
        weight_range: tuple[float, float] | None = None,
        max_weight_norm: float | None = None,
        weight_norm_axis: int | None = None,
        max_skips: int | None = MAX_SKIPS,
        health: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            max_norm=max_norm,
            nonfinite=nonfinite,
            gradient_norm=gradient_norm,
            weight_range=weight_range,
            max_weight_norm=max_weight_norm,
            weight_norm_axis=weight_norm_axis,
            max_skips=max_skips,
            health=health,
        )
