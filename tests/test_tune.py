"A search under kill -9, with spaces that cannot be, with trials that fail; what it may read, and when it gives up on a trial."
import json, os, shlex, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bin_counter import cli, tune as tune_module
from bin_counter.cache import read_samples
from bin_counter.core import BinCounterError, ConfigError, DataError, read_csv, read_json
from bin_counter.trials import Dimension, TrialRow, write_figures
from bin_counter.tune import ATTEMPTS, parse_dimension, plan_tune, tune

SPACE = ['lr=5e-4..5e-3', 'dropout=0..0.5']


@pytest.fixture(scope='module')
def samples(split, bins): return read_samples(split/'splits.csv', bins)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "Settings with a frozen body: a weights file as torchvision would write it, with random values"
    from bin_counter.net import torchvision
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights')/'squeezenet1_1.pth'
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return dict(arch='squeezenet1_1', weights=str(path), size=64, epochs=2, batch_size=32, trained='3')


@pytest.fixture
def made_up(monkeypatch):
    "Searches without training: the loss is a function of the settings; returns the settings that were tried"
    tried = []
    def loss(settings): return 1 + abs(settings['lr'] - 2e-3)
    def trainer(samples, settings, objective, work):
        def train(trial, drawn, note):
            tried.append(drawn)
            return loss(drawn)
        return train
    monkeypatch.setattr(tune_module, '_trainer', trainer)
    return tried


def told(rows): return [(r.state, r.value, r.epochs, r.settings) for r in rows if 'killed' not in r.reason]


# -- killed --

CODE = '''import json, os, sys
from bin_counter import tune, train, trials
from bin_counter.cache import read_samples
import optuna
def kill_at(where, name, n):
    calls, old = [], getattr(where, name)
    def counted(*a, **k):
        calls.append(1)
        if len(calls) == n: os.kill(os.getpid(), 9)
        return old(*a, **k)
    setattr(where, name, counted)
KILL
rows = tune.tune(read_samples(sys.argv[1], sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]), json.loads(sys.argv[5]), trials=4)
print(json.dumps([(r.state, r.value, r.epochs, r.settings, r.reason) for r in rows]))'''

# before the dropout of the second trial is drawn; in the second epoch of a trial; while that trial is taken up again; after a trial, before its row is written
KILLS = ["kill_at(optuna.Trial, '_suggest', 4)", "kill_at(train.KeepRun, 'after_epoch', 2)", "kill_at(optuna.Study, 'tell', 1)", "kill_at(tune, 'write_trials', 2)"]


def test_a_study_killed_again_and_again_ends_where_an_unbroken_one_does(split, bins, small, tmp_path):
    "kill -9 while settings are drawn, in a trial, while it is taken up, and between a trial and its table"
    def search(out, kill=''):
        return subprocess.run([sys.executable, '-c', CODE.replace('KILL', kill), split/'splits.csv', bins, out, json.dumps(SPACE), json.dumps(small)],
                              env={**os.environ, 'BIN_COUNTER_PROGRESS': '0'}, capture_output=True, text=True, timeout=300)
    whole = search(tmp_path/'whole')
    assert whole.returncode == 0, whole.stderr
    for kill in KILLS: assert search(tmp_path/'broken', kill).returncode == -signal.SIGKILL
    last = search(tmp_path/'broken')
    assert last.returncode == 0, last.stderr
    assert 'going on: ' in last.stdout and 'killed while it ran' in (tmp_path/'broken/trials.csv').read_text()
    a, b = (json.loads(out.stdout.splitlines()[-1]) for out in (whole, last))
    assert len(b) > len(a) == 4 and all(r[0] == 'failed' for r in b if 'killed' in r[4])
    assert [r for r in b if 'killed' not in r[4]] == a
    assert read_json(tmp_path/'broken/best.json') == read_json(tmp_path/'whole/best.json')
    for out in (tmp_path/'whole', tmp_path/'broken'):
        assert not list(out.rglob('*.part')) and not list(out.rglob('*.pth')), 'no weights are left behind'
        assert len(list((out/'work/cache').glob('*.npy'))) == 1, 'one cache for all trials'


