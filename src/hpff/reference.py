"""The same gradients computed slowly and obviously: one separate forward for each loss.

Nothing of the schedule is used here. It is the yardstick for models, methods and settings that
nobody has tried before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hpff.auxiliary import PatchAware
from hpff.cutting.partition import LocalModule
from hpff.cutting.trace import restored_state
from hpff.engine.auxiliary_networks import image_of, read, sides_of
from hpff.engine.schedule import Level
from hpff.features import mask_of
from hpff.learner import LocalLearner
from hpff.torch_support.group_norm import needs_plain_maps, plain
from hpff.torch_support.model_io import call_model, logits_of, replaced, tensor_at

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
_AUXILIARY = ("independent_auxiliary.", "cascade_auxiliary.")
_COARSE = 0.1  # bfloat16 and float16


def reference_gradients(learner: LocalLearner, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter of ``learner``, straight from the update rule.

    For each loss the whole model runs forward once more, cut off below the modules that the loss
    trains; PFF is a loop over patches. The model's buffers, random states and gradients come back
    as they were. Random numbers drawn inside auxiliary networks are not matched.

    Args:
        inputs, targets: as for :meth:`LocalLearner.backward`.

    Returns:
        By name as in ``learner.named_parameters()``; zeros where no loss reaches, and no entry
        for frozen parameters.
    """
    parameters = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for level, first, last in _losses(learner):
        weights = {False: learner.weight(level), True: learner.own_weight(level)}
        with restored_state(learner), torch.enable_grad():
            loss = _loss(learner, inputs, targets, level, first, last)
            if not loss.requires_grad:  # all that it trains is frozen
                continue
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                auxiliary = name.startswith(_AUXILIARY)
                total[name] += gradient * weights[auxiliary]
    return total


def check_gradients(
    learner: LocalLearner, inputs: Any, targets: Tensor, *, tolerance: float | None = None
) -> dict[str, float]:
    """Compare the gradients of ``learner.backward`` with :func:`reference_gradients`.

    Args:
        tolerance: the largest difference allowed, relative to the parameter's largest gradient
            (or to a thousandth of the model's largest, where that is more). By default 1e-9 in
            float64, 1e-3 in float32 and 0.1 in shorter types or under autocast.

    Returns:
        Every parameter that differs by more, with its relative difference; empty if none does.
    """
    expected = reference_gradients(learner, inputs, targets)
    kept = {p: p.grad for p in learner.parameters()}
    named = dict(learner.named_parameters())
    try:
        with restored_state(learner):
            learner.zero_grad(set_to_none=True)
            learner.backward(inputs, targets)
        found = {name: named[name].grad for name in expected}
    finally:
        for parameter, gradient in kept.items():
            parameter.grad = gradient
    floor = 1e-3 * max((_largest(gradient) for gradient in expected.values()), default=0.0)
    if tolerance is None:
        tolerance = _tolerance(expected)
    differences = {
        name: _difference(found[name], gradient, floor) for name, gradient in expected.items()
    }
    return {name: value for name, value in differences.items() if not value <= tolerance}


def _losses(learner: LocalLearner) -> Iterator[tuple[Level, int, int]]:
    """Each loss: its level, and the first and the last module that it trains."""
    count = len(learner.partition)
    for j in range(1, count + 1):
        length = learner.reach.lengths[j - 1]
        if learner.independent:
            yield "independent", j, j
        if length > 1:
            yield "cascade", j - length + 1, j


class _Reached(Exception):  # noqa: N818
    """The forward has come far enough."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


def _loss(
    learner: LocalLearner, inputs: Any, targets: Tensor, level: Level, first: int, last: int
) -> Tensor:
    def at_cut(j: int, output: Tensor) -> Tensor:
        if j == last:
            raise _Reached(_judge(learner, level, j, output, inputs, targets))
        if j == first - 1:
            detached = output.detach()
            return plain(detached) if needs_plain_maps(learner.model) else detached
        return output.clone()

    try:
        with _at_cuts(learner, at_cut):
            return learner.criterion(logits_of(call_model(learner.model, inputs)), targets)
    except _Reached as reached:
        return reached.loss


def _judge(
    learner: LocalLearner, level: Level, j: int, output: Tensor, inputs: Any, targets: Tensor
) -> Tensor:
    images = image_of(inputs)
    learner.fit_patches(j, output, images)
    fusion = learner.auxiliary(level, j)
    features = learner.partition[j - 1].features
    mask = mask_of(learner.model, inputs)
    view = features.view(output, fusion.patches, sides_of(images), mask)
    shared = features.shared(output)
    parts = [_patches(view, fusion.patches)]
    if learner.method.needs_images and images is not None:
        parts.append(_patches(images, fusion.patches))
    with _one_patch_at_a_time(fusion.network):
        outputs = [
            fusion.network(
                read(learner.method, patch, 1, shared).clone(), *(x.clone() for x in image)
            )
            for patch, *image in zip(*parts, strict=True)
        ]
    fused = tree_map(lambda *each: torch.stack(each).mean(0), *outputs)
    return learner.method.loss(fused, targets, learner.place(level, j))


def _patches(maps: Tensor, n: int) -> list[Tensor]:
    if n == 1:
        return [maps]
    if maps.ndim == 3:
        return list(maps.unbind(1))
    return [patch for row in maps.chunk(n, dim=2) for patch in row.chunk(n, dim=3)]


@contextmanager
def _at_cuts(learner: LocalLearner, act: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    def hook(cut: LocalModule, returned: Any) -> Any:
        output = tensor_at(returned, cut.path)
        assert output is not None
        return replaced(returned, output, act(cut.index, output))

    handles = []
    try:
        for module in learner.partition[:-1]:
            handles.append(
                learner.model.get_submodule(module.cut).register_forward_hook(
                    lambda _m, _a, returned, cut=module: hook(cut, returned)
                )
            )
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _one_patch_at_a_time(network: nn.Module) -> Iterator[None]:
    layers = [layer for layer in network.modules() if isinstance(layer, PatchAware)]
    groups = [layer.groups for layer in layers]
    try:
        for layer in layers:
            layer.groups = 1
        yield
    finally:
        for layer, count in zip(layers, groups, strict=True):
            layer.groups = count


def _tolerance(gradients: dict[str, Tensor]) -> float:
    autocast = any(torch.is_autocast_enabled(g.device.type) for g in gradients.values())
    kinds = {g.dtype for g in gradients.values()}
    return _COARSE if autocast else max(_TOLERANCES.get(kind, _COARSE) for kind in kinds)


def _difference(found: Tensor | None, expected: Tensor, floor: float) -> float:
    size = max(_largest(expected), floor)
    error = _largest(expected if found is None else found - expected)
    return error / size if size > 0 else error


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
