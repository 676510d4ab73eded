"Spot instances: SIGTERM ends the batch at hand, kill -9 anything, and the same command ends where an unbroken run does, to the last bit."
import json, os, random, signal, subprocess, sys, time
from dataclasses import asdict

import pytest
import torch

from fastai.callback.core import Callback

from bin_counter.cache import Sample, read_samples
from bin_counter.core import ModelCard, read_csv
from bin_counter.hosts import Interrupted, World, listening
from bin_counter.net import load_model
from bin_counter.train import preset_config, run_key, run_main, train

from worlds import Ranks

SLOW = os.environ.get('BIN_COUNTER_SLOW') == '1'
SEEDS = range(20 if SLOW else 3)
STEPS, EPOCHS = 4, 3 # of the runs below


class At(Callback):
    "Do something after a step of training or of validation"
    def __init__(self, epoch, step, func, validating=False): self.at, self.func, self.validating, self.order = (epoch, step), func, validating, 65
    def after_batch(self):
        if self.training != self.validating and (self.epoch, self.iter) == self.at: self.func()


class Quit(BaseException): "What a kill looks like from inside"


def settings(**changes):
    "Everything that is random or has a state: mixup, dropout, augmentation, running mean, batch norm, a schedule of momentum and rates"
    return preset_config('best', **{**dict(arch='squeezenet1_1', weights='none', size=64, epochs=EPOCHS, batch_size=16, mixup=.3, average=.9, dropout=.2, augment='light', checkpoint_minutes=0.), **changes})


@pytest.fixture(scope='module')
def samples(bins, split):
    "64 training photos and more, so that an epoch has four steps"
    all_parts = read_samples(split/'splits.csv', bins)
    chosen = [s for s in all_parts if s.part == 'train'][:64] + [s for s in all_parts if s.part != 'train'][:24]
    assert sum(s.part == 'train' for s in chosen) == 16*STEPS
    return chosen


@pytest.fixture(scope='module')
def whole(samples, tmp_path_factory):
    "The unbroken run"
    out = tmp_path_factory.mktemp('whole')
    train(samples, settings(), out, log=lambda line: None)
    return out


def run(samples, out, cbs=(), config=None):
    "Train under SIGTERM's handler; the lines of the log"
    lines, world = [], World()
    with listening(world.stop): train(samples, config or settings(), out, log=lines.append, world=world, cbs=cbs)
    return lines


def assert_same(a, b):
    "The same weights to the last bit, the same predictions and history"
    x, y = (load_model(d)[0].state_dict() for d in (a, b))
    for name in x: assert torch.equal(x[name], y[name]), name
    assert (a/'predictions.csv').read_bytes() == (b/'predictions.csv').read_bytes()
    rows = [[{k: v for k, v in r.items() if k != 'seconds'} for r in read_csv(d/'history.csv')] for d in (a, b)]
    assert rows[0] == rows[1] and len(rows[0]) == EPOCHS


def terminate(): os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize('seed', SEEDS)
def test_interrupted_at_random_steps_it_ends_where_an_unbroken_run_does(seed, samples, whole, tmp_path):
    "By SIGTERM and by a kill in turn, twice a run; a kill loses the steps since the checkpoint before, and no more"
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(1, EPOCHS*STEPS), 2))
    for n, moment in enumerate(moments):
        epoch, step = divmod(moment, STEPS)
        if (n + seed) % 2 == 0:
            with pytest.raises(Interrupted, match=f'interrupted after step {step + 1} of epoch {epoch + 1}: .*the same command goes on from there'): run(samples, tmp_path, [At(epoch, step, terminate)])
        else:
            def die(): raise Quit
            with pytest.raises(Quit): run(samples, tmp_path, [At(epoch, step, die)], settings(checkpoint_minutes=1e-9)) # a checkpoint after each step
        saved = torch.load(next((tmp_path/'checkpoints').glob('*.pth')), weights_only=True)
        reached = (saved['state']['epoch'] + 1)*STEPS + saved.get('begun', {}).get('done', 0)
        assert reached == moment + ((n + seed) % 2 == 0)
        assert not (tmp_path/'model.pth').exists()
    lines = run(samples, tmp_path)
    epoch = saved['state']['epoch'] + 1
    assert lines[1] == (f"resuming after step {saved['begun']['done']} of epoch {epoch + 1} of {EPOCHS}" if 'begun' in saved else f'resuming after epoch {epoch} of {EPOCHS}')
    assert_same(whole, tmp_path)


