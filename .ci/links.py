"""Follow every link of the built site: python .ci/links.py site [--outside].

Links within the site must lead to a file, and to a place in it. Nothing that a browser loads by
itself may come from another host. --outside lists the links to other hosts and asks each once.
"""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("source", "srcset")}
NOT_LOADED = {"canonical", "next", "prev"}  # of <link rel=...>


class Document(HTMLParser):
    """The links of a page, what it loads, and the places in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        for name in ("href", "src", "srcset"):
            if name not in given or given[name].startswith(("data:", "mailto:", "javascript:")):
                continue
            self.links.add(given[name])
            if (tag, name) in LOADED and given.get("rel") not in NOT_LOADED:
                self.loaded.add(given[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--outside", action="store_true", help="ask other hosts, too")
    given = parser.parse_args()
    site = given.site.resolve()
    pages = {file: Document(file) for file in sorted(site.rglob("*.html"))}
    faults = [*dead_links(site, pages), *loaded_from_outside(pages)]
    outside = {link for page in pages.values() for link in page.links if urlsplit(link).netloc}
    if given.outside:
        faults += [fault for link in sorted(outside) if (fault := asked(link))]
    links = sum(len(page.links) for page in pages.values())
    print(f"{len(pages)} pages, {links} links, {len(outside)} of other hosts, {len(faults)} faults")
    sys.exit("\n".join(faults) if faults else 0)


def dead_links(site: Path, pages: dict[Path, Document]) -> Iterator[str]:
    """Links within the site that lead nowhere."""
    for file, page in pages.items():
        here = "/" + file.relative_to(site).as_posix()
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(urlsplit(urljoin(here, link)).path)
            target = site / path.lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{here}: {link} leads nowhere"
            elif parts.fragment and target in pages and not is_place(parts.fragment, pages[target]):
                yield f"{here}: {link}: no such place"


def is_place(fragment: str, page: Document) -> bool:
    """Whether a page has a place; those of the theme's own switches begin with two underscores."""
    return unquote(fragment) in page.places or fragment.startswith("__")


def loaded_from_outside(pages: dict[Path, Document]) -> Iterator[str]:
    """What a browser would load from another host."""
    for file, page in pages.items():
        for link in sorted(page.loaded):
            if urlsplit(link).netloc:
                yield f"{file.name}: loads {link}"


def asked(link: str) -> str | None:
    """What is wrong with a link to another host."""
    print(f"asking {link}", flush=True)
    request = urllib.request.Request(link, headers={"User-Agent": "hpff-link-check"})
    try:
        with urllib.request.urlopen(request, timeout=20):
            return None
    except (urllib.error.URLError, TimeoutError) as error:
        return f"{link}: {error}"


if __name__ == "__main__":
    main()
