"Checks of a run under the real training loop: each speaks where it should and is silent elsewhere, and nothing that is trained changes."
import errno, json, math, os, sys

import numpy as np
import pytest
import torch
from torch import nn

from bin_counter.cache import Cache, CacheLoader
from bin_counter.core import BinCounterError, ConfigError, DataError, Preprocess, read_json
from bin_counter.net import BinNet
from bin_counter.train import KeepRun, fit, make_learner, preset_config, soft_targets
from bin_counter.watch import CHECKS, OneLine, Profile, RunWatch, TensorBoardWriter, Watcher, judge, watchers

from fastai.callback.core import Callback, CancelFitException


class Quit(BaseException): "What a kill looks like from inside"


def features(n=256, seed=0, noise=2.):
    "Cached features of which the class can be learned: maps of 4 by 4 with 8 channels"
    rng = np.random.default_rng(seed)
    y = rng.integers(5, size=n)
    x = rng.normal(size=(1, n, 4, 4, 8))*noise
    x[..., :5] += np.eye(5)[y][None, :, None, None, :]*2
    return x.astype(np.float16), y


def tail(norm=True):
    "A convolution with batch norm, a pooling and a head with dropout; without `norm` neither of the two"
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU())
    return BinNet([nn.Identity(), block], 16, 5, 'mean', .2 if norm else 0.).split(1)[1]


def run(folder, cbs=(), epochs=4, x=None, y=None, net=None, log=None, **changes):
    "Train on features with the loop that ships; returns the learner, after closing the callbacks as training does"
    if x is None: x, y = features()
    settings = dict(epochs=epochs, batch_size=32, lr=.01, precision='fp32', trained='upper', mixup=.3, average=0) | changes
    config = preset_config('best', **settings)
    targets = soft_targets(y, 5, .3)
    held = features(64, seed=1)
    loaders = [CacheLoader(Cache(a, {}), np.arange(a.shape[1]), t, Preprocess(96), train, 'flip', bs=32)
               for a, t, train in ((x, targets, True), (held[0], soft_targets(held[1], 5), False))]
    learn = make_learner(net or tail(), *loaders, config, list(cbs))
    try: learn.state_of_run = fit(learn, config, KeepRun(folder/'last.pth', 'key', folder/'history.csv', log=log or (lambda line: None)))
    finally:
        for cb in cbs:
            if isinstance(cb, Watcher): cb.close()
    return learn


def hooks(net): return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())


def hands_of_a_clock(seconds):
    "A clock, and callbacks that move it: `seconds` of waiting and of work, by the number of the training step from 1"
    now, steps = [0.], []
    class Waits(Callback):
        order, run_valid = -11, False # before the watch reads the clock at the start of a step
        def before_batch(self):
            steps.append(1)
            now[0] += seconds(len(steps))[0]
    class Works(Callback):
        order, run_valid = -8, False # after
        def before_batch(self): now[0] += seconds(len(steps))[1]
    return lambda: now[0], Waits(), Works()


def steady(path, log=lambda line: None):
    "A watch whose steps all take the same time, whatever else the machine does, and what moves its clock"
    clock, *hands = hands_of_a_clock(lambda step: (.001, .009))
    return [RunWatch(path, log, clock=clock), *hands]


# ---- the verdicts, at and beyond each limit

def row(**changes):
    "An epoch as a healthy run has it"
    return dict(epoch=1, steps=64, train_loss=1.5, valid_loss=1.5, classes=5, first_loss=1.7, gradients=dict(body=dict(norm=1., rms=1e-3, looked=4), head=dict(norm=2., rms=1e-2, looked=4)),
                units=100, dead=3, photos=256, timed=60, step_ms=30., longest_ms=80., slow=1, seconds=2., wait_seconds=.2) | changes


def curve(train, valid=None): return [row(epoch=i + 1, train_loss=t, valid_loss=v) for i, (t, v) in enumerate(zip(train, valid or train))]


def gradient(norm, rms): return [row(gradients=dict(body=dict(norm=norm, rms=rms, looked=4)))]


