"""What a learner refuses: models, tasks and inputs with which training would go wrong unseen."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hpff.cutting.local_modules import Partition
from hpff.cutting.trace import is_compiled
from hpff.engine.auxiliary_networks import AuxiliaryNetworks
from hpff.errors import UserError, shown
from hpff.methods.tasks import TaskName, check_task_name
from hpff.torch_support.model_io import tensors_in


def check_model(model: nn.Module) -> None:
    """Raise UserError for what cannot be cut or trained."""
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    check_not_wrapped(model)
    if is_compiled(model):
        raise UserError(
            "the whole model is compiled, and cannot be cut; give the plain model, with its "
            "blocks compiled one by one"
        )
    trainable = [p for p in model.parameters() if p.is_floating_point()]
    if not trainable:
        raise UserError("the model has no parameters: nothing can be trained")
    if not any(p.requires_grad for p in trainable):
        raise UserError(
            "every parameter of the model is frozen: nothing can be trained; set requires_grad of "
            "those that are to learn"
        )


def check_task(task: object, num_classes: object, criterion: object) -> None:
    """Raise UserError for an unknown task, a number of classes that is none, no loss to call."""
    check_task_name(task)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes is {num_classes!r}, expected a whole number of at least 1")
    if not callable(criterion):
        raise UserError(
            f"criterion is {shown(criterion)}, expected a function of logits and targets that "
            "gives a scalar, such as torch.nn.functional.cross_entropy"
        )


def check_example(example: object) -> None:
    """Raise UserError for an example without samples."""
    for _, tensor in tensors_in(example):
        if tensor.ndim and not len(tensor):
            shape = "×".join(map(str, tensor.shape))
            raise UserError(f"the example ({shape}) holds no samples; give it two or more")
        return


def check_dense_numbers(ignore_index: object, own_head_weight: object) -> None:
    """Raise UserError for what is no target, and for a weight that is none."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise UserError(f"ignore_index is {shown(ignore_index)}; expected a whole number")
    known = isinstance(own_head_weight, int | float) and not isinstance(own_head_weight, bool)
    if not known or not 0 <= own_head_weight <= 1e30:  # type: ignore[operator]
        raise UserError(
            f"own_head_weight is {shown(own_head_weight)}; expected a number of at least 0"
        )


def check_classes(task: TaskName, num_classes: int, cut: Partition) -> None:
    """Raise UserError where the model's logits on the example are of other classes or shape."""
    shape = cut[-1].output_shape
    if (len(shape) == 3) != (task == "segmentation") and len(shape) in (1, 3):
        other = "classification" if task == "segmentation" else "segmentation"
        raise UserError(
            f"task is {task!r}, but the model's output is (B, {', '.join(map(str, shape))}), as in "
            f"a {other}; expected task={other!r}, or another model"
        )
    if len(shape) in (1, 3) and shape[0] != num_classes:
        raise UserError(
            f"num_classes is {num_classes}, but the model's output has {shape[0]}; expected the "
            "same number: give the model a last layer for the task's classes"
        )


def check_inputs(inputs: Any) -> None:
    """Raise UserError for inputs that wait for a gradient: local backwards end at the first cut."""
    if any(tensor.requires_grad for tensor in _tensors(inputs)):
        raise UserError(
            "the inputs require gradients, which backward does not give; detach them, or compute "
            "them inside the model"
        )


def _tensors(inputs: Any) -> Iterator[Tensor]:
    for _, tensor in tensors_in(inputs):
        yield tensor


def check_not_wrapped(model: nn.Module) -> None:
    """Raise UserError for wrappers: they reduce gradients in a backward that a learner replaces."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # there if anything is wrapped by it
    names = ("FullyShardedDataParallel", "FSDPModule")
    kinds = (DataParallel, DistributedDataParallel, *(getattr(fsdp, n) for n in names if fsdp))
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            where = f"its submodule {name!r}" if name else "the model"
            raise UserError(
                f"{where} is wrapped by {_wrapper(module, kinds)}, whose gradients local backwards "
                "would leave different on each device; give LocalLearner the plain model, and then "
                "parallel = hpff.parallel.DataParallel(learner); in each step "
                "learner.backward(inputs, targets, on_module_done=parallel.module_done) and "
                "parallel.finish()"
            )


def _wrapper(module: nn.Module, kinds: tuple[type, ...]) -> str:
    return next(kind.__name__ for kind in kinds if isinstance(module, kind))


def check_streams(streams: int, model: nn.Module, networks: AuxiliaryNetworks) -> None:
    """Raise UserError where modules share more than the outputs at the cuts.

    What the first module computes may be read anywhere.
    """
    if streams == 1:
        return
    criterion = networks.criterion
    if isinstance(criterion, nn.Module) and any(p.requires_grad for p in criterion.parameters()):
        raise UserError(
            f"streams: is {streams}, but the criterion learns, and all modules use it; expected 1"
        )
    partition = networks.partition
    found = next((m for m in partition[1:] if m.read_later or m.shares), None)
    if found is not None:
        raise UserError(
            f"streams: is {streams}, but modules after the next read what module {found.index} "
            "computes, or the next reads more than its output; expected 1, or other cuts"
        )
    names = dict(model.named_parameters())
    users = Counter(names[name] for module in partition for name in module.parameter_names)
    for module in partition:
        own = (p for network in networks.at_module(module.index) for p in network.parameters())
        users.update(set(own))
    shared = next((parameter for parameter, count in users.items() if count > 1), None)
    if shared is not None:
        name = next((repr(n) for n, p in names.items() if p is shared), "of auxiliary networks")
        raise UserError(
            f"streams: is {streams}, but several modules use the parameter {name}; expected 1"
        )