@pytest.mark.parametrize('epoch, step', [(1, 0), (EPOCHS - 1, 0)])
def test_interrupted_in_validation_it_judges_the_epoch_again(epoch, step, samples, whole, tmp_path):
    "The weights that go on are those that are trained, and not their mean, which is in place while an epoch is judged"
    with pytest.raises(Interrupted, match=f'after step {STEPS} of epoch {epoch + 1}'): run(samples, tmp_path, [At(epoch, step, terminate, validating=True)])
    assert f'resuming after step {STEPS} of epoch {epoch + 1} of {EPOCHS}' in run(samples, tmp_path)
    assert_same(whole, tmp_path)


def test_a_schedule_with_constant_rates_and_a_cached_front_is_taken_up(samples, tmp_path):
    "Two rates, views drawn from the cache, two members: the second is interrupted, the first is not trained again"
    from bin_counter.net import torchvision
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path/'w.pth')
    config = settings(weights=str(tmp_path/'w.pth'), trained='3', augment='flip', schedule='constant', members=2, body_lr=.1)
    train(samples, config, tmp_path/'whole', log=lambda line: None)
    seen = []
    class Second(At):
        def after_fit(self): seen.append(1)
        def after_batch(self):
            if seen: super().after_batch()
    with pytest.raises(Interrupted): run(samples, tmp_path/'broken', [Second(1, 1, terminate)], config)
    lines = run(samples, tmp_path/'broken', (), config)
    assert [l for l in lines if l.startswith('resuming')] == [f'resuming after epoch {EPOCHS} of {EPOCHS}', f'resuming after step 2 of epoch 2 of {EPOCHS}']
    assert_same(tmp_path/'whole', tmp_path/'broken')
    assert (tmp_path/'whole/history2.csv').exists()


# ---- the process

def environment(bins, split, out, **changes):
    hps = {k: v for k, v in asdict(settings(**changes)).items() if k != 'views'}
    return dict(SM_CHANNEL_DATA=str(bins), SM_CHANNEL_SPLITS=str(split), SM_MODEL_DIR=str(out/'model'), SM_OUTPUT_DATA_DIR=str(out/'output'),
                SM_CHECKPOINT_DIR=str(out/'checkpoints'), SM_FAILURE_FILE=str(out/'failure'), SM_HPS=json.dumps(hps))


def container(when='', signal_number=signal.SIGTERM, step=0):
    "The entry point, which signals itself in the `step`-th call of a function"
    import bin_counter.cache, bin_counter.train
    if when:
        where, name = {'reading': (bin_counter.cache, 'to_square'), 'training': (bin_counter.train.WeightAverage, 'after_step')}[when]
        calls, old = [], getattr(where, name)
        def counted(*args, **kwargs):
            calls.append(1)
            if len(calls) == step: os.kill(os.getpid(), signal_number)
            return old(*args, **kwargs)
        setattr(where, name, counted)
    sys.exit(run_main())


def end(folder, env, *args, size=1):
    "Exit statuses of the entry point's ranks, and what rank 0 printed"
    ranks = Ranks(folder/f'log{time.monotonic_ns()}', container, args, size, env)
    return ranks.wait(), ranks.text(0), ranks.text(0, 'err')


def test_the_process_says_how_it_ended(bins, split, tmp_path):
    "143 and one line after SIGTERM, wherever it came, and no reason of a failure; kill -9 in an epoch loses what came after the checkpoint"
    env = environment(bins, split, tmp_path/'spot', checkpoint_minutes=1e-9)
    for args, says in ((('reading', signal.SIGTERM, 5), 'interrupted while reading photos'), (('training', signal.SIGTERM, 2), 'interrupted after step 3 of epoch 1'), # the kill below lost the second step
                       (('reading', signal.SIGTERM, 5), 'interrupted while predicting photos')):
        status, out, err = end(tmp_path, env, *args)
        assert status == [143], err
        assert err.startswith(says) and err.endswith('the same command goes on from there\n') and err.count('\n') == 1
        if says.endswith('reading photos'): # and before the next signal, what nobody can catch
            assert end(tmp_path, env, 'training', signal.SIGKILL, 2)[0] == [-signal.SIGKILL]
    assert not (tmp_path/'spot/model').exists() and not (tmp_path/'spot/failure').exists()
    status, out, err = end(tmp_path, env)
    assert status == [0] and f'resuming after epoch {EPOCHS} of {EPOCHS}' in out, err
    status, out, err = end(tmp_path, environment(bins, split, tmp_path/'whole'))
    assert status == [0] and 'resuming' not in out
    a, b = (load_model(tmp_path/d/'model')[0].state_dict() for d in ('spot', 'whole'))
    for name in a: assert torch.equal(a[name], b[name]), name
    assert sorted(p.name for p in (tmp_path/'spot/model').iterdir()) == ['card.json', 'model.pth'], 'checkpoints are not among what becomes the model'


