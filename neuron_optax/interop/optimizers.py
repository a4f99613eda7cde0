"""Torch's side of optimizer states: the moments of every parameter by its name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from neuron_optax.interop.modules import to_array, to_tensor
from neuron_optax.interop.walks import FIRST, SECOND

TOTAL = "sum of squares"
ADAM = {FIRST: "exp_avg", SECOND: "exp_avg_sq"}
KEYS = {  # of the moments that an optimizer keeps of a parameter
    "torch.Adam": ADAM,
    "torch.AdamW": ADAM,
    "torch.Adagrad": {TOTAL: "sum"},
    "torch.RMSprop": {SECOND: "square_avg"},
    "adam_mini.Adam_mini": {FIRST: "m", SECOND: "vmean"},  # of biases it is "v"
}
REFUSED = "amsgrad", "centered", "lr_decay", "maximize", "momentum"


class Entry(NamedTuple):
    """A parameter and what its optimizer keeps of it.

    Attributes:
      name: of the parameter.
      place: in the ``state_dict`` of the optimizer.
      parameter: itself.
      state: of the optimizer; empty before its first step.
      keys: of the moments in the state, by their role.
    """

    name: str
    place: int
    parameter: torch.Tensor
    state: Mapping[str, Any]
    keys: Mapping[str, str]

    def numbers(self, role: str) -> int:
        """Return how many numbers a moment consists of.

        Raises:
          ValueError: of Adam-mini before its first step.
        """
        if not self.state and "m" in self.keys.values():
            raise ValueError(
                f"{self.name}: how Adam-mini cuts it is not known before its first step"
            )
        return self.state.get(self.keys[role], self.parameter).numel()

    def moment(self, role: str) -> np.ndarray:
        """Return a moment in the shape of the parameter; Adam-mini has them reduced."""
        array = to_array(self.state[self.keys[role]])
        view = self.state["m"].shape if "m" in self.state else array.shape
        return np.broadcast_to(array, view).reshape(self.parameter.shape)

    def filled(
        self, step: int | None, moments: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Return the state with other moments, of the shape of the parameter.

        Raises:
          ValueError: where a moment is not as torch reduces it.
        """
        new = dict(self.state)
        for role, key in self.keys.items():
            old, moment = self.state.get(key), moments[role]
            if old is not None:
                view = self.state["m"].shape if "m" in self.state else old.shape
                moment = reduced(moment.reshape(view), tuple(old.shape), self.name)
            new[key] = to_tensor(moment, self.parameter if old is None else old)
        old = self.state.get("step", torch.tensor(0.0))
        step = int(old) if step is None else step
        new["step"] = torch.full_like(old, step) if torch.is_tensor(old) else step
        return new


def reduced(full: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return one entry of every axis that has length 1 in ``shape``.

    Raises:
      ValueError: naming the leaf, where entries along such an axis differ, or axes of
        the parameter are viewed as blocks.
    """
    lengths = shape or (1,) * full.ndim
    if len(lengths) == full.ndim:
        first = full[tuple(slice(1 if n == 1 else None) for n in lengths)]
        same = np.array_equal(np.broadcast_to(first, full.shape), full, equal_nan=True)
        if first.shape == lengths and same:
            return first.reshape(shape)
    raise ValueError(
        f"{name}: a moment of shape {full.shape} is not one of shape {shape} repeated: "
        "other neurons, or blocks of them"
    )


def entries_of(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module
) -> list[Entry]:
    """Return what an optimizer keeps of every parameter.

    Raises:
      TypeError: for an optimizer that is not of `KEYS`.
      ValueError: naming an option that does not carry over, or for a parameter that is
        not of the module.
    """
    kind = type(optimizer)
    known = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    if known not in KEYS:
        raise TypeError(f"optimizer must be one of {list(KEYS)}, got {known}")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    entries = []
    for group in optimizer.param_groups:
        if on := [option for option in REFUSED if group.get(option)]:
            raise ValueError(f"{known}: {', '.join(on)} cannot carry over")
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if name is None:
                shape = tuple(parameter.shape)
                raise ValueError(f"a parameter of shape {shape} is not of the module")
            state = optimizer.state.get(parameter, {})
            keys = KEYS[known] | ({SECOND: "v"} if "v" in state else {})
            entries.append(Entry(name, len(entries), parameter, state, keys))
    return entries
