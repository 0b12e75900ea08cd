"""The same gradients computed slowly and obviously: one separate forward for each loss.

Nothing of the schedule is used here, and the rule is read from the settings anew. It is the
yardstick for models, methods and settings that nobody has tried before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hpff.auxiliary import PatchAware
from hpff.cutting.local_modules import LocalModule, Partition
from hpff.cutting.partition import partition
from hpff.cutting.trace import restored_state
from hpff.engine.auxiliary_networks import PatchSizes, image_of, sides_of
from hpff.engine.level_weights import Level
from hpff.engine.reach import within
from hpff.errors import UserError
from hpff.features import FeatureKind, mask_of
from hpff.learner import LocalLearner
from hpff.methods import AuxiliaryContext
from hpff.settings import LocalSettings
from hpff.torch_support.group_norm import has_group_norm, without_channels_last
from hpff.torch_support.model_io import call_model, outputs_of, replaced, tensor_at

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
_AUXILIARY = ("independent_auxiliary.", "cascade_auxiliary.")
_COARSE = 0.1  # bfloat16 and float16


def reference_gradients(learner: LocalLearner, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter of ``learner``, straight from the update rule.

    The rule is read from ``learner.settings`` and ``learner.example`` anew: where the model is
    cut, which modules each loss trains, the levels' weights, the method and its settings, n. From
    the learner itself come the model, the auxiliary networks with their parameters, what kind of
    features stands at a cut, and the criterion (a method given as an object, too). For each loss
    the whole model runs forward once more, cut off below the modules that the loss trains; PFF is
    a loop over patches. The model's buffers, random states and gradients come back as they were.
    Random numbers drawn inside auxiliary networks are not matched.

    Args:
        learner: whose gradients; any learner, also after training.
        inputs: as for :meth:`LocalLearner.backward`.
        targets: likewise.

    Returns:
        By name as in ``learner.named_parameters()``; zeros where no loss reaches, and no entry
        for frozen parameters.

    Raises:
        UserError: the learner lacks an auxiliary network that its settings ask for.
    """
    rule = _Rule(learner, inputs)
    parameters = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for level, first, last in rule.losses():
        weights = {
            False: rule.weights.for_modules(level),
            True: rule.weights.for_network(level if last < rule.count else "final"),
        }
        with restored_state(learner), torch.enable_grad():
            learner.auxiliary_networks.before_step()
            loss = rule.loss(inputs, targets, level, first, last)
            if not loss.requires_grad:  # all that it trains is frozen
                continue
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient * weights[name.startswith(_AUXILIARY)]
    return total