def test_a_trial_that_was_killed_goes_on_after_its_last_epoch(samples, small, tmp_path, monkeypatch):
    from bin_counter import train
    epochs, real = [], train.KeepRun.after_epoch

    class Killed(BaseException): "Nobody catches it"

    def after_epoch(self):
        trained = self.sums[1]
        real(self)
        if not trained: return # an epoch that a resumed trial skips
        epochs.append(self.epoch)
        if len(epochs) == 1: raise Killed
    monkeypatch.setattr(train.KeepRun, 'after_epoch', after_epoch)
    with pytest.raises(Killed): tune(samples, tmp_path, SPACE, small, trials=1)
    rows = tune(samples, tmp_path, SPACE, small, trials=1)
    assert epochs == [0, 1], 'the first epoch was not trained again'
    assert [r.state for r in rows] == ['failed', 'finished'] and rows[1].epochs == 2 and rows[1].own


def test_a_trial_that_always_kills_the_process_is_given_up(samples, tmp_path, monkeypatch, made_up):
    class Killed(BaseException): "Nobody catches it"

    inner = tune_module._trainer
    def trainer(*args):
        train = inner(*args)
        def wrapped(trial, drawn, note):
            if drawn['lr'] == 2e-3: raise Killed
            return train(trial, drawn, note)
        return wrapped
    monkeypatch.setattr(tune_module, '_trainer', trainer)
    for _ in range(ATTEMPTS):
        with pytest.raises(Killed): tune(samples, tmp_path, ['lr=5e-4..5e-3'], trials=2)
    rows = tune(samples, tmp_path, ['lr=5e-4..5e-3'], trials=2)
    assert [r.state for r in rows] == ['failed']*ATTEMPTS + ['finished'] and 'perhaps it needs more memory' in rows[ATTEMPTS - 1].reason
    assert 'tried again' in rows[0].reason


# -- what it may read --

def test_test_photos_are_not_touched(samples, small, tmp_path, monkeypatch):
    "Not one is read, and which there are makes no difference"
    from bin_counter import cache
    read, real = [], cache.read_photo

    def read_photo(path, *args, **kwargs):
        read.append(Path(path).stem)
        return real(path, *args, **kwargs)
    monkeypatch.setattr(cache, 'read_photo', read_photo)
    rows = tune(samples, tmp_path, SPACE, small, trials=2, log=lambda line: None)
    seen = [s.id for s in samples if s.part in ('train', 'valid')]
    assert sorted(read) == sorted(seen), 'every other photo once, for both trials'
    others = [s for s in samples if s.part != 'test'] + [replace(s, id=f'x{s.id}', path=tmp_path/'none.jpg') for s in samples if s.part == 'test']
    assert tune(others, tmp_path, SPACE, small, trials=2, log=lambda line: None) == rows


def test_unreadable_photos_are_named(samples, small, tmp_path):
    spoiled = [replace(samples[0], path=tmp_path/'none.jpg'), *samples[1:]]
    assert samples[0].part == 'train'
    lines = []
    tune(spoiled, tmp_path/'out', SPACE, small, trials=1, log=lines.append)
    assert any('could not be read' in l and 'unread.csv' in l for l in lines)
    assert [r['id'] for r in read_csv(tmp_path/'out/unread.csv')] == [samples[0].id]


# -- when it gives up on a trial --

@pytest.mark.parametrize('objective, bar, state, epochs', [
    ('calibrated_loss', .01, 'pruned', 2), # four trials were better halfway than any network can be
    ('calibrated_loss', 99., 'finished', 4), # or worse than any
    ('accuracy', 1.1, 'pruned', 2), # where more is better, too
    ('accuracy', -1., 'finished', 4)])
