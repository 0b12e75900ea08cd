"""Build wheel and sdist into dist/, install each into a fresh environment, and check what is there.

The wheel is built from the sdist. What is installed must be src/hpff, file by file, must run, and
must have types that a user's type checker sees.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "hpff"
DIST = ROOT / "dist"
# Neither this checkout nor anything else on the path may stand in for what is missing.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix=".ci-run.", dir=ROOT) as scratch:
        build(Path(scratch, "build"))
        for package in sorted(DIST.iterdir()):
            check(package, Path(scratch, package.name))


def build(environment: Path) -> None:
    python = fresh(environment, "build")
    shutil.rmtree(DIST, ignore_errors=True)
    run(python, "-m", "build", "--outdir", DIST, ROOT)


def check(package: Path, environment: Path) -> None:
    print(f"Installing {package.name} into a fresh environment (a few minutes) ...", flush=True)
    python = fresh(environment, package)
    where = run(python, "-c", "import hpff; print(hpff.__path__[0])", cwd=environment)
    compare(files(Path(where)), files(SOURCE), package.name)
    hpff = environment / "bin" / "hpff"
    version = run(hpff, "--version", cwd=environment).removeprefix("hpff ")
    if not package.name.startswith(f"hpff-{version}"):
        sys.exit(f"{package.name}: hpff --version says {version}")
    if "demo" not in run(hpff, "list", "recipes", cwd=environment):
        sys.exit(f"{package.name}: hpff list recipes does not know demo")
    check_types(python, environment)
    print(f"{package.name}: installed, imported, complete, typed")
    shutil.rmtree(environment)  # gigabytes


def compare(installed: dict[str, bytes], source: dict[str, bytes], package: str) -> None:
    differing = {name for name, _ in installed.items() ^ source.items()}
    if differing:
        sys.exit(f"{package}: not as in src/hpff: {', '.join(sorted(differing))}")
    if "py.typed" not in installed:
        sys.exit(f"{package}: py.typed is missing, so type checkers ignore it")


def check_types(python: Path, environment: Path) -> None:
    """Check a user's file against what is installed, as strictly as a type checker can."""
    install(python, "mypy")
    own = shutil.copy(ROOT / ".ci" / "a_users_file.py", environment / "a_users_file.py")
    run(python, "-m", "mypy", "--strict", "--config-file=", own, cwd=environment)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def fresh(environment: Path, requirement: str | Path) -> Path:
    """Make an environment with `requirement` in it, at the pinned versions; its Python."""
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    install(python, requirement)
    return python


def install(python: Path, requirement: str | Path) -> None:
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    run(*pip, "--constraint", ROOT / "constraints.txt", requirement)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command, its output in ours where it fails; what it printed."""
    done = subprocess.run(
        command, cwd=cwd, env=CLEAN, text=True, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{' '.join(map(str, command))}: exit code {done.returncode}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