def check_gradients(
    learner: LocalLearner, inputs: Any, targets: Tensor, *, tolerance: float | None = None
) -> dict[str, float]:
    """Compare the gradients of ``learner.backward`` with :func:`reference_gradients`.

    An empty answer proves, for this batch, that the schedule gives the gradients of the update rule
    as ``learner.settings`` state it: cuts, reach, levels' weights, method and patches. It does not
    prove that these settings are the paper's, nor that a method's network and loss are.

    Args:
        learner: whose gradients; its own come back as they were.
        inputs: as for :meth:`LocalLearner.backward`.
        targets: likewise.
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


class _Reached(Exception):  # noqa: N818
    """The forward has come far enough."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class _Rule:
    """The update rule that a learner's settings state, for its model."""

    def __init__(self, learner: LocalLearner, inputs: Any) -> None:
        settings = learner.settings
        self._learner, self._model = learner, learner.model
        self._method = settings.create_method()
        local = self._method.local
        self._cut = partition(
            self._model,
            settings.modules if local else 1,
            _like(learner.example, inputs),
            balance=settings.balance,
        )
        self.count = len(self._cut)
        self._lengths = self._cascades(settings) if local else [1] * self.count
        self._independent = settings.independent or not local
        self.weights = settings.level_weights(cascades=max(self._lengths) > 1)
        self._sizes = PatchSizes(
            settings.patches, settings.smallest_patch, self._method.needs_images
        )

    def _cascades(self, settings: LocalSettings) -> list[int]:
        """For each module how many modules the cascade that ends there trains; 1 for none."""
        if settings.cascade == "auto":  # the one choice that is not made anew here
            sizes = [module.saved + module.output_bytes for module in self._cut]
            return list(within(sizes, settings.cascade_budget).lengths)
        if isinstance(settings.cascade, tuple):
            return list(settings.cascade)
        k, stride = settings.cascade, settings.cascade_stride
        lengths = [1] * self.count
        for last in (*range(k, self.count, stride), self.count):
            lengths[last - 1] = k
        return lengths

    def losses(self) -> Iterator[tuple[Level, int, int]]:
        """Each loss: its level, and the first and the last module that it trains."""
        for last, length in enumerate(self._lengths, start=1):
            if self._independent:
                yield "independent", last, last
            if length > 1:
                yield "cascade", last - length + 1, last

    def loss(self, inputs: Any, targets: Tensor, level: Level, first: int, last: int) -> Tensor:
        """A loss, its graph ending where module ``first`` begins."""

        def at_cut(j: int, output: Tensor) -> Tensor:
            if j == last:
                raise _Reached(self._auxiliary_loss(level, j, output, inputs, targets))
            if j == first - 1:
                detached = output.detach()
                return without_channels_last(detached) if has_group_norm(self._model) else detached
            return output.clone()

        try:
            with _at_cuts(self._model, self._cut, at_cut):
                logits, own_head = outputs_of(call_model(self._model, inputs))
                loss = self._learner.criterion(logits, targets)
                if own_head is None:
                    return loss
                own = self._learner.criterion(own_head, targets)
                return loss + self._learner.own_head_weight * own
        except _Reached as reached:
            return reached.loss

    def _auxiliary_loss(
        self, level: Level, j: int, output: Tensor, inputs: Any, targets: Tensor
    ) -> Tensor:
        image = image_of(inputs)
        kind = self._learner.partition[j - 1].features
        network, context = self._network(level, j)
        n = self._patches_in_force(kind, j, output, image)
        whole = kind.features(output, n, sides_of(image), mask_of(self._model, inputs))
        parts = [_patches(whole, n)]
        if self._method.needs_images and image is not None:
            parts.append([self._pooled(patch) for patch in _patches(image, n)])
        shared = kind.shared(output)
        given = [
            (self._read(patch, shared).clone(), *(x.clone() for x in images))
            for patch, *images in zip(*parts, strict=True)
        ]
        with _without_groups(network):
            outputs = self._of_patches(network, given)
        fused = tree_map(lambda *each: self._fused(each, n), *outputs)
        return self._method.loss(fused, targets, context)

    def _of_patches(self, network: nn.Module, given: Sequence[tuple[Tensor, ...]]) -> list[Any]:
        """What a network gives for each patch; BatchNorms see one, or all."""
        if self._learner.settings.patch_norm == "apart":
            return [network(*patch) for patch in given]
        together = network(*(torch.cat(each) for each in zip(*given, strict=True)))
        ends = range(0, len(given[0][0]) * (len(given) + 1), len(given[0][0]))
        return [tree_map(lambda out, s=slice(*each): out[s], together) for each in pairwise(ends)]

    def _fused(self, outputs: Sequence[Tensor], n: int) -> Tensor:
        """The mean over patches; in a dense task, maps side by side."""
        if self._learner.task == "classification" or outputs[0].ndim != 4:
            return torch.stack(list(outputs)).mean(0)
        rows = [torch.cat(list(outputs[i : i + n]), dim=3) for i in range(0, n * n, n)]
        return torch.cat(rows, dim=2)

    def _network(self, level: Level, j: int) -> tuple[nn.Module, AuxiliaryContext]:
        networks = self._learner.auxiliary_networks
        if (level, j) not in networks.contexts:
            raise UserError(
                f"the learner has no {level} network at module {j}, which its settings ask for; "
                "it was changed after it was made: make it again"
            )
        return networks.at(level, j).network, networks.contexts[level, j]

    def _patches_in_force(
        self, kind: FeatureKind, j: int, output: Tensor, image: Tensor | None
    ) -> int:
        if kind.kind == "sequence":  # pieces are those of the example, whatever the length
            return self._sizes.for_output(kind, self._cut[j - 1].output_shape, image)
        return self._sizes.for_output(kind, tuple(output.shape[1:]), image)

    def _read(self, patch: Tensor, shared: Tensor | None) -> Tensor:
        if patch.ndim != 4:
            return patch
        maps = self._pooled(patch)
        if self._learner.task == "classification":
            maps = self._method.read(maps, 1)
        return maps if shared is None else maps + shared[:, :, None, None]

    def _pooled(self, patch: Tensor) -> Tensor:
        factor = self._learner.settings.auxiliary_pool
        while patch.shape[2] % factor or patch.shape[3] % factor:
            factor -= 1
        return F.avg_pool2d(patch, factor)


def _like(example: Any, inputs: Any) -> Any:
    """The example in the types and on the devices of inputs: the model may have moved since."""
    leaves, structure = tree_flatten(example)
    others = tree_leaves(inputs)
    if len(leaves) != len(others):
        return example
    moved = [
        leaf.to(other) if isinstance(leaf, Tensor) and isinstance(other, Tensor) else leaf
        for leaf, other in zip(leaves, others, strict=True)
    ]
    return tree_unflatten(moved, structure)


def _patches(maps: Tensor, n: int) -> list[Tensor]:
    if n == 1:
        return [maps]
    if maps.ndim == 3:
        return list(maps.unbind(1))
    return [patch for row in maps.chunk(n, dim=2) for patch in row.chunk(n, dim=3)]


@contextmanager
def _at_cuts(
    model: nn.Module, modules: Partition, act: Callable[[int, Tensor], Tensor]
) -> Iterator[None]:
    def hook(cut: LocalModule, returned: Any) -> Any:
        output = tensor_at(returned, cut.path)
        assert output is not None
        return replaced(returned, output, act(cut.index, output))

    handles = []
    try:
        for module in modules[:-1]:
            handles.append(
                model.get_submodule(module.end).register_forward_hook(
                    lambda _m, _a, returned, cut=module: hook(cut, returned)
                )
            )
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_groups(network: nn.Module) -> Iterator[None]:
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
