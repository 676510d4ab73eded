"Shared by the tests: a quiet, single-threaded environment, drawn bins, and the real photos where they are."
import gc, os, shutil
from pathlib import Path

gc.set_threshold(100_000, 50, 100) # torch, fastai and moto are millions of objects that stay: look through them seldom

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


BROWSER, DRIVER = (next(filter(None, map(shutil.which, names)), None) for names in (('chromium', 'chromium-browser', 'google-chrome'), ('chromedriver',)))
FLAGS = ('headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking', 'disable-component-update', 'disable-sync', 'disable-dev-shm-usage',
         'host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1', 'window-size=1280,900')


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    "One headless browser for the tests of a file, or a skip that says what to install"
    webdriver = pytest.importorskip('selenium.webdriver', reason="pages are tested in a browser: pip install 'bin_counter[dev]'")
    if not BROWSER or not DRIVER: pytest.skip('chromium or chromedriver not found: install the packages chromium and chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f'user-data-dir={tmp_path_factory.mktemp("profile")}'): options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture(scope='session')
def package(tmp_path_factory):
    "An untrained counter, packed: what it counts means nothing; only to be read"
    import torch
    from bin_counter.core import Counts, ModelCard, Preprocess
    from bin_counter.net import build_net, save_model
    from bin_counter.package import build_package
    out = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    card = ModelCard('squeezenet1_1', Counts(), Preprocess(64))
    save_model(out, build_net(card), card)
    build_package(out, out/'model.tar.gz')
    return out/'model.tar.gz'