def test_a_hopeless_trial_is_stopped_halfway(samples, small, tmp_path, objective, bar, state, epochs):
    import optuna
    space, settings = plan_tune(SPACE, {**small, 'epochs': 4}, objective)
    known = {d.name: tune_module.distribution(d) for d in space}
    trained = []
    with tune_module._opened(tmp_path/'study.db', objective) as study:
        for n in range(4):
            params = dict(lr=1e-3 + n*1e-4, dropout=.1)
            study.add_trial(optuna.create_trial(params=params, distributions=known, value=bar, intermediate_values={t: bar for t in range(1, 11)}, user_attrs=dict(settings=params)))
        train = tune_module._trainer([s for s in samples if s.part != 'test'], settings, objective, tmp_path)
        tune_module._search(study, space, 0, train, 1, None, lambda number, write: trained.extend(read_csv(tmp_path/'history.csv')))
        row = tune_module._rows(study)[-1]
    assert (row.state, row.epochs, len(trained)) == (state, epochs, epochs)


def test_early_stopping_counts_as_finished(samples, small, tmp_path):
    "A trial whose own patience ends it has a figure, and stands for the tenths that it did not need"
    rows = tune(samples, tmp_path, ['dropout=0..0.5'], {**small, 'epochs': 10, 'lr': 1e-9, 'patience': 1}, trials=1, log=lambda line: None)
    assert rows[0].state == 'finished' and rows[0].epochs < 10 and rows[0].curve[10] == rows[0].value


# -- spaces that cannot be --

@pytest.mark.parametrize('words, settings, says', [
    (['lr'], {}, "--space 'lr': write a range as"),
    (['lr='], {}, "--space 'lr=': write a range as"),
    (['=1..2'], {}, 'write a range as'),
    (['dropuot=0..1'], {}, 'dropuot: no such setting'),
    (['lr=1e-2..1e-4'], {}, 'write the smaller end first'),
    (['lr=0.01..0.01'], {}, 'an empty range'),
    (['lr=low..high'], {}, "'low' is not a number"),
    (['lr=nan..1'], {}, 'the ends of a range are numbers'),
    (['lr=0.001..inf'], {}, 'the ends of a range are numbers'),
    (['lr=1...2'], {}, 'write the smaller end first'),
    (['epochs=2.5..4'], {}, "'2.5' is not a whole number"),
    (['batch_size=32|many'], {}, "'many' is not a whole number"),
    (['batch_size=32||64'], {}, "'' is not a whole number"),
    (['arch=resnet18|'], {}, 'a value is missing'),
    (['batch_size=32|64|32'], {}, 'a value is there twice'),
    (['arch=resnet18..resnet50'], {}, 'a range needs numbers'),
    (['arch=resnet18|resnet99'], {}, "'resnet99' is unknown"),
    (['seed=0..9'], {}, 'only the luckiest'),
    (['counts=1-5|0-5'], {}, 'cannot be compared'),
    (['preset=classic|best'], {}, 'make a study of each'),
    (['monitor=mae|accuracy'], {}, '--objective'),
    (['lr=1e-4..1e-2', 'lr=1e-3..1e-2'], {}, 'lr is given twice'),
    (['arch=resnet18|resnet34'], dict(arch='resnet18'), 'arch is given twice'),
    (['size=96'], {}, 'nothing to search'),
    (['dropout=0..2'], {}, 'dropout 2.0: choose 0 to 0.95'),
    (['batch_size=1|32'], {}, 'batch_size 1: choose 2 to 4096'),
    (['trained=head|3'], dict(weights='none'), 'would freeze noise'),
    (['size=16..300'], {}, 'size 16: choose 32 to 1024'),
    (['views=plain|plain,flip'], {}, 'give it one value'),
    (['members=1..5'], {}, 'the run will train so many'),
    (['monitor=mae'], {}, '--objective'),
    (['lr=1e-3..1e-2'], dict(weights='nowhere.pth'), 'nowhere.pth: no such file'),
    (['lr=1e-3..1e-2'], dict(preset='fastest'), 'choose classic or best'),
    (['lr=1e-3..1e-2'], dict(dropuot=0), 'no such setting: dropuot')])