k = math.log(5)
@pytest.mark.parametrize('check, silent, speaks', [
    ('first_loss', [row(first_loss=2.9*k)], [row(first_loss=3.1*k)]),
    ('first_loss', [row(first_loss=.51*k)], [row(first_loss=.49*k)]),
    ('plateau', curve([1.5, 1.5, 1.5, 1.496]), curve([1.5, 1.5, 1.5, 1.498])),
    ('plateau', curve([1.5, 1.4, 1.41, 1.42, 1.39]), curve([1.5, 1.39, 1.41, 1.42, 1.39])),
    ('overfit', curve([1.5, 1.4, 1.3], [1.5, 1.54, 1.52]), curve([1.5, 1.4, 1.3], [1.5, 1.54, 1.54])),
    ('overfit', curve([1.5, 1.6, 1.7], [1.5, 1.7, 1.7]), curve([1.5, 1.6, 1.4], [1.5, 1.7, 1.7])), # both rise: no overfitting
    ('dead_units', [row(dead=80)], [row(dead=81)]),
    ('vanishing', gradient(1., 2e-8), gradient(1., .9e-8)),
    ('exploding', gradient(99., 1.), gradient(101., 1.)),
    ('slow_steps', [row(slow=3)], [row(slow=4)]),
    ('slow_steps', [row(timed=10, slow=1)]*2 + [row(timed=10, slow=0)]*2, [row(timed=10, slow=1)]*2), # short epochs are judged together
    ('waiting', [row(wait_seconds=1.)], [row(wait_seconds=1.01)])])
def test_each_check_speaks_beyond_its_limit_and_not_at_it(check, silent, speaks):
    assert judge(silent)[check] is None
    found = judge(speaks)[check]
    assert found.check == check and found.saw and found.advice and '\n' not in str(found)


@pytest.mark.parametrize('check, rows', [('first_loss', [row(first_loss=None)]), ('plateau', curve([1.5]*3)), ('overfit', curve([1.5]*2)), ('overfit', [row(valid_loss=None)]*4),
                                         ('dead_units', [row(photos=63)]), ('dead_units', [row(units=0)]), ('vanishing', [row(gradients={})]), ('exploding', [row(gradients={})]),
                                         ('slow_steps', [row(timed=19)]), ('waiting', [dict(row(), timed=0)])])
def test_a_check_without_its_figures_says_nothing_at_all(check, rows):
    assert check not in judge(rows)


def test_every_check_is_in_the_matrix_of_a_healthy_epoch():
    assert set(judge(curve([1.6, 1.5, 1.4, 1.3]))) == set(CHECKS) and not any(judge(curve([1.6, 1.5, 1.4, 1.3])).values())


# ---- under the training loop

STUCK = dict(lr=1e-9, schedule='constant', mixup=0., epochs=6)


def broken(kind):
    "Features, labels and network for a run that goes wrong in one way"
    (x, y), net, changes = features(), tail(), {}
    if kind == 'first_loss': net.stages[-1][-1].weight.data *= 300
    if kind == 'plateau': net, changes = tail(norm=False), STUCK
    if kind == 'overfit':
        x, y = features(64, noise=1.)
        y, changes = np.random.default_rng(7).permutation(y), dict(epochs=25, lr=.05, mixup=0., weight_decay=0.)
    if kind == 'dead_units': net.stages[0][1].bias.data[:14] = -1000
    if kind == 'vanishing': net.stages[-1][-1].weight.data *= 1e-12; changes = dict(lr=1e-9)
    if kind == 'exploding': net.stages[0][1].weight.data *= 1e4
    return dict(x=x, y=y, net=net, **changes)


@pytest.mark.parametrize('kind', ['first_loss', 'plateau', 'overfit', 'dead_units', 'vanishing', 'exploding'])
def test_each_check_fires_on_a_run_that_goes_wrong_in_its_way(kind, tmp_path):
    lines = []
    net = broken(kind)
    learn = run(tmp_path, steady(tmp_path/'checks.json', lines.append), **net)
    found = [f['check'] for f in read_json(tmp_path/'checks.json')['findings']]
    assert kind in found
    assert [l.split()[1] for l in lines if l.startswith('check ')] == found, 'one line each'
    assert hooks(learn.model) == 0


