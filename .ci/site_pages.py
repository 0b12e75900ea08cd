"""Hooks of MkDocs: pages that lie outside docs/, and links as the repository has them.

Every page of the repository links to others by relative paths, which work wherever its files are
shown. Here such a link finds the page that the file became. A file that is no page (a test, a
recipe, a source) becomes one that shows its text, if a page links to it. Notebooks are pages too.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(Path(__file__).parent))
from notebook_pages import page_of  # noqa: E402 - it lies beside this file, which is no package

NAMED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/index.md",
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}
FENCED = re.compile(r"^(`{3,}).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=(?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's other pages, and the files that they and ours link to."""
    benchmarks = sorted(f"benchmarks/{page.name}" for page in ROOT.glob("benchmarks/*.md"))
    for path in dict.fromkeys([*NAMED, *benchmarks]):
        if files.get_file_from_path(place_of(path)) is None:
            add(files, config, path, titled(path))
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        add_notebook(files, config, notebook)
    for page in list(files.documentation_pages()):
        path = path_of(page.src_uri)
        for target in links(path, page.content_string):
            if files.get_file_from_path(place_of(target)) is None and (ROOT / target).is_file():
                add_file(files, config, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    source = page.file.src_uri
    if source.startswith("files/"):
        return markdown
    here = path_of(source)

    def moved(link: re.Match[str]) -> str:
        place = place_of(target_of(here, link[0]))
        return posixpath.relpath(place, posixpath.dirname(source))

    return outside_code(markdown, lambda text: LINK.sub(moved, text))


def add(files: Files, config: MkDocsConfig, path: str, content: str) -> None:
    """Add a page of the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, place_of(path), content=content))


def add_file(files: Files, config: MkDocsConfig, path: str) -> None:
    """Add a picture as it is, and a text as a page that shows it."""
    from mkdocs.structure.files import File

    if Path(path).suffix in (".png", ".svg"):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        return
    text = (ROOT / path).read_text(encoding="utf-8")
    language = LANGUAGES.get(Path(path).suffix, "text")
    front = "---\nsearch: {exclude: true}\n---\n"
    add(files, config, path, f"{front}\n# {path}\n\n``````{language}\n{text}``````\n")


def add_notebook(files: Files, config: MkDocsConfig, notebook: Path) -> None:
    """Add a notebook's page, and its pictures."""
    from mkdocs.structure.files import File

    text, pictures = page_of(notebook)
    add(files, config, f"notebooks/{notebook.name}", text)
    for name, content in pictures.items():
        files.append(File.generated(config, f"notebooks/{name}", content=content))


def titled(path: str) -> str:
    """The text of a page, with a heading if it has none."""
    text = (ROOT / path).read_text(encoding="utf-8")
    name = Path(path).stem.replace("_", " ").capitalize()
    return text if text.startswith("# ") else f"# {name}\n\n{text}"


def place_of(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in NAMED:
        return NAMED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("benchmarks/") and path.endswith(".md"):
        return path
    if path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    return path if Path(path).suffix in (".png", ".svg") else f"files/{path}.md"


def path_of(place: str) -> str:
    """Where the repository has a page of the site."""
    for path, named in NAMED.items():
        if named == place:
            return path
    return place if place.startswith(("benchmarks/", "notebooks/")) else f"docs/{place}"


def links(path: str, text: str) -> Iterator[str]:
    """The files of the repository that a page's text links to."""
    for link in LINK.finditer(FENCED.sub("", text)):
        yield target_of(path, link[0])


def target_of(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change what stands outside of fenced code."""
    done, parts = 0, []
    for block in FENCED.finditer(text):
        parts += [change(text[done : block.start()]), block[0]]
        done = block.end()
    return "".join([*parts, change(text[done:])])