def test_two_ranks_stop_together_and_go_on_together(bins, split, tmp_path):
    "One rank hears the signal; both end the same step, and the two that go on end where two unbroken ones do"
    seed = 0
    step = random.Random(seed).randrange(1, 3*EPOCHS)
    def only_rank(rank): return ('training', signal.SIGTERM, step) if rank == 1 else ()
    env = environment(bins, split, tmp_path/'spot', checkpoint_minutes=1e-9) # by rank 0's clock, after each step
    ranks = Ranks(tmp_path/'stop', container, only_rank, 2, env)
    assert ranks.wait() == [143, 143], ranks.all_text()
    assert ranks.text(0, 'err') == ranks.text(1, 'err') and 'the checkpoint is written' in ranks.text(0, 'err')
    saved = torch.load(next((tmp_path/'spot/checkpoints/checkpoints').glob('*.pth')), weights_only=True)
    first, second = (r['random']['torch'] for r in saved['begun']['ranks'])
    assert not torch.equal(first, second), 'each rank has random numbers of its own'
    status, out, err = end(tmp_path, env, size=2)
    assert status == [0, 0] and 'resuming after step' in out, err
    assert end(tmp_path, environment(bins, split, tmp_path/'whole'), size=2)[0] == [0, 0]
    a, b = (load_model(tmp_path/d/'model')[0].state_dict() for d in ('spot', 'whole'))
    for name in a: assert torch.equal(a[name], b[name]), name
    assert (tmp_path/'spot/output/predictions.csv').read_bytes() == (tmp_path/'whole/output/predictions.csv').read_bytes()


@pytest.mark.skipif(not SLOW, reason='starts torchrun three times: set BIN_COUNTER_SLOW=1')
def test_torchrun_hands_the_signal_on(bins, split, tmp_path):
    "The launcher itself gets SIGTERM, as the first process of a container does"
    def launch(out, **changes):
        env = {**os.environ, **environment(bins, split, out, **changes), 'SM_HOSTS': '["algo-1"]', 'OMP_NUM_THREADS': '1'}
        return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'bin_counter.train'], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = launch(tmp_path/'spot', epochs=30)
    lines = []
    while not any(l.startswith('epoch 2/') for l in lines): lines.append(first.stdout.readline())
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
    assert sorted(l for l in lines if l.startswith('world')) == ['world size 2, rank 0 of 2\n', 'world size 2, rank 1 of 2\n']
    assert first.returncode and err.count('interrupted after step') == 2 and not (tmp_path/'spot/failure').exists()
    last = launch(tmp_path/'spot', epochs=30)
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0 and 'resuming after' in out, err
    whole = launch(tmp_path/'whole', epochs=30)
    assert whole.communicate(timeout=300) and whole.returncode == 0
    a, b = (load_model(tmp_path/d/'model')[0].state_dict() for d in ('spot', 'whole'))
    for name in a: assert torch.equal(a[name], b[name]), name


# ---- checkpoints of earlier versions

def test_checkpoints_keep_their_names():
    "Computed by the version before checkpoints within an epoch: a run of one process finds what it wrote"
    samples = [Sample(str(i), 1 + i % 5, str(i), ('train', 'valid')[i % 2], 1 + i % 3, 1. + i) for i in range(12)]
    key = run_key(preset_config('best', arch='squeezenet1_1', weights='none', seed=5, checkpoint_minutes=7.), samples, ModelCard('squeezenet1_1', net=dict(pool='mean')))
    assert key == '8d0c6ae34c7a0c0fe5cff1eeef801c1150eb3c993c3015303bef48752b84b61f'


def test_a_checkpoint_of_an_earlier_version_is_taken_up(samples, whole, tmp_path):
    "It holds no more than an epoch's end"
    def die(): raise Quit
    with pytest.raises(Quit): run(samples, tmp_path, [At(1, 0, die)])
    path = next((tmp_path/'checkpoints').glob('*.pth'))
    saved = torch.load(path, weights_only=True)
    assert set(saved) == {'key', 'model', 'opt', 'state', 'mean'} and set(saved['state']) == {'epoch', 'rows', 'best', 'best_epoch', 'stopped', 'score', 'lr'}
    assert f'resuming after epoch 1 of {EPOCHS}' in run(samples, tmp_path)
    assert_same(whole, tmp_path)