def test_a_healthy_run_is_silent_though_every_check_looked(tmp_path):
    lines = []
    learn = run(tmp_path, steady(tmp_path/'checks.json', lines.append), epochs=6)
    checks = read_json(tmp_path/'checks.json')
    assert checks['findings'] == [] and len(lines) == 1 and lines[0].startswith('checks: nothing unusual in 48 steps')
    assert all(n > 0 for n in checks['summary']['checks'].values()), checks['summary']
    assert hooks(learn.model) == 0


@pytest.mark.parametrize('check, seconds', [('slow_steps', lambda step: (.001, .5 if step % 10 == 0 else .01)), ('waiting', lambda step: (.05, .01))])
def test_times_are_judged_without_the_first_step(check, seconds, tmp_path):
    "The very first step takes an hour, which is not held against the run"
    clock, *hands = hands_of_a_clock(lambda step: (1800, 1800) if step == 1 else seconds(step))
    run(tmp_path, [RunWatch(tmp_path/'checks.json', lambda line: None, clock=clock), *hands])
    checks = read_json(tmp_path/'checks.json')
    assert [f['check'] for f in checks['findings']] == [check]
    assert checks['summary']['step_ms'] == pytest.approx(1000*sum(seconds(2))) and max(r['longest_ms'] for r in checks['epochs']) < 1000


# ---- no number

def poisoned(kind):
    (x, y), net = features(), tail()
    class At(Callback):
        "Spoil the weights before the second epoch's third step"
        order = -20
        def before_batch(self):
            if self.training and self.epoch == 1 and self.iter == 2: self.model.stages[0][0].weight.data[0] = float('nan')
    if kind == 'input': x[0, 200, 1, 1, 3] = np.inf
    if kind == 'weights': return dict(x=x, y=y, net=net), [At()]
    return dict(x=x, y=y, net=net), []


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('kind, says', [('input', r'\d+ of the 32 inputs of the batch'), ('weights', 'in step 3 of epoch 2: the weights of the body are no numbers')])
def test_a_loss_that_is_no_number_ends_the_run_at_its_step(kind, says, precision, tmp_path):
    case, cbs = poisoned(kind)
    with pytest.raises(BinCounterError, match=says) as e: run(tmp_path, [RunWatch(tmp_path/'checks.json', lambda line: None), *cbs], precision=precision, **case)
    assert str(e.value).startswith('the loss is no number in step') and '\n' not in str(e.value)
    checks = read_json(tmp_path/'checks.json')
    assert [f['check'] for f in checks['findings']] == ['number'] and len(checks['epochs']) == (kind == 'weights')
    assert not torch.is_autocast_enabled('cpu') and hooks(case['net']) == 0
    if kind == 'weights': # the checkpoint is the one before
        saved = torch.load(tmp_path/'last.pth', weights_only=True)
        assert saved['state']['epoch'] == 0 and all(v.isfinite().all() for v in saved['model'].values())


def test_statistics_that_are_no_number_end_the_run_before_a_checkpoint(tmp_path):
    class Spoil(Callback):
        order = -20
        def after_train(self): self.model.stages[0][1].running_var[:] = float('inf')
    with pytest.raises(BinCounterError, match='after epoch 1: .*running_var') as e: run(tmp_path, [RunWatch(tmp_path/'checks.json', lambda line: None), Spoil()])
    assert '\n' not in str(e.value) and not (tmp_path/'last.pth').exists()


