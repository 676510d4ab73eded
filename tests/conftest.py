"Shared by the tests: a quiet, single-threaded environment, drawn bins, and the real photos where they are."
import os
from pathlib import Path

os.environ.setdefault('BIN_COUNTER_PROGRESS', '0')
for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(name, '1') # before numpy and torch are loaded

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='session')
def bins(tmp_path_factory):
    "A folder of 120 drawn bins; only to be read"
    from bin_counter.synth import draw_bins
    out = tmp_path_factory.mktemp('drawn')/'bins'
    draw_bins(120, out, seed=5, size=96)
    return out


@pytest.fixture(scope='session')
def split(bins, tmp_path_factory):
    "A folder with splits.csv of the drawn bins: by group, by hand; only to be read"
    from bin_counter.core import read_manifest
    from bin_counter.splits import SplitRow, write_splits
    out, records = tmp_path_factory.mktemp('split'), read_manifest(bins/'manifest.csv')
    groups = sorted({r.group for r in records})
    part = {g: ('train', 'train', 'train', 'valid', 'test')[i % 5] for i, g in enumerate(groups)}
    write_splits(out/'splits.csv', [SplitRow(r.id, r.label, r.group, part[r.group]) for r in records])
    return out


@pytest.fixture(scope='session')
def abid():
    "The folder of real photos, or a skip that says how to get one"
    path = Path(os.environ.get('BIN_COUNTER_ABID', ROOT.parent/'shared/abid'))
    if not (path/'bin-images').is_dir(): pytest.skip(f'real photos not found at {path}: fetch some with bin_data and set BIN_COUNTER_ABID')
    return path
