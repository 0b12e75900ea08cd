"""Training on several devices: local modules in a pipeline, or the data shared out."""

from hpff.parallel.module_parallel import ModuleParallel
from hpff.torch_support.random_state import step_seed

__all__ = ["ModuleParallel", "step_seed"]