def test_a_space_that_cannot_be_is_refused_in_one_line(words, settings, says):
    with pytest.raises(BinCounterError) as e: plan_tune(words, settings)
    assert says in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize('text, kind', [('lr=1e-4..1e-2', 'log'), ('lr=0.001..0.005', 'plain'), ('lr=0..0.01', 'plain'), ('batch_size=8..256', 'whole'),
                                        ('weights=../a.pth|none', 'choice'), ('weights=../a..b.pth', 'choice'), ('views=plain,flip', 'choice'), (' lr = 1e-4 .. 1e-2 ', 'log')])
def test_how_a_space_is_read(text, kind):
    d = parse_dimension(text)
    assert kind == ('choice' if d.choices else 'whole' if d.whole else 'log' if d.log else 'plain')
    assert parse_dimension(str(d)) == d, 'what is printed can be typed'


def test_what_a_run_does_with_its_networks_is_handed_on(samples, small, tmp_path):
    "Views, credit and the number of networks go to best.json; a trial trains one network"
    from bin_counter.train import config_from_hps
    tune(samples, tmp_path, [*SPACE, 'members=2', 'views=plain,flip', 'credit=0.3'], {**small, 'epochs': 1}, trials=1, log=lambda line: None)
    config = config_from_hps(read_json(tmp_path/'best.json'))
    assert (config.members, config.views, config.credit) == (2, ('plain', 'flip'), .3)
    assert not list(tmp_path.rglob('history2.csv'))


# -- trials that fail --

def test_all_trials_failing_is_one_line_and_the_same_call_begins_anew(samples, small, tmp_path):
    weights = tmp_path/'weights.pth'
    weights.write_bytes(b'no weights')
    settings = {**small, 'weights': str(weights)}
    with pytest.raises(BinCounterError, match=r'^all 3 trials failed \(the last: .*is not a file of plain weights.*\): put that right and give the same command again'):
        tune(samples, tmp_path/'out', SPACE, settings, trials=3, log=lambda line: None)
    assert [r['state'] for r in read_csv(tmp_path/'out/trials.csv')] == ['failed']*3 and not (tmp_path/'out/best.json').exists()
    weights.write_bytes(Path(small['weights']).read_bytes())
    rows = tune(samples, tmp_path/'out', SPACE, settings, trials=1, log=lambda line: None)
    assert [(r.number, r.state, r.own) for r in rows] == [(0, 'finished', True)]


@pytest.mark.parametrize('error, says', [
    (MemoryError(), 'out of memory'),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 'out of memory, a smaller batch_size'),
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'), 'out of memory'),
    (BinCounterError('the loss is no number in epoch 1'), 'the loss is no number'),
    (ValueError('Expected more than 1 value per channel when training,\ngot input size [1, 2]'), 'Expected more than 1 value')])
def test_a_trial_that_fails_is_counted_and_the_study_goes_on(error, says, samples, tmp_path, monkeypatch, made_up):
    inner = tune_module._trainer
    def trainer(*args):
        train = inner(*args)
        def wrapped(trial, drawn, note):
            if trial.number == 1: raise error
            return train(trial, drawn, note)
        return wrapped
    monkeypatch.setattr(tune_module, '_trainer', trainer)
    lines = []
    rows = tune(samples, tmp_path, SPACE, trials=3, log=lines.append)
    assert [r.state for r in rows] == ['finished', 'failed', 'finished'] and rows[1].reason.startswith(says) and '\n' not in rows[1].reason
    assert lines[1].startswith(f'trial 1: failed: {says}') and read_csv(tmp_path/'trials.csv')[1]['reason'] == rows[1].reason


