"""Every example of docs/examples runs, on the embedded default, and shows what its page says."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
SHORT = {"steps": 1, "batch_size": 4, "max_new_tokens": 8}
# In the notebook's source, what makes a merge of two minutes one of seconds.
SUBSTITUTED = {"steps=50, eval_prompts=1000": "steps=2, batch_size=4, max_new_tokens=8, eval_prompts=2"}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """example(name): the program as a module, in a folder where the adapters of the repository are."""
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    monkeypatch.chdir(tmp_path)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_every_example_is_on_its_page_and_run_here():
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    page = (ROOT / "docs" / "examples.md").read_text()
    assert {name for name in files if f"(examples/{name})" in page} == files
    source = Path(__file__).read_text()
    assert {name for name in files if f'"{name}"' in source or f'"{Path(name).stem}"' in source} == files


def test_prompts_out_of_a_table_teach_and_the_rows_that_were_kept_measure(example, capsys):
    module = example("custom_prompts")
    module.main(limit=3, **SHORT)
    trained, kept = (Path(f"orders-{split}.jsonl").read_text().splitlines() for split in ("train", "test"))
    prompts = {line.split('"answer"')[0].rstrip(", ") for line in kept}
    assert (len(trained), len(kept)) == (54, 18)
    assert not prompts & {line.rstrip("}") for line in trained}
    printed = capsys.readouterr().out
    assert "math expert" in printed
    assert "merged" in printed


def test_a_suite_of_ones_own_asks_the_rows_of_a_table(example, capsys):
    module = example("custom_benchmark")
    module.main(limit=3)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith("of 3 questions")]
    assert [row.split()[0] for row in rows] == ["base", "expert:math", "expert:code"]


@pytest.mark.slow
def test_a_reward_of_ones_own_is_what_an_expert_is_trained_on(example, capsys):
    module = example("custom_reward")
    assert module.brief("2 + 2 = 4\n#### 4", "4") > module.brief("Let us see.\n2 + 2 = 4\n#### 4", "4") >= 0.5
    assert module.brief("#### 5", "4") == module.brief("4", "4") == 0
    module.main(steps=1, batch_size=4, generations=4, eval_prompts=4, max_new_tokens=32, eval_every=1)
    assert "gopd-merge --experts brief.lora" in capsys.readouterr().out
    assert Path("brief.lora/training.json").is_file()


@pytest.mark.slow
def test_the_notebook_merges_and_its_plot_is_drawn_anew_after_every_step(tmp_path):
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    notebook = nbformat.read(EXAMPLES / "live_plots.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is committed has no outputs
    for before, after in SUBSTITUTED.items():
        assert sum(before in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(before, after)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    figures = [
        output["data"]["application/vnd.plotly.v1+json"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    live, bars = figures
    assert live["layout"]["title"]["text"] == "step 2 of 2"  # the one that is shown was drawn again in its place
    assert {line["name"]: list(line["x"]) for line in live["data"]} == {"math": [1, 2], "code": [1, 2]}
    assert {bar["name"] for bar in bars["data"]} == {"math", "code"}
    assert (tmp_path / "notebook.lora" / "merge.json").is_file()
