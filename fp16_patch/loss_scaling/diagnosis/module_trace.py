# SPDX-License-Identifier: Apache-2.0
"""Trace one forward and backward pass: the peaks of every module, and where inf or NaN occurred first.

Nothing is read from the device before :meth:`ModuleTrace.rows`. The hooks do not change the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from fp16_patch.loss_scaling.ranks import gather
from fp16_patch.loss_scaling.tensors import local, tensors_in

CHUNK = 1 << 24
"""Elements checked at a time. Logits of some GB must not need the same memory again."""
NEVER = 1 << 62
WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Names under which FSDP1 and torch's checkpoint wrapper keep the wrapped module."""


@dataclass(frozen=True)
class ModuleRow:
    """One module over all its calls. Peaks are of finite elements, None without one; shares are of elements, 0 to 1.

    Orders count from 0 in each forward and in each backward pass of the whole module; a module comes before those
    that contain it. Gradients are those of the outputs, still multiplied by the loss scale.
    """

    module: str
    """Name in the model without wrappers; empty for the model itself."""
    class_name: str
    dtype: str
    """Dtype of the first floating-point output, and so of its gradient: ``"float16"``."""
    has_parameters: bool
    """Whether it or a child has parameters."""
    forward_order: int
    activation_peak: float | None
    activation_nonfinite: float
    forward_overflow: int | None
    """Forward order of the first call with an inf or NaN in the output and none in the inputs; None without one."""
    backward_order: int | None
    """None if no gradient arrived."""
    gradient_peak: float | None
    gradient_nonfinite: float | None
    first_overflow: int | None
    """Backward order of the first gradient with an inf or NaN; None without one."""


class Extremes:
    """Collect the largest finite magnitude, the number of inf and NaN, and the order of the first.

    The numbers stay on the device until they are read.
    """

    def __init__(self) -> None:
        self.elements = 0
        self.first = NEVER
        """Order of the first tensor."""
        self._peak, self._bad, self._first_bad = torch.tensor(-1.0), torch.tensor(0), torch.tensor(NEVER)

    def add(self, tensor: torch.Tensor, order: int = 0, ignore: torch.Tensor | None = None) -> None:
        """Add ``tensor``. ``ignore`` (bool, 0-dim): leave it out of :attr:`first_bad`, as the inputs are not finite."""
        tensor = local(tensor.detach())
        if not tensor.is_floating_point() or not tensor.numel():
            return
        self.elements += tensor.numel()
        self.first = min(self.first, order)
        for part in tensor.reshape(-1).split(CHUNK):
            finite = part.isfinite()
            peak = torch.where(finite, part.abs(), -1).amax().float()
            bad = part.numel() - finite.sum()
            attributed = bad > 0 if ignore is None else (bad > 0) & ~ignore.to(bad.device)
            self._peak = torch.maximum(peak, self._peak.to(peak.device))
            self._bad = bad + self._bad.to(bad.device)
            self._first_bad = torch.where(attributed, order, NEVER).minimum(self._first_bad.to(bad.device))

    @property
    def peak(self) -> float | None:
        """Return the largest finite magnitude; None without a finite element."""
        return peak if (peak := float(self._peak)) >= 0 else None

    @property
    def bad(self) -> int:
        """Return the number of inf and NaN."""
        return int(self._bad)

    @property
    def nonfinite(self) -> float | None:
        """Return the share of inf and NaN; None without any element."""
        return self.bad / self.elements if self.elements else None

    @property
    def first_bad(self) -> int | None:
        """Return the order of the first tensor with an inf or NaN that is not ignored."""
        return order if (order := int(self._first_bad)) < NEVER else None


Watched = Mapping[str, Extremes]
"""Parameter -> extremes of this rank's part of it, or of its gradient."""


def watch_parameters(
    named_parameters: Iterable[tuple[str, Any]], part: Callable[[Any], torch.Tensor | None]
) -> Watched:
    """Return the extremes of ``part`` of each parameter (its gradient, or itself), if ``part`` does not return None."""
    watched: dict[str, Extremes] = {}
    for name, parameter in named_parameters:
        extremes = watched[plain_name(name)] = Extremes()
        if (tensor := part(parameter)) is not None:
            extremes.add(tensor)
    return watched