def test_a_diverged_trial_says_so(samples, small, tmp_path):
    "The reason is the training chapter's own line, without fastai's words about where it was"
    state = {k: v*float('nan') if v.is_floating_point() else v for k, v in torch.load(small['weights'], weights_only=True).items()}
    torch.save(state, tmp_path/'nan.pth')
    with pytest.raises(BinCounterError, match=r'the last: the loss is no number in epoch 1: lower the learning rate'):
        tune(samples, tmp_path/'out', SPACE, {**small, 'weights': str(tmp_path/'nan.pth')}, trials=1, log=lambda line: None)


def test_a_full_disk_ends_the_command_and_not_the_trial(samples, tmp_path, monkeypatch, made_up):
    inner, full = tune_module._trainer, [True]
    def trainer(*args):
        train = inner(*args)
        def wrapped(trial, drawn, note):
            if full[0] and trial.number == 1: raise DataError('last.pth: the disk is full')
            return train(trial, drawn, note)
        return wrapped
    monkeypatch.setattr(tune_module, '_trainer', trainer)
    with pytest.raises(DataError, match='the disk is full'): tune(samples, tmp_path, SPACE, trials=3, log=lambda line: None)
    full[0] = False
    rows = tune(samples, tmp_path, SPACE, trials=3, log=lambda line: None)
    assert [r.state for r in rows] == ['finished', 'failed', 'finished', 'finished'] and rows[1].settings == rows[2].settings and 'disk is full' in rows[1].reason


def test_a_combination_that_is_refused_is_named(samples, small, tmp_path):
    "Each value goes with something, and one pair of values does not go together"
    rows = tune(samples, tmp_path, [f"weights=none|{small['weights']}", 'trained=3|all'], dict(arch='squeezenet1_1', size=64, epochs=1), trials=8, log=lambda line: None)
    refused = [r for r in rows if r.state == 'failed']
    assert refused and all('would freeze noise' in r.reason and r.settings == dict(weights='none', trained='3') for r in refused)
    assert any(r.state == 'finished' for r in rows)


# -- what follows from what --

def test_the_seed_decides_what_is_tried(samples, tmp_path, made_up):
    for out, seed in (('a', 0), ('b', 0), ('c', 1)): tune(samples, tmp_path/out, SPACE, dict(seed=seed), trials=8, log=lambda line: None)
    a, b, c = made_up[:8], made_up[8:16], made_up[16:]
    assert a == b and a[0] == c[0] and not {d['lr'] for d in a[1:]} & {d['lr'] for d in c[1:]}


def test_a_study_in_two_calls_is_the_study_in_one(samples, tmp_path, made_up):
    one = tune(samples, tmp_path/'one', SPACE, trials=10, log=lambda line: None)
    for n in (3, 10): two = tune(samples, tmp_path/'two', SPACE, trials=n, log=lambda line: None)
    assert told(one) == told(two) and len({r.settings['lr'] for r in one}) == 10


def test_the_same_settings_are_not_trained_twice(samples, tmp_path, made_up):
    rows = tune(samples, tmp_path, ['lr=1e-3|2e-3', 'batch_size=32|64'], trials=12, log=lambda line: None)
    assert len(rows) == 12 and len(made_up) == len({tuple(d.items()) for d in made_up}) <= 4
    again = [r for r in rows if r.reason]
    assert len(again) == 12 - len(made_up) and all(r.reason.startswith('the same settings as trial') for r in again)


def test_time_is_looked_at_between_trials(samples, tmp_path, made_up, monkeypatch):
    now = [0.]
    monkeypatch.setattr(tune_module.time, 'time', lambda: now.__setitem__(0, now[0] + 20) or now[0])
    rows = tune(samples, tmp_path, SPACE, trials=20, minutes=3, log=lambda line: None)
    assert 1 <= len(rows) < 20


@pytest.mark.parametrize('change, says', [(dict(space=['lr=5e-4..5e-2']), 'another space'), (dict(settings=dict(size=96)), 'another settings'), (dict(objective='mae'), 'another objective'),
                                          (dict(samples=1), 'another photos')])
