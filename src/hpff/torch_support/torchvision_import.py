"""The one door to torchvision and timm.

A torchvision wheel built for CUDA beside a CPU build of torch cannot load its compiled operators,
and then stops at import: it attaches fake kernels to `torchvision::nms` and `torchvision::qnms`,
which nobody has declared (`operator torchvision::nms does not exist`). hpff needs only
torchvision's Python parts. So when, and only when, an import fails that way, the missing operators
are declared here, without a kernel, and the import is tried again. A working torchvision is left
as it is; calling an operator that was only declared raises NotImplementedError.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_NMS_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_MISSING = "operator torchvision::"
_declarations: list[torch.library.Library] = []  # a Library takes its operators along when it dies


def torchvision(submodule: str = "") -> ModuleType:
    """Return torchvision, or its submodule of that dotted name, such as "datasets"."""
    return _import("torchvision", submodule)


def timm(submodule: str = "") -> ModuleType:
    """Return timm, or its submodule of that dotted name; timm imports torchvision."""
    torchvision()
    return _import("timm", submodule)


def _import(package: str, submodule: str) -> ModuleType:
    name = f"{package}.{submodule}" if submodule else package
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if _declarations or not str(error).startswith(_MISSING):
            raise
    _declare_missing_operators()
    return importlib.import_module(name)


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(operator + _NMS_ARGUMENTS)
    _declarations.append(library)