def test_our_errors_stay_one_line_and_others_keep_where_they_came_from(tmp_path):
    class Ours(OneLine):
        def before_train(self): raise DataError('one line')
    class Other(OneLine):
        def before_train(self): raise RuntimeError('a bug')
    with pytest.raises(DataError) as e: run(tmp_path, [Ours()])
    assert str(e.value) == 'one line'
    with pytest.raises(RuntimeError, match='Other.*before_train'): run(tmp_path, [Other()])


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*a): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(DataError, match='checks.json: the disk is full') as e: run(tmp_path, [RunWatch(tmp_path/'checks.json', lambda line: None)])
    assert '\n' not in str(e.value)


# ---- nothing changes

@pytest.mark.parametrize('changes', [dict(), dict(average=.9), dict(precision='bf16'), dict(lr=0.)])
def test_a_watched_run_trains_the_same_weights(changes, tmp_path):
    "With mixup and dropout, a running mean of the weights, bfloat16 and the learning-rate finder; all watchers on"
    alone, watched, lines = tmp_path/'alone', tmp_path/'watched', []
    a = run(alone, **changes)
    b = run(watched, watchers(watched, True, True, lines.append), **changes)
    for (name, x), y in zip(a.model.state_dict().items(), b.model.state_dict().values()): assert torch.equal(x, y), name
    for name, x in a.state_of_run['best'].items(): assert torch.equal(x, b.state_of_run['best'][name]), name
    drop = lambda rows: [{k: v for k, v in r.items() if k != 'seconds'} for r in rows]
    assert drop(a.state_of_run['rows']) == drop(b.state_of_run['rows'])
    checks = read_json(watched/'checks.json')
    assert [r['epoch'] for r in checks['epochs']] == [1, 2, 3, 4]
    assert len(scalars(watched/'tensorboard', 'loss/train')) == 32 and sum(l.startswith('checks:') for l in lines) == 1, 'the finder is not watched'
    np.testing.assert_allclose([r['train_loss'] for r in checks['epochs']], [r['train_loss'] for r in b.state_of_run['rows']], rtol=1e-5)
    np.testing.assert_allclose([r['valid_loss'] for r in checks['epochs']], [r['valid_loss'] for r in b.state_of_run['rows']], rtol=1e-5)


def kill_at(epoch, step):
    class Kill(Callback):
        order = 90
        def after_batch(self):
            if self.training and (self.epoch, self.iter) == (epoch, step): raise Quit
    return Kill()


@pytest.mark.parametrize('past', ['kept', 'gone', 'damaged', 'short', 'of another version', 'of another run'])
def test_a_resumed_run_takes_up_what_was_seen(past, tmp_path):
    path = tmp_path/'checks.json'
    with pytest.raises(Quit): run(tmp_path, [*steady(path), kill_at(4, 3)], net=tail(norm=False), **STUCK)
    before = read_json(path)
    assert [f['check'] for f in before['findings']] == ['plateau'] and len(before['epochs']) == 4
    if past == 'gone': path.unlink()
    if past == 'damaged': path.write_text('{"epochs": [')
    if past == 'short': path.write_text(json.dumps(before | dict(epochs=before['epochs'][:2])))
    if past == 'of another version': path.write_text(json.dumps(dict(epochs=[dict(number=1)])))
    if past == 'of another run': run(tmp_path/'other', steady(path))
    lines = []
    run(tmp_path, steady(path, lines.append), net=tail(norm=False), **STUCK)
    after = read_json(path)
    if past == 'kept':
        assert after['epochs'][:4] == before['epochs'] and [r['epoch'] for r in after['epochs']] == [1, 2, 3, 4, 5, 6]
        assert not any(l.startswith('check ') for l in lines), 'said before'
        assert after['findings'] == before['findings'] and after['summary']['steps'] == 48
    else: assert [r['epoch'] for r in after['epochs']] == [5, 6] and after['summary']['checks']['first_loss'] == 0


def test_a_run_of_other_settings_forgets_the_past(tmp_path):
    path = tmp_path/'checks.json'
    for epochs in (2, 1):
        (tmp_path/'last.pth').unlink(missing_ok=True)
        run(tmp_path, [RunWatch(path, lambda line: None)], epochs=epochs)
    assert [r['epoch'] for r in read_json(path)['epochs']] == [1]


