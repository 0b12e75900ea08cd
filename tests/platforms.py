"""Where tests can run."""

from __future__ import annotations

import os

import pytest

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, forks or limits")
