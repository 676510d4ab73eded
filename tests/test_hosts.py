"Several hosts: the same counter as one host, photos wherever they lie, one writer, and no rank left waiting for one that is gone."
import json, os, re, shutil, signal, subprocess, sys, tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from bin_counter.cache import read_samples
from bin_counter.core import DataError, read_csv
from bin_counter.hosts import HostError, join_world, own_samples, read_world
from bin_counter.net import load_model
from bin_counter.splits import read_splits, write_channels, write_splits
from bin_counter.train import KeepRun, preset_config, run_main, train, train_net

from worlds import Ranks


@pytest.fixture(scope='module')
def table(split, tmp_path_factory):
    "The split of the drawn bins with rows that count twice and weights that differ"
    out = tmp_path_factory.mktemp('weighted')
    rows = [replace(r, repeats=2 if i % 7 == 0 and r.part == 'train' else 1, weight=1 + i % 3) for i, r in enumerate(read_splits(split/'splits.csv'))]
    write_splits(out/'splits.csv', rows)
    return out


@pytest.fixture(scope='module')
def normed(tmp_path_factory):
    "Weights of a network with batch norm, as after training"
    from bin_counter.net import torchvision
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_small()
    net.train()(torch.randn(16, 3, 64, 64))
    path = tmp_path_factory.mktemp('weights')/'net.pth'
    torch.save(net.state_dict(), path)
    return str(path)


SMALL = dict(arch='squeezenet1_1', weights='none', size=64, epochs=2, batch_size=32, precision='fp32')


def trained(samples, settings, out):
    "Train in this process's world"
    with join_world() as world: train(samples, preset_config('best', **settings), out, log=lambda line: None, world=world)


def history(folder): return [{k: float(v) for k, v in r.items() if k != 'seconds'} for r in read_csv(folder/'history.csv')]


# ---- the world is what the platform started

@pytest.mark.parametrize('hosts, here, size, ok', [(1, 1, 1, True), (1, 4, 4, True), (2, 1, 2, True), (2, 4, 8, True), (None, 2, 2, True),
                                                   (2, 1, 1, False), (2, 4, 4, False), (1, 1, 2, False), (3, 1, 2, False)])
def test_the_world_size_is_hosts_times_processes(hosts, here, size, ok):
    env, lines = dict(WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(here), RANK='0', LOCAL_RANK='0'), []
    if hosts: env['SM_HOSTS'] = json.dumps([f'algo-{i + 1}' for i in range(hosts)])
    if ok: assert read_world(env, lines.append).size == size
    else:
        with pytest.raises(HostError, match=f'{hosts} hosts of {here} processes each, but a world size of {size}'): read_world(env, lines.append)
    assert lines == ([f'world size {size}, rank 0 of {size}'] if size > 1 or (hosts or 1) > 1 else [])


def test_two_hosts_without_torchrun_are_stopped(bins, split, tmp_path):
    "As a tuning job of SDK v3 starts them; `python -m` says it in one line, without a warning, and leaves the reason"
    env = dict(SM_HOSTS='["algo-1", "algo-2"]', SM_CURRENT_HOST='algo-1', SM_CHANNEL_DATA=str(bins), SM_CHANNEL_SPLITS=str(split), SM_MODEL_DIR=str(tmp_path/'model'),
               SM_FAILURE_FILE=str(tmp_path/'failure'))
    done = subprocess.run([sys.executable, '-m', 'bin_counter.train'], env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == 'world size 1, rank 0 of 1\n'
    assert done.stderr.count('\n') == 1 and done.stderr == (tmp_path/'failure').read_text() and 'sagemaker_torch_distributed_enabled' in done.stderr
    assert not (tmp_path/'model').exists()


# ---- the same as one host

def test_two_ranks_take_the_steps_of_one_host(bins, table, tmp_path):
    "Whole batches, weights and repeats, no chance: the same weights, history and predictions but for rounding"
    samples = read_samples(table/'splits.csv', bins)[:90]
    settings = dict(SMALL, batch_size=4096, epochs=2, augment='none', mixup=0., dropout=0., average=.5, lr=1e-3, schedule='constant', views=['plain'])
    ranks = Ranks(tmp_path/'two', trained, lambda r: (samples, settings, tmp_path/f'two/out{r}'))
    train(samples, preset_config('best', **settings), tmp_path/'one', log=lambda line: None)
    assert ranks.wait() == [0, 0], ranks.all_text()
    a, b = (load_model(tmp_path/d)[0].state_dict() for d in ('one', 'two/out0'))
    for name in a: torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=name)
    for x, y in zip(history(tmp_path/'one'), history(tmp_path/'two/out0'), strict=True): assert x == pytest.approx(y, rel=1e-3), (x, y)
    rows = [read_csv(tmp_path/d/'predictions.csv') for d in ('one', 'two/out0')]
    for x, y in zip(*rows, strict=True):
        assert (x['id'], x['part'], x['label']) == (y['id'], y['part'], y['label'])
        np.testing.assert_allclose(*[[float(v) for k, v in r.items() if k[0] == 'p' and k != 'part'] for r in (x, y)], atol=1e-3)