class ModuleTrace:
    """Trace every module inside ``module`` from construction until the context is left, also on an error.

    Read the results after the pass. ``module`` may be wrapped by FSDP1 or FSDP2, and may use gradient checkpointing of
    either kind. ``in_place``: check each module's inputs before its call, as a module may write its result into them.
    """

    def __init__(self, module: torch.nn.Module, *, in_place: bool = False) -> None:
        self._module = module
        self._inputs_nonfinite: dict[torch.nn.Module, torch.Tensor | None] = {}
        self._activations: dict[torch.nn.Module, Extremes] = {}
        self._gradients: dict[torch.nn.Module, Extremes] = {}
        self._dtypes: dict[torch.nn.Module, str] = {}
        self._forwards = self._backwards = 0
        self._parts = {
            part: plain_name(name) for name, part in module.named_modules() if WRAPPERS.isdisjoint(part._modules)
        }
        self._owners = _owners_of_parameters(module)
        self._handles = [part.register_forward_hook(self._after_forward, with_kwargs=True) for part in self._parts]
        if in_place:
            self._handles += [part.register_forward_pre_hook(self._before, with_kwargs=True) for part in self._parts]
        self._handles.append(module.register_forward_pre_hook(self._new_pass))

    def _new_pass(self, module: torch.nn.Module, inputs: Any) -> None:
        self._forwards = self._backwards = 0

    def _before(self, part: torch.nn.Module, inputs: Any, named: Mapping[str, Any]) -> None:
        self._inputs_nonfinite[part] = _input_nonfinite(inputs, named)

    def _after_forward(self, part: torch.nn.Module, inputs: Any, named: Mapping[str, Any], outputs: Any) -> None:
        order, self._forwards = self._forwards, self._forwards + 1
        known = part in self._inputs_nonfinite
        input_nonfinite = self._inputs_nonfinite.pop(part) if known else _input_nonfinite(inputs, named)
        for output in tensors_in(outputs):
            self._dtypes.setdefault(part, str(output.dtype).removeprefix("torch."))
            self._activations.setdefault(part, Extremes()).add(output, order, input_nonfinite)
            if output.requires_grad:
                self._handles.append(output.register_hook(lambda gradient: self._on_gradient(part, gradient)))

    def _on_gradient(self, part: torch.nn.Module, gradient: torch.Tensor | None) -> None:
        if gradient is None:  # a function has several outputs, and this one is not used
            return
        order, self._backwards = self._backwards, self._backwards + 1
        self._gradients.setdefault(part, Extremes()).add(gradient, order)

    def __enter__(self) -> ModuleTrace:
        return self

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def gradients(self) -> Watched:
        """Return what this rank's gradients of parameters hold."""
        return watch_parameters(self._module.named_parameters(), lambda parameter: parameter.grad)

    def weights(self) -> Watched:
        """Return what this rank's parameters hold."""
        return watch_parameters(self._module.named_parameters(), lambda parameter: parameter)

    def rows(self) -> list[ModuleRow]:
        """Return this rank's modules that were called and returned floating-point tensors, in forward order."""
        rows = []
        for part, activations in self._activations.items():
            gradients = self._gradients.get(part, Extremes())
            rows.append(
                ModuleRow(
                    module=self._parts[part],
                    class_name=_class_name(part),
                    dtype=self._dtypes[part],
                    has_parameters=not self._owners.isdisjoint(part.modules()),
                    forward_order=activations.first,
                    activation_peak=activations.peak,
                    activation_nonfinite=activations.nonfinite or 0.0,
                    forward_overflow=activations.first_bad,
                    backward_order=gradients.first if gradients.elements else None,
                    gradient_peak=gradients.peak,
                    gradient_nonfinite=gradients.nonfinite,
                    first_overflow=gradients.first_bad,
                )
            )
        return sorted(rows, key=lambda row: row.forward_order)


MERGES: Mapping[str, Callable[[list[Any]], Any]] = {
    **dict.fromkeys(("activation_peak", "gradient_peak"), max),
    **dict.fromkeys(("activation_nonfinite", "gradient_nonfinite"), fmean),
    **dict.fromkeys(("forward_order", "forward_overflow", "backward_order", "first_overflow"), min),
}
"""Field of a row -> how the values of several ranks become one."""


def merge_rows(rows: Sequence[ModuleRow], group: Any = None) -> list[ModuleRow]:
    """Return the rows of all ranks of ``group`` as one list: largest peaks, mean shares, smallest orders.

    Collective. A mean is taken over the ranks on which the module was called, or got a gradient.
    """
    return merge_ranks(gather(list(rows), group))


def merge_ranks(ranks: Iterable[Iterable[ModuleRow]]) -> list[ModuleRow]:
    """Return the rows of several ranks as one list, merged as :func:`merge_rows` does."""
    alike: dict[str, list[ModuleRow]] = {}
    for one_rank in ranks:
        for row in one_rank:
            alike.setdefault(row.module, []).append(row)
    return sorted((_merged(same) for same in alike.values()), key=lambda row: row.forward_order)


def _merged(same: Sequence[ModuleRow]) -> ModuleRow:
    merged: dict[str, Any] = {}
    for name, merge in MERGES.items():
        values = [value for row in same if (value := getattr(row, name)) is not None]
        merged[name] = merge(values) if values else None
    return replace(same[0], **merged)


def plain_name(name: str) -> str:
    """Return a module's or parameter's name without the levels of FSDP1 and checkpoint wrappers."""
    return ".".join(level for level in name.split(".") if level not in WRAPPERS)


def _input_nonfinite(*inputs: Any) -> torch.Tensor | None:
    """Return whether an input holds NaN or +inf; None without inputs. Attention masks consist of -inf: ignored."""
    nonfinite = None
    for tensor in tensors_in(inputs):
        part = local(tensor.detach())
        if part.numel():
            found = ~(part.amax() < torch.inf)  # the maximum is NaN if one element is
            nonfinite = found if nonfinite is None else nonfinite | found.to(nonfinite.device)
    return nonfinite


def _owners_of_parameters(module: torch.nn.Module) -> set[torch.nn.Module]:
    """Return modules with parameters of their own, also where FSDP1 has moved these into a flat parameter."""
    owners: set[torch.nn.Module] = set()
    for part in module.modules():
        if any(parameter is not None for parameter in part._parameters.values()):
            owners.add(part)
        if "_fsdp_wrapped_module" in part._modules and (handle := part._handle) is not None:
            owners |= {info.module for info in handle.flat_param._param_infos}
    return owners


def _class_name(part: torch.nn.Module) -> str:
    from torch.distributed.fsdp import FSDPModule

    # FSDP2 makes a class such as FSDPLinear(FSDPModule, Linear).
    kind = type(part).__bases__[-1] if isinstance(part, FSDPModule) else type(part)
    return kind.__name__
