"""The documentation: its code runs, it builds without a warning, and it has every public name."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Literal, get_origin

import pytest
import torch

from torchrl_agentmixer.reporting import write_report
from torchrl_agentmixer.training import Evaluation, RunDirectory

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STAND_IN = ROOT / "tests" / "envs" / "smacv2_stand_in"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
PACKAGES = (
    "algorithms",
    "benchmarl",
    "diagnostics",
    "distributions",
    "envs",
    "export",
    "modules",
    "objectives",
    "policies",
    "reporting",
    "training",
)
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(page):
    """The page's Python blocks, as one script whose lines have the page's numbers."""
    text = page.read_text()
    lines = [""] * text.count("\n")
    for match in BLOCK.finditer(text):
        first = text[: match.start(2)].count("\n")
        indent = len(match.group(1))
        for number, line in enumerate(match.group(2).splitlines(), first):
            lines[number] = line[indent:]
    return "\n".join(lines)


def name(page):
    return str(page.relative_to(ROOT))


def two_runs(path):
    """What the page on reports finds."""
    for method in ("mappo", "agent_mixer"):
        run = RunDirectory(path / method)
        env = {"name": "matrix/climbing", "kwargs": {}, "total_frames": 40, "eval_interval": 20}
        run.save_config({"env": env, "algorithm": {"name": method}, "seed": 0})
        for frames in (20, 40):
            run.log({"frames": frames, "eval_return": 7.0, "eval_score": 7.0})
            run.log_episodes(frames, Evaluation(torch.ones(2), torch.ones(2, dtype=torch.long)))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p).strip()], ids=name)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.name == "smacv2.md":  # in the place of the game
        monkeypatch.syspath_prepend(str(STAND_IN))
        monkeypatch.setattr("torchrl.envs.libs.smacv2._has_smacv2", True)
    if page.name == "reporting.md":
        two_runs(tmp_path / "runs")
        monkeypatch.setitem(write_report.__kwdefaults__, "resamples", 5)  # 2,000 take a while
    script = blocks(page)
    if ">>>" in script:
        parsed = doctest.DocTestParser().get_doctest(script, {}, name(page), str(page), 0)
        assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(parsed).failed
    else:
        exec(compile(script, str(page), "exec"), {"__name__": "__main__"})
    for module in [m for m in sys.modules if m.partition(".")[0] == "smacv2"]:
        del sys.modules[module]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(out / "doctrees"), str(DOCS), str(out / "html")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


def documented(html):
    """Names in the inventory that other projects link to."""
    data = (html / "objects.inv").read_bytes()
    head = b"zlib.\n"
    lines = zlib.decompress(data[data.index(head) + len(head) :]).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


def test_every_public_name_is_in_the_reference(built):
    found = documented(built)
    missing = []
    for package in ("torchrl_agentmixer", *(f"torchrl_agentmixer.{p}" for p in PACKAGES)):
        module = importlib.import_module(package)
        for public in module.__all__:
            value = getattr(module, public)
            if get_origin(value) is Literal or isinstance(value, int):
                continue  # no docstring can be theirs
            homes = (value.__module__, value.__module__.rpartition(".")[0], package)
            if not found & {f"{home}.{public}" for home in homes}:
                missing.append(f"{package}.{public}")
    assert not missing


def test_every_package_is_in_the_list_above():
    packages = {p.parent.name for p in (ROOT / "torchrl_agentmixer").glob("*/__init__.py")}
    assert packages == set(PACKAGES)


def test_links_between_pages_lead_somewhere():
    """Also those that Sphinx does not follow, such as the README's."""
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{name(page)}: {target}")
    assert not broken


@pytest.mark.parametrize("page", sorted(DOCS.glob("results/*/README.md")), ids=name)
def test_results_repeat_the_overviews_of_studies(page):
    (overview,) = re.findall(
        r"^\| candidate \|(?! decentralized).*\n(?:\|.*\n)+", page.read_text(), re.M
    )
    results = (DOCS / "results" / "README.md").read_text()
    assert overview in results, f"{page}: copy its overview to docs/results/README.md."
    assert f"({page.parent.name}/README.md)" in results