@pytest.mark.parametrize('how', ['stop', 'error'])
def test_nothing_is_left_behind_when_a_run_ends_early(how, tmp_path):
    "In a step in which activations are looked at and the profiler records"
    class End(Callback):
        order = 90
        def after_pred(self):
            if self.training and self.iter == 5: raise CancelFitException() if how == 'stop' else RuntimeError('a bug')
    net = tail()
    with pytest.raises(RuntimeError) if how == 'error' else open(os.devnull): run(tmp_path, [*watchers(tmp_path, True, True, lambda line: None), End()], net=net)
    assert hooks(net) == 0 and not torch.autograd._profiler_enabled()
    assert json.loads((tmp_path/'profile/trace.json').read_text())['traceEvents']
    assert len(scalars(tmp_path/'tensorboard', 'loss/train')) == 5


# ---- TensorBoard and the profiler

def scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return EventAccumulator(str(folder)).Reload().Scalars(tag)


def test_tensorboard_holds_each_step_once_after_a_kill(tmp_path):
    with pytest.raises(Quit): run(tmp_path, [TensorBoardWriter(tmp_path/'tb'), kill_at(2, 4)])
    learn = run(tmp_path, [TensorBoardWriter(tmp_path/'tb')])
    rows = learn.state_of_run['rows']
    losses = scalars(tmp_path/'tb', 'loss/train')
    assert [e.step for e in losses] == list(range(32))
    for i, r in enumerate(rows): np.testing.assert_allclose(np.mean([e.value for e in losses[8*i:8*i + 8]]), r['train_loss'], rtol=1e-5)
    for tag, name in (('valid/loss', 'valid_loss'), ('valid/accuracy', 'accuracy'), ('valid/mae', 'mae')):
        points = scalars(tmp_path/'tb', tag)
        assert [e.step for e in points] == [7, 15, 23, 31]
        np.testing.assert_allclose([e.value for e in points], [r[name] for r in rows], rtol=1e-5)
    np.testing.assert_allclose([scalars(tmp_path/'tb', 'rate/head')[i].value for i in (7, 15, 23, 31)], [r['lr'] for r in rows], rtol=1e-4)
    assert len(scalars(tmp_path/'tb', 'gradient/body')) == 32


def test_gradients_are_those_before_clipping(tmp_path):
    (x, y), net = features(), tail()
    net.stages[0][1].weight.data *= 1e4
    run(tmp_path, [TensorBoardWriter(tmp_path/'tb')], x=x, y=y, net=net, epochs=1)
    assert max(e.value for e in scalars(tmp_path/'tb', 'gradient/head')) > 100 # the training loop clips at 5


@pytest.mark.parametrize('absent', ['tensorboard', 'torch.utils.tensorboard'])
def test_without_tensorboard_one_line_says_what_to_install(absent, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.startswith(('tensorboard', 'torch.utils.tensorboard'))]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ConfigError, match='pip install tensorboard') as e: watchers(tmp_path, tensorboard=True)
    assert '\n' not in str(e.value)
    assert len(watchers(tmp_path)) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize('n, recorded', [(256, 4), (192, 4), (96, 3), (64, 2)])
def test_a_trace_holds_the_steps_there_are(n, recorded, tmp_path):
    x, y = features(n)
    run(tmp_path, [Profile(tmp_path, log=lambda line: None)], x=x, y=y, epochs=2)
    events = json.loads((tmp_path/'trace.json').read_text())['traceEvents']
    assert sum(e.get('name') == 'aten::conv2d' for e in events) == recorded
    assert 'Self CPU' in (tmp_path/'top.txt').read_text() and 'conv' in (tmp_path/'top.txt').read_text()


def test_members_of_an_ensemble_have_files_of_their_own(tmp_path):
    for m in range(2): run(tmp_path/str(m), watchers(tmp_path, True, True, lambda line: None, member=m), epochs=1)
    assert {'checks.json', 'checks2.json', 'tensorboard', 'tensorboard2', 'profile', 'profile2'} <= {p.name for p in tmp_path.iterdir()}
