"""Training on several devices: local modules in a pipeline, or the data shared out."""

from hpff.parallel.data_parallel import DataParallel
from hpff.parallel.module_parallel import ModuleParallel
from hpff.parallel.replay import ReplayParallel
from hpff.parallel.timing import module_seconds
from hpff.torch_support.random_state import step_seed

__all__ = ["DataParallel", "ModuleParallel", "ReplayParallel", "module_seconds", "step_seed"]
