"""The notebook runs from its first cell to its last, on the smoke setting."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):  # of the tests alone
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    (settings,) = (cell for cell in notebook.cells if "SMOKE = False" in cell.source)
    settings.source = settings.source.replace("SMOKE = False", "SMOKE = True")
    nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output.get("data", {}) for output in outputs]
    assert any("contract" in data.get("text/markdown", "") for data in shown)
    assert sum("image/png" in data for data in shown) == 3
    assert any("map_50_95" in output.get("text", "") for output in outputs)
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


def test_the_notebook_is_stored_without_outputs():
    assert '"outputs": []' in (text := NOTEBOOK.read_text())
    assert '"output_type"' not in text
