"""Documentation: code blocks run, the build has no warning, the reference has all public names."""

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
PACKAGE = ROOT / "torchrl_agentmixer"
MODULES = sorted(
    ["torchrl_agentmixer"]
    + [f"torchrl_agentmixer.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")]
    + [f"torchrl_agentmixer.{path.stem}" for path in PACKAGE.glob("[!_]*.py")]
)
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(page):
    """The Python blocks of a page as one script with the line numbers of the page."""
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
    """Run directories for the page on reports."""
    for method in ("mappo", "agent_mixer"):
        run = RunDirectory(path / method)
        env = {"name": "matrix/climbing", "kwargs": {}, "total_frames": 40, "eval_interval": 20}
        config = {"env": env, "algorithm": {"name": method}, "seed": 0}
        run.save_config({**config, "decentralized_execution": True})
        for frames in (20, 40):
            run.log({"frames": frames, "eval_return": 7.0, "eval_score": 7.0})
            run.log_episodes(frames, Evaluation(torch.ones(2), torch.ones(2, dtype=torch.long)))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p).strip()], ids=name)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.name == "smacv2.md":  # a stand-in for the game
        monkeypatch.syspath_prepend(str(STAND_IN))
        monkeypatch.setattr("torchrl.envs.libs.smacv2._has_smacv2", True)
    if page.name == "reporting.md":
        two_runs(tmp_path / "runs")
        monkeypatch.setitem(write_report.__kwdefaults__, "resamples", 5)  # 2,000 take long
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
    """Names in Sphinx's inventory."""
    data = (html / "objects.inv").read_bytes()
    head = b"zlib.\n"
    lines = zlib.decompress(data[data.index(head) + len(head) :]).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


def test_every_public_name_is_in_the_reference(built):
    found = documented(built)
    missing = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if get_origin(value) is Literal or isinstance(value, int):
                continue  # these have no docstring
            homes = (value.__module__, value.__module__.rpartition(".")[0], module_name)
            if not found & {f"{home}.{public}" for home in homes}:
                missing.append(f"{module_name}.{public}")
    assert not missing


def test_every_package_has_a_page_in_the_reference():
    pages = {path.stem for path in (DOCS / "api").glob("*.md")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= pages


def test_references_to_names_resolve(built):
    """Sphinx does not warn of unknown targets of ``{class}`` and ``{func}``."""
    found = documented(built)
    targets = {
        (name(page), target)
        for page in PAGES
        for target in re.findall(r"\{(?:class|func|meth|mod)\}`~?([\w.]+)`", page.read_text())
    }
    assert not {(page, target) for page, target in targets if target not in found}


def test_signatures_are_those_of_the_constructors(built):
    """TensorDict's metaclass hides them behind ``*args, **kwargs``."""
    page = (built / "api" / "policies.html").read_text()
    signature = page[page.index('id="torchrl_agentmixer.policies.AgentMixerPolicy"') :]
    signature = re.sub(r"<[^>]+>", "", signature[: signature.index("</dt>")])
    assert "groups" in signature
    assert "modifier" in signature


def test_links_between_pages_exist():
    """Includes links that Sphinx does not follow, such as those of the README."""
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{name(page)}: {target}")
    assert not broken


def test_raw_study_output_is_not_navigation():
    navigation = re.findall(r"```\{toctree\}(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    studies = {path.parent.name for path in DOCS.glob("results/*/README.md")}
    assert not [s for s in studies if f"results/{s}" in "".join(navigation)]
    linked = (DOCS / "results" / "README.md").read_text()
    assert not [study for study in studies if f"({study}/README.md)" not in linked]
