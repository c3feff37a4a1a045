"""The code in README and docs is run as it stands: Python blocks, and the ``$ shave`` lines of console blocks."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shave.cli.app import build
from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_of_operators_is_what_the_tables_say() -> None:
    from docs.supported_ops import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/supported_ops.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example models, as a reader of the page would have them."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(page: Path, folder: Path) -> None:
    """All blocks of a page in one folder and one session, as someone who types them one after the other would."""
    names: dict[str, object] = {"__name__": "__main__"}
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
        else:
            for line in code.splitlines():
                if line.startswith("$ shave "):
                    run(line)


def run(line: str) -> None:
    result = CliRunner().invoke(build(), shlex.split(line.removeprefix("$ shave "), comments=True))
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
