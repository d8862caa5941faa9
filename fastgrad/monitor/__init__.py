"""Watch the gradients of a training run, keep their history, and say in words what is wrong with them."""

from fastgrad.monitor.diagnosis import Trouble
from fastgrad.monitor.monitor import GradientMonitor

__all__ = ["GradientMonitor", "Trouble"]
