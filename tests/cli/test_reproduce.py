"""`hpff reproduce`: what is missing is trained, what is finished is kept, the table says all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.tiny_table import ROWS, TABLE, TRANSFER, Hpff, errors, reproduce
from PIL import Image

from hpff.experiments import paper_tables
from hpff.recipes import files as recipe_files

pytestmark = pytest.mark.usefixtures("table")


@pytest.mark.long
def test_a_table_beside_the_papers_numbers(hpff: Hpff, folder: Path) -> None:
    answer = reproduce(hpff, "--seeds", "0,1", "epochs=3")
    assert answer.code == 0, answer.err
    content = json.loads((folder / "out" / "tables" / "table.json").read_text())
    first, second, third = content["rows"]
    runs = [folder / "out" / "tiny-bp" / f"seed-{seed}" / "report.json" for seed in (0, 1)]
    reports = [json.loads(run.read_text()) for run in runs]
    found = first["measures"]["error"]
    assert found["values"] == [report["test_error_percent"] for report in reports]
    assert found["ours"] == pytest.approx(sum(found["values"]) / 2)
    assert found["difference"] == pytest.approx(found["ours"] - 10)
    assert first["measures"]["accuracy"]["ours"] == pytest.approx(100 - found["ours"])
    assert first["measures"]["accuracy"]["difference"] is None
    memory = reports[0]["peak_memory_bytes"] / 2**30
    assert first["measures"]["memory"]["values"][0] == pytest.approx(memory)
    assert second["seeds"] == [0, 1]
    assert third["measures"]["error"]["paper"] is None
    assert first["runs"][0]["machine"]["torch"]
    markdown = (folder / "out" / "tables" / "table.md").read_text()
    spread = found["spread"]
    assert f"| tiny-bp | 0, 1 | 10.00 | {found['ours']:.2f} ± {spread:.2f} | " in markdown
    for text in (markdown, answer.out):
        assert "Not as in the recipes: epochs (2, now 3)" in " ".join(text.split())
        assert "nobody's numbers" in text
    assert "    hpff reproduce paper/table.yaml --seeds 0,1 --out out epochs=3\n" in markdown
    with Image.open(folder / "out" / "tables" / "table.png") as picture:
        assert min(picture.size) > 300


def test_what_is_finished_is_kept_and_what_is_cut_goes_on(hpff: Hpff, folder: Path) -> None:
    assert reproduce(hpff, "--rows", "tiny-bp").code == 0
    before = {p: p.read_bytes() for p in (folder / "out" / "tiny-bp").rglob("*") if p.is_file()}
    answer = reproduce(hpff, "--rows", "*-bp,tiny-dgl", "--json")
    assert "tiny-bp seed 0" not in answer.err
    assert {p: p.read_bytes() for p in before} == before
    assert [row["run"] for row in json.loads(answer.out)["rows"]] == ["tiny-bp", "tiny-dgl"]
    assert json.loads(answer.out)["notes"][0] == "As in the recipes: no setting differs."
    (folder / "out" / "tiny-dgl" / "seed-0" / "report.json").unlink()
    again = reproduce(hpff, "--rows", "tiny-dgl")
    assert "tiny-dgl seed 0: out/tiny-dgl/seed-0, going on after epoch 2" in again.err


def test_a_dry_run_trains_and_writes_nothing(hpff: Hpff, folder: Path) -> None:
    answer = reproduce(hpff, "--dry-run")
    assert answer.code == 0
    assert "10.00" in answer.out
    assert "out: 3 runs to train" in answer.out
    assert not (folder / "out").exists()


def test_a_dry_run_of_what_needs_no_training_names_no_file(hpff: Hpff, folder: Path) -> None:
    answer = hpff("reproduce", "memory", "--dry-run", "--out", "out", "--rows", "resnet110-bp")
    assert answer.code == 0
    assert "out: nothing measured yet" in answer.out
    assert "memory.md" not in answer.out
    assert not (folder / "out").exists()


def test_scaling_down_is_said_and_has_a_folder_of_its_own(hpff: Hpff, folder: Path) -> None:
    arguments = ("--rows", "tiny-bp", "--epochs", "2", "--subset", "64", "--data", "digits")
    answer = hpff("reproduce", "paper/table.yaml", *arguments, "optimizer.lr=0.05")
    assert answer.code == 0, answer.err
    said = " ".join(answer.out.split())
    assert "Not as in the recipes: optimizer.lr (0.1, now 0.05), subset (128, now 64)." in said
    assert "Published" not in said, "nobody published these recipes"
    path = "runs/reproduce/epochs_2-subset_64-data_digits-optimizer.lr_0.05"
    assert (folder / path / "tiny-bp" / "seed-0" / "report.json").exists()


def test_fewer_epochs_shorten_the_warm_up(hpff: Hpff) -> None:
    answer = hpff("reproduce", "cifar10", "--dry-run", "--epochs", "25", "--rows", "resnet32-bp")
    said = " ".join(answer.out.split())
    assert "epochs (400, now 25), schedule.warmup_epochs (10, now 2)." in said


def test_files_of_one_name_have_folders_of_their_own(hpff: Hpff, folder: Path, table: Path) -> None:
    for place in ("a", "b"):
        (folder / "paper" / place).mkdir()
        text = ROWS[{"a": "tiny-bp", "b": "tiny-dgl"}[place]].replace("tiny", "../tiny")
        (folder / "paper" / place / "x.yaml").write_text(text)
    table.write_text(TABLE.replace("tiny-bp.yaml", "a/x.yaml").replace("tiny-dgl.yaml", "b/x.yaml"))
    answer = reproduce(hpff)
    assert answer.code == 0, answer.err
    assert list(errors(folder)) == ["a/x", "b/x", "tiny-hpff"]
    assert all((folder / "out" / place / "x" / "seed-0").is_dir() for place in ("a", "b"))
    assert reproduce(hpff, "--rows", "b/x").code == 0


def test_the_packaged_tables_name_recipes_and_their_commands() -> None:
    known = {name for name, _ in recipe_files.names()}
    for name, description in paper_tables.names():
        found = paper_tables.load(name)
        assert {row.recipe for row in found.rows} <= known
        assert description.endswith(".")
        text = (recipe_files.TABLES / f"{name}.yaml").read_text()
        assert f"hpff reproduce {name}\n" in text


def test_a_table_of_another_data_set(hpff: Hpff, folder: Path, table: Path) -> None:
    """Ten classes of a run that has none of STL-10's names: by position, and named CIFAR-10's."""
    from cli.test_evaluate import STL, write_spots

    write_spots(folder / "spots", {f"class {place}": place for place in range(10)}, 8)
    write_spots(folder / "stl", {name: place for place, name in enumerate(STL)}, 8)
    changes = ("data=folder:spots", "treatment=plain", "batch_size=20", "subset=null")
    table.write_text(TRANSFER)
    answer = reproduce(hpff, *changes, "augment=false", "epochs=12", "--data", "stl10=folder:stl")
    assert answer.code == 0, answer.err
    (row,) = json.loads((folder / "out" / "tables" / "table.json").read_text())["rows"]
    measures = row["measures"]
    assert measures["stl10_position"]["ours"] > 80
    assert measures["stl10_name"]["ours"] < 80
    before = answer.out
    (folder / "stl").rename(folder / "gone")
    again = reproduce(hpff, *changes, "augment=false", "epochs=12", "--data", "stl10=folder:stl")
    assert again.out == before