def state_of(samples, settings, out):
    "Train one network in this process's world; its weights and what it decided. Only rank 0 judges: processors round differently, and ranks must decide alike"
    if os.environ['RANK'] == '1': KeepRun._row = lambda self: pytest.fail('rank 1 judged an epoch')
    with join_world() as world:
        own = own_samples(samples, world, lambda line: None)
        net, card, info = train_net(samples, preset_config('best', **settings), out, out/'history.csv', lambda line: None, world=world, own=own)
    return {k: v.numpy() for k, v in net.state_dict().items()}, {k: v for k, v in info.items() if k != 'checkpoints'}, sorted(p.name for p in out.rglob('*') if p.suffix != '.npy')


def test_all_ranks_end_with_one_network_and_one_of_them_writes(bins, table, normed, tmp_path):
    "Batch norm, mixup, running mean, dropout, early stopping, unequal shares and photos that cannot be read"
    shutil.copytree(bins, tmp_path/'bins')
    samples = read_samples(table/'splits.csv', tmp_path/'bins')[:90]
    bad = [next(s for s in samples if s.part == p) for p in ('train', 'valid')]
    for s in bad: s.path.write_bytes(b'')
    settings = dict(SMALL, arch='mobilenet_v3_small', weights=normed, trained='2', members=1, epochs=5, batch_size=15, patience=1, monitor='mae')
    ranks = Ranks(tmp_path, state_of, lambda r: (samples, settings, tmp_path/f'out{r}'))
    assert ranks.wait() == [0, 0], ranks.all_text()
    (a, info, files), (b, other, none) = ranks.result(0), ranks.result(1)
    assert info == other and {s['id'] for s in info['skipped']} == {s.id for s in bad}
    assert info['epochs'][0] < 5, 'patience 1 should have stopped a run of five epochs'
    for name in a: np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert any('running_mean' in k for k in a) and 'history.csv' in files
    assert all(f.endswith('.json') or f == 'cache' for f in none), none # its cache, and nothing else


# ---- photos wherever they lie

def put(rows, bins, folder, mine):
    "Channels as S3 shards them by key: the photos that `mine` says, and splits.csv where it says"
    channels = write_channels(rows, bins, folder)
    for part, path in channels.items():
        for photo in path.glob('*/*'):
            if not mine(photo.stem): photo.unlink()
        if not mine(f'{part}/splits.csv'): (path/'splits.csv').unlink()
    return channels


def as_container(folder, env):
    os.chdir(folder)
    tempfile.tempdir = None # it was looked up before TMPDIR was set
    os.environ.update(env)
    sys.exit(run_main())


