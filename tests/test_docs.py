"""The documentation is true: its examples run, its reference is whole, its links lead somewhere."""

from __future__ import annotations

import doctest
import re
import runpy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import hpff
from hpff.methods import registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
PAGES = sorted({*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("benchmarks/*.md")})
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^(`{3,}).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
PUBLIC = ("hpff", *(f"hpff.{name}" for name in ("analysis", "auxiliary", "data", "features")))
PUBLIC += tuple(f"hpff.{name}" for name in ("memory", "methods", "models", "parallel"))
# What the examples of a page find there; a newcomer brings these.
GIVEN = """
import torch
from torch import nn
torch.manual_seed(0)
images, targets = torch.rand(8, 3, 32, 32), torch.arange(8)
loader = [(images, targets)]
"""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("page", REFERENCE, ids=name_of)
def test_the_examples_of_the_reference_give_what_they_say(page: Path) -> None:
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner()
    for number, block in enumerate(blocks(page, "pycon"), 1):
        test = doctest.DocTestParser().get_doctest(block, names, f"{page.name} {number}", None, 0)
        assert test.examples
        assert runner.run(test, clear_globs=False).failed == 0
        names = test.globs


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", DOCS / "start.md", *sorted((DOCS / "guides").glob("*.md"))],
    ids=name_of,
)
def test_the_code_of_the_first_pages_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All Python of a page, one block after the other, as a reader would paste it."""
    code = blocks(page, "python")
    assert code
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "page.py"
    file.write_text(GIVEN + "\n".join(code), encoding="utf-8")
    ran = runpy.run_path(str(file))
    gradients = [parameter.grad for parameter in ran["learner"].parameters()]
    assert all(gradient is not None for gradient in gradients)


def test_the_reference_has_everything_that_is_public() -> None:
    told = {name for page in REFERENCE for name in re.findall(r"^::: (\S+)$", text_of(page), re.M)}
    for module in PUBLIC:
        public = {f"{module}.{name}" for name in import_module(module).__all__}
        missing = public - told - {"hpff.models"}
        assert not missing, f"docs/reference does not show {sorted(missing)}"


def test_what_the_reference_shows_is_there() -> None:
    for page in REFERENCE:
        for name in re.findall(r"^::: (\S+)$", text_of(page), re.M):
            if ".lightning." not in name:  # needs the package
                module, _, attribute = name.rpartition(".")
                assert hasattr(import_module(module), attribute), name


def relative_links(page: Path) -> Iterator[tuple[Path, str]]:
    for link in LINK.findall(FENCED.sub("", text_of(page))):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            yield (page.parent / path if path else page), anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target, anchor in relative_links(page):
        assert target.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_readme_is_a_screen_and_a_half() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 100


def test_every_page_is_in_the_navigation() -> None:
    config = text_of(ROOT / "mkdocs.yml")
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    pages += [f"benchmarks/{page.name}" for page in ROOT.glob("benchmarks/*.md")]
    pages.remove("benchmarks/README.md")  # index.md
    missing = [page for page in pages if f"- {page}\n" not in config]
    assert not missing, f"mkdocs.yml does not show {missing}"


def test_nothing_of_the_site_comes_from_elsewhere() -> None:
    config = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url", "site_url"} & config.keys()
    assert all("://" not in each for each in config["extra_css"])
    for picture in DOCS.rglob("*.svg"):
        linked = re.findall(r'(?:href|src)="([^"#][^"]*)"', text_of(picture))
        assert all(link.startswith("data:image/") for link in linked), picture


@pytest.mark.parametrize("table", ["commands.md"])
def test_the_page_of_commands_has_every_command(table: str) -> None:
    from hpff.cli.app import app

    told = set(re.findall(r"^\| `hpff ([a-z]+)", text_of(DOCS / table), re.MULTILINE))
    there = {command.name or command.callback.__name__ for command in app.registered_commands}
    there |= {group.name for group in app.registered_groups}
    assert told == there


def test_the_settings_page_has_every_setting() -> None:
    page = text_of(DOCS / "settings.md")
    missing = [name for name in vars(hpff.LocalSettings()) if f"`{name}`" not in page]
    assert not missing