def test_a_study_of_something_else_is_not_gone_on_with(change, says, samples, tmp_path, made_up):
    given = dict(samples=samples, out=tmp_path, space=['lr=5e-4..5e-3'], trials=1, log=lambda line: None)
    tune(**given)
    if 'samples' in change: change = dict(samples=[s for s in samples if s.id != samples[0].id])
    with pytest.raises(ConfigError, match=says): tune(**{**given, **change})


def test_without_optuna_it_says_what_to_install(monkeypatch):
    from bin_counter.trials import import_optuna
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(ConfigError, match=r"pip install 'bin_counter\[train,tune\]'"): import_optuna()


# -- figures of searches that were not much --

def row(n, state='finished', value=1.5, **settings): return TrialRow(n, state, value, 1, 1., settings or dict(lr=1e-3*(n + 1), arch='a'), curve={} if value is None else {10: value})


@pytest.mark.parametrize('rows, names', [
    ([row(0)], 3), ([row(n) for n in range(9)], 3), ([row(0), row(1, 'failed', None), row(2, 'pruned', 9.)], 3),
    ([row(n, 'finished' if n < 5 else 'pruned', 1 + n/10, lr=1e-3*(n + 1), arch='ab'[n % 2]) for n in range(9)], 4)], ids=['one', 'alike', 'each', 'nine'])
@pytest.mark.parametrize('objective', ['calibrated_loss', 'accuracy'])
def test_any_search_can_be_drawn(rows, names, objective, tmp_path):
    space = [Dimension('lr', low=1e-4, high=1e-1), Dimension('arch', ('a', 'b'))]
    assert len(write_figures(rows, space, objective, tmp_path)) == names == len(list(tmp_path.glob('*.svg')))


# -- the command --

def test_the_last_line_of_the_command_is_the_run(bins, small, tmp_path, capsys, monkeypatch):
    space = ['lr=5e-4..5e-3', 'mixup=0..0.5', *(f'{k}={small[k]}' for k in ('size', 'epochs', 'batch_size', 'trained'))]
    argv = ['--data', bins, '--out', tmp_path/'tuned', '--arch', small['arch'], '--weights', small['weights'], '--trials', 2, '--seed', 3, '--balance', 'weights', '--objective', 'mae', '--space', *space]
    monkeypatch.setattr(sys, 'argv', ['bin_tune', *map(str, argv)])
    assert cli.bin_tune() == 0
    out = capsys.readouterr().out
    assert '2 trials: 2 finished' in out
    line = shlex.split(out.strip().splitlines()[-1].removeprefix('next: '))
    monkeypatch.setattr(sys, 'argv', line)
    assert line[0] == 'bin_run' and cli.bin_run() == 0
    capsys.readouterr()
    config, best = read_json(tmp_path/'tuned/run/card.json')['training']['config'], read_json(tmp_path/'tuned/best.json')
    assert {k: config[k] for k in best} == best and config['monitor'] == 'mae' and config['seed'] == 3
    assert (tmp_path/'tuned/run/splits.csv').read_bytes() == (tmp_path/'tuned/splits.csv').read_bytes()
    assert cli.bin_tune(data=str(bins), out=str(tmp_path/'tuned'), arch=small['arch'], weights=small['weights'], trials=2, seed=3, balance='weights', objective='mae', space=space) is None
    out = capsys.readouterr().out
    assert '[split] done before' in out and 'going on: 2 trials are there' in out and 'trial 0:' not in out


@pytest.mark.parametrize('argv, says', [(['--trials', '0'], 'ask for at least 1'), (['--minutes', '0'], 'give a time above 0'), (['--objective', 'f1'], 'choose calibrated_loss'),
                                        (['--ratios', '70/20'], 'ratios'), (['--space', 'lr=1'], 'nothing to search')])
def test_bad_options_end_in_one_line_before_anything_is_done(argv, says, bins, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['bin_tune', '--data', str(bins), '--out', str(tmp_path/'out'), *argv])
    assert cli.bin_tune() == 1
    err = capsys.readouterr().err.strip()
    assert says in err and err.startswith('bin_tune: ') and '\n' not in err and not (tmp_path/'out').exists()