@pytest.mark.parametrize('layout', ['folders', 'splits'])
def test_input_sharded_by_key(layout, bins, table, tmp_path):
    "Each host has its part of the photos, and one of them the table; all are trained on, judged and predicted"
    rows = read_splits(table/'splits.csv')
    hps = json.dumps(dict(SMALL, epochs=1, members=1))
    def env(rank):
        half = lambda name: (hash_of(name) < 4) == (rank == 0) # unequal parts
        out = tmp_path/f'host{rank}'
        if layout == 'folders':
            folders = put(rows, bins, out/'channels', half)
            channels = {f'SM_CHANNEL_{p.upper()}': str(f) for p, f in folders.items()}
        else:
            (out/'data/bin-images').mkdir(parents=True), (out/'splits').mkdir()
            for r in rows:
                if half(r.id): shutil.copy(bins/f'bin-images/{r.id}.jpg', out/'data/bin-images')
            if rank == 1: shutil.copy(table/'splits.csv', out/'splits')
            channels = dict(SM_CHANNEL_DATA=str(out/'data'), SM_CHANNEL_SPLITS=str(out/'splits'))
        (out/'tmp').mkdir()
        return dict(channels, TRAINING_JOB_NAME='job', SM_CURRENT_HOST=f'algo-{rank + 1}', TMPDIR=str(out/'tmp'), SM_MODEL_DIR=str(out/'model'), SM_OUTPUT_DATA_DIR=str(out/'output'), SM_CHECKPOINT_DIR=str(out/'checkpoints'), SM_HPS=hps)
    ranks = Ranks(tmp_path, as_container, lambda r: (tmp_path, env(r)))
    assert ranks.wait() == [0, 0], ranks.all_text()
    log = ranks.text(0)
    assert log.startswith('world size 2, rank 0 of 2\n') and 'photos are sharded over hosts' in log and 'are on no host' not in log
    assert ranks.text(1) == 'world size 2, rank 1 of 2\n'
    predicted = read_csv(tmp_path/'host0/output/predictions.csv')
    assert sorted(r['id'] for r in predicted) == sorted(r.id for r in rows if r.part != 'train')
    assert [p.name for p in (tmp_path/'host0/checkpoints').iterdir()] == ['checkpoints'], 'the cache is not where SageMaker would copy it to S3'
    assert list((tmp_path/'host0/tmp/bin_counter-job-algo-1').glob('*.npy')) and list((tmp_path/'host1/tmp/bin_counter-job-algo-2').glob('*.npy'))
    assert not (tmp_path/'host1/model').exists() and not (tmp_path/'host1/output').exists() and not read_csv(tmp_path/'host0/output/skipped.csv')


def hash_of(name): return sum(map(ord, name)) % 10


# ---- a rank that is gone

def ends(samples, settings, out, how):
    "Train until the second step of the second epoch, where rank 1 comes to an end"
    from fastai.callback.core import Callback
    class End(Callback):
        order = 90
        def after_step(self):
            if os.environ['RANK'] == '1' and (self.epoch, self.iter) == (1, 1): how_to[how]()
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    def fall_silent(): os.kill(os.getpid(), signal.SIGSTOP)
    def fail(): raise DataError('the cellar is under water')
    how_to = dict(die=die, silent=fall_silent, fail=fail)
    try:
        with join_world() as world: train(samples, preset_config('best', **settings), out, log=lambda line: None, world=world, cbs=[End()])
    except (HostError, DataError) as e: return type(e).__name__, str(e)


@pytest.mark.parametrize('how, says', [('die', 'another host is gone or silent'), ('silent', 'another host is gone or silent'), ('fail', 'rank 1 failed: .*the cellar is under water')])
def test_nobody_waits_for_a_rank_that_is_gone(how, says, bins, split, tmp_path):
    samples = [s for i, s in enumerate(read_samples(split/'splits.csv', bins)) if i < 80]
    ranks = Ranks(tmp_path, ends, lambda r: (samples, dict(SMALL, batch_size=12), tmp_path/f'out{r}', how), env=dict(BIN_COUNTER_HOST_TIMEOUT='2' if how == 'silent' else '60'))
    ranks.processes[0].join(60)
    status = ranks.wait(1)
    assert status[0] == 0, ranks.all_text() # it ended by itself
    kind, line = ranks.result(0)
    assert kind == 'HostError' and line.startswith('rank 0 of 2: ') and '\n' not in line
    assert re.search(says, line), line
    saved = list((tmp_path/'out0/checkpoints').iterdir())
    assert len(saved) == 1 and torch.load(saved[0], weights_only=True)['state']['epoch'] == 0
