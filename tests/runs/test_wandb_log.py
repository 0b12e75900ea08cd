from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hpff.errors import UserError
from hpff.runs.wandb_log import WandbLog
from hpff.training import loop


def test_without_wandb_the_message_says_what_to_do(
    silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb: the package wandb is not installed"):
        WandbLog(silent(), "project")


def test_a_project_needs_a_name(silent: Any) -> None:
    with pytest.raises(UserError, match="--wandb: is empty"):
        WandbLog(silent(), " ")


def test_what_cannot_be_opened_leaves_nothing(
    tmp_path: Path, make_recipe: Any, silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match=r"cannot open a run .*project name"):
        loop.train(
            make_recipe(), tmp_path / "run", resume=False, observer=WandbLog(silent(), "a/b")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_is_the_same_run(
    tmp_path: Path, make_recipe: Any, silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    for resume, stop_at in ((False, 3), (True, None)):
        log = WandbLog(silent(stop_at), "project")
        try:
            loop.train(make_recipe(), run, resume=resume, observer=log)
        except KeyboardInterrupt:
            assert not resume
        log.close()
    wandb.teardown()  # Its own process writes the rest.
    identity = json.loads((run / "wandb_id.json").read_text())["id"]
    logs = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert {log.name for log in logs} == {f"run-{identity}.wandb"}
    content = b"".join(log.read_bytes() for log in logs)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert str(json.loads(line)["test_error_percent"]).encode() in content
