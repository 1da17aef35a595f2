"""launch/notebooks/tour.ipynb: clean as committed, and it runs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.launch.commands import ROOT
from tests.pretrained.tiny_run import make_run

NOTEBOOK = ROOT / 'launch' / 'notebooks' / 'tour.ipynb'


def test_outputs_are_stripped():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == 'code']
    assert len(cells) > 8
    for cell in cells:
        assert cell['outputs'] == [] and cell['execution_count'] is None, cell['id']
        compile(''.join(cell['source']), cell['id'], 'exec')


@pytest.mark.slow
def test_it_runs_and_videos_play(environment, monkeypatch, tmp_path):
    """On a tiny run, in the folder where the notebook looks for the quickstart's."""
    nbclient = pytest.importorskip('nbclient', reason='the notebook extra is not installed')
    import nbformat

    make_run(tmp_path / 'runs' / 'quickstart' / 'magi')
    folder = tmp_path / 'launch' / 'notebooks'
    folder.mkdir(parents=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('MPLBACKEND', raising=False)  # inline, as notebooks have it
    notebook = nbformat.read(shutil.copy(NOTEBOOK, folder), as_version=4)
    where = {'metadata': {'path': folder}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3', resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    shown = [output.get('data', {}) for output in outputs]
    assert sum('<video' in data.get('text/html', '') for data in shown) == 3
    assert sum('image/png' in data for data in shown) == 3
    assert not [output for output in outputs if output.output_type == 'error']
    if keep := os.environ.get('KEEP_NOTEBOOK'):
        nbformat.write(notebook, Path(keep))
