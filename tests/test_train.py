"Training under kill -9, full disks and unreadable photos; the container's entry point in both layouts."
import errno, json, os, shutil, signal, subprocess, sys

import numpy as np
import pytest
import torch

from bin_counter.core import DataError, Preprocess, read_csv
from bin_counter.model import preprocess_file
from bin_counter.net import load_model
from bin_counter.splits import SplitRow, write_channels
from bin_counter.train import CacheLoader, build_cache, main, preset_config, read_samples, soft_targets, train


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A weights file as torchvision would write it, with random values"
    from bin_counter.net import torchvision
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights')/'squeezenet1_1.pth'
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return path


def hps(weights, **changes): return dict(arch='squeezenet1_1', weights=str(weights), size=64, epochs=5, batch_size=32, trained='3', augment='flip', **changes)


def environment(bins, split, out, hps):
    return dict(SM_CHANNEL_DATA=str(bins), SM_CHANNEL_SPLITS=str(split), SM_MODEL_DIR=str(out/'model'), SM_OUTPUT_DATA_DIR=str(out/'output'),
                SM_CHECKPOINT_DIR=str(out/'checkpoints'), SM_HPS=json.dumps(hps))


def start(env, kill=''):
    "Run the container's entry point in a process of its own; `kill` is code that makes it kill -9 itself at a chosen moment"
    code = f'import os; from bin_counter import cache, core, train\n{kill}\ntrain.main()'
    return subprocess.run([sys.executable, '-c', code], env={**os.environ, **env, 'BIN_COUNTER_PROGRESS': '0'}, capture_output=True, text=True, timeout=300)


def at_call(where, name, n):
    "Code that kills the process at the n-th call of `where.name`, before the call"
    return (f'calls, old = [], {where}.{name}\n'
            f'def counted(*a, **k):\n'
            f'    calls.append(1)\n'
            f'    if len(calls) == {n}: os.kill(os.getpid(), 9)\n'
            f'    return old(*a, **k)\n'
            f'{where}.{name} = counted')


# while photos are read; in the middle of an epoch; while a checkpoint is renamed; in the middle of a later epoch; after a batch of validation
KILLS = [at_call('cache', 'to_square', 50), at_call('train.KeepRun', 'after_batch', 2), at_call('core.os', 'replace', 2), at_call('train.KeepRun', 'after_batch', 5),
         at_call('train.KeepRun', '_write_history', 2)]


@pytest.mark.parametrize('kind', ['cached', 'everything'])
def test_a_run_killed_again_and_again_ends_where_an_unbroken_one_does(kind, bins, split, weights, tmp_path):
    "kill -9 while photos are read, between epochs and in the middle of one; same weights, predictions and history at the end"
    settings = {**hps(weights), 'members': 2, 'epochs': 3} if kind == 'cached' else {**hps('none'), 'trained': 'all', 'augment': 'light', 'members': 1}
    whole, broken = tmp_path/'whole', tmp_path/'broken'
    assert start(environment(bins, split, whole, settings)).returncode == 0
    for kill in KILLS:
        assert start(environment(bins, split, broken, settings), kill).returncode == -signal.SIGKILL
        assert not (broken/'model').exists()
    last = start(environment(bins, split, broken, settings))
    assert last.returncode == 0 and 'resuming after epoch' in last.stdout, last.stderr
    assert not list(broken.rglob('*.part'))
    (a, card_a), (b, card_b) = load_model(whole/'model'), load_model(broken/'model')
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values()): assert torch.equal(x, y), name
    assert card_a == card_b
    assert (whole/'output/predictions.csv').read_bytes() == (broken/'output/predictions.csv').read_bytes()
    drop = lambda rows: [{k: v for k, v in r.items() if k != 'seconds'} for r in rows]
    assert drop(read_csv(whole/'output/history.csv')) == drop(read_csv(broken/'output/history.csv'))


def test_other_settings_do_not_resume_an_old_checkpoint(bins, split, weights, tmp_path):
    samples, lines = read_samples(split/'splits.csv', bins), []
    for epochs in (1, 2):
        train(samples, preset_config('best', **{**hps(weights), 'epochs': epochs}), tmp_path, log=lines.append)
    assert not any('resuming' in l for l in lines) and len(read_csv(tmp_path/'history.csv')) == 2


def test_both_layouts_of_a_container_train_the_same_model(bins, split, weights, tmp_path):
    "Channels with class folders, as SageMaker mounts them, against splits.csv with one folder of photos"
    settings = {**hps(weights), 'epochs': 1}
    main(environment(bins, split, tmp_path/'a', settings))
    rows = [SplitRow(s.id, s.label, s.group, s.part) for s in read_samples(split/'splits.csv', bins)]
    channels = write_channels(rows, bins, tmp_path/'channels')
    env = {f'SM_CHANNEL_{part.upper()}': str(folder) for part, folder in channels.items()}
    main({**env, 'SM_MODEL_DIR': str(tmp_path/'b/model'), 'SM_OUTPUT_DATA_DIR': str(tmp_path/'b/output'), 'SM_CHECKPOINT_DIR': str(tmp_path/'b/c'),
          'SM_HPS': json.dumps({**settings, 'sagemaker_program': 'train.py'})})
    a, b = (read_csv(tmp_path/x/'output/predictions.csv') for x in 'ab')
    assert sorted(a, key=lambda r: r['id']) == sorted(b, key=lambda r: r['id'])


def test_unreadable_photos_are_left_out_counted_and_listed(bins, split, weights, tmp_path):
    shutil.copytree(bins, tmp_path/'bins')
    samples = read_samples(split/'splits.csv', tmp_path/'bins')
    spoiled = {part: next(s for s in samples if s.part == part) for part in ('train', 'valid', 'test')}
    spoiled['train'].path.write_bytes(b'')
    spoiled['valid'].path.unlink()
    spoiled['test'].path.write_bytes(spoiled['test'].path.read_bytes()[:2000])
    lines = []
    train(read_samples(split/'splits.csv', tmp_path/'bins'), preset_config('best', **{**hps(weights), 'epochs': 1}), tmp_path/'run', log=lines.append)
    assert any(l.startswith('3 photos could not be read') for l in lines)
    listed = {r['id']: r['reason'] for r in read_csv(tmp_path/'run/skipped.csv')}
    assert {s.id for s in spoiled.values()} == set(listed)
    assert 'empty' in listed[spoiled['train'].id] and 'no such file' in listed[spoiled['valid'].id] and 'cut short' in listed[spoiled['test'].id]
    predicted = {r['id'] for r in read_csv(tmp_path/'run/predictions.csv')}
    assert not predicted & set(listed) and len(predicted) == sum(s.part != 'train' for s in samples) - 2


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(bins, split, weights, tmp_path, monkeypatch):
    samples, config = read_samples(split/'splits.csv', bins), preset_config('best', **{**hps(weights), 'epochs': 3})
    real, writes = torch.save, []

    def full(obj, f):
        writes.append(1)
        if len(writes) == 3:
            f.write(b'half of it')
            raise OSError(errno.ENOSPC, 'No space left on device')
        real(obj, f)
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(DataError, match='the disk is full: free some space'): train(samples, config, tmp_path, log=lambda l: None)
    monkeypatch.setattr(torch, 'save', real)
    assert not list(tmp_path.rglob('*.part'))
    lines = []
    train(samples, config, tmp_path, log=lines.append)
    assert 'resuming after epoch 2 of 3' in lines


def test_a_cache_larger_than_the_disk_is_refused_before_it_is_begun(bins, split, tmp_path, monkeypatch):
    samples = read_samples(split/'splits.csv', bins)
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(DataError, match='the cache needs .* GB and .* free'): build_cache(samples, Preprocess(size=64), None, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('fit', ['squash', 'pad'])
def test_training_sees_what_serving_sees(fit, bins, split, tmp_path):
    "The validation batches of the loader equal the one preprocessing, exactly"
    samples, prep = [s for s in read_samples(split/'splits.csv', bins) if s.part == 'valid'], Preprocess(80, fit)
    cache = build_cache(samples, prep, None, tmp_path)
    loader = CacheLoader(cache, range(len(samples)), soft_targets([0]*len(samples), 5), prep, False, bs=7)
    seen = torch.cat([x for x, _ in loader]).numpy()
    np.testing.assert_array_equal(seen, np.stack([preprocess_file(s.path, prep) for s in samples]))


@pytest.mark.parametrize('arch, trained', [('resnet18', 'head'), ('resnet18', '2'), ('mobilenet_v2', 'upper'), ('convnext_tiny', 'upper'), ('mobilenet_v3_small', 'all'),
                                           ('resnet10t', 'head'), ('resnet10t', '1'), ('test_vit', 'upper')])
def test_every_kind_of_body_trains_and_ships(arch, trained, bins, split, tmp_path):
    "torchvision and timm, convolutional and transformer; the frozen part stays as it was"
    from bin_counter.net import build_net
    from bin_counter.core import ModelCard
    size = 160 if arch == 'test_vit' else 64
    torch.manual_seed(1)
    body = build_net(ModelCard(arch))
    body.train()(torch.randn(16, 3, size, size)), body.eval() # statistics as after training: identity ones would mean folded weights
    torch.save(body.state_dict(), tmp_path/'w.pth')
    config = preset_config('best', arch=arch, weights=str(tmp_path/'w.pth'), trained=trained, size=size, epochs=1, batch_size=32, members=1, views=('plain',))
    samples = [s for i, s in enumerate(read_samples(split/'splits.csv', bins)) if i < 70]
    train(samples, config, tmp_path/'run', log=lambda l: None)
    net, card = load_model(tmp_path/'run')
    before, after = body.state_dict(), net.state_dict()
    changed = [k for k in before if k.startswith('body.') and k.endswith('weight') and not torch.equal(before[k], after[k])]
    total = [k for k in before if k.startswith('body.') and k.endswith('weight')]
    assert (not changed) if trained == 'head' else changed
    if trained not in ('head', 'all'): assert len(changed) < len(total), 'the lower part should not have moved'
    parent = lambda k: k.rsplit('.', 2)[0]
    moved = set(map(parent, changed))
    stats = {parent(k) for k in before if k.endswith('running_mean') and not torch.equal(before[k], after[k])}
    assert stats <= moved, 'batch norms of the frozen part should keep their statistics'
    if trained == 'all': assert len(changed) > .9*len(total)


@pytest.mark.parametrize('weights, arch, why', [('missing.pth', 'resnet18', 'missing'), ('imagenet', 'resnet18', 'cannot be downloaded'), ('imagenet', 'resnet10t', 'cannot be downloaded'),
                                                ('none', 'resnet19x', 'is unknown')])
def test_weights_that_cannot_be_had_are_one_line(weights, arch, why, tmp_path, monkeypatch):
    from bin_counter.core import ModelCard, ModelError
    from bin_counter.net import pretrained_net
    for name in ('HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'http_proxy'): monkeypatch.setenv(name, 'http://127.0.0.1:9')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True) # its retries take a minute
    with pytest.raises(ModelError, match=why) as e: pretrained_net(ModelCard(arch), weights)
    assert '\n' not in str(e.value)


def test_a_weights_file_cannot_run_code(tmp_path):
    from bin_counter.core import ModelError
    from bin_counter.net import load_state

    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/ran',)
    torch.save(dict(w=Evil()), tmp_path/'evil.pth')
    with pytest.raises(ModelError, match='not a file of plain weights'): load_state(tmp_path/'evil.pth')
    assert not (tmp_path/'ran').exists()


def test_training_again_from_own_weights_keeps_their_conventions(bins, split, tmp_path):
    "Folded weights of a MobileNet want Keras' scaling and padding, in their own file too"
    from bin_counter.net import build_net, pretrained_net
    from bin_counter.core import ModelCard
    torch.manual_seed(2)
    state = {k: v for k, v in build_net(ModelCard('mobilenet_v2')).state_dict().items()}
    torch.save(state, tmp_path/'model.pth') # identity statistics, as folding leaves them
    net, card = pretrained_net(ModelCard('mobilenet_v2'), str(tmp_path/'model.pth'))
    assert card.net['norm'] == 'still' and card.net['padding'] == 'right' and card.preprocess.mean == (.5, .5, .5)
    assert any(type(m).__name__ == 'RightPadConv2d' for m in net.modules())


def test_a_loss_that_is_no_number_ends_in_one_line(bins, split, tmp_path):
    from bin_counter.core import BinCounterError
    config = preset_config('best', arch='squeezenet1_1', weights='none', size=64, epochs=1, batch_size=16, lr=10., schedule='constant', precision='fp32')
    with pytest.raises(BinCounterError, match='is no number in step 1 of epoch 1'): train(_poisoned(read_samples(split/'splits.csv', bins)), config, tmp_path/'run', log=lambda l: None)


def _poisoned(samples):
    "Weights so large that the loss overflows"
    from dataclasses import replace
    return [replace(s, weight=3e38) for s in samples]


def test_photos_of_other_counts_teach_and_are_never_answered(bins, split, tmp_path):
    "Wider while it trains, and narrow in what ships; they change the weights, and no prediction is written for them"
    from dataclasses import replace
    from bin_counter.net import load_state
    samples = read_samples(split/'splits.csv', bins)
    moved = [replace(s, part='extra', label=s.label + 5) if s.part == 'train' and i % 3 == 0 else s for i, s in enumerate(samples)]
    heads = {}
    for others in ('use', 'leave'):
        config = preset_config('best', arch='squeezenet1_1', weights='none', size=64, epochs=1, batch_size=16, others=others)
        card = train(moved, config, tmp_path/others, log=lambda l: None)
        heads[others] = load_state(tmp_path/others/'model.pth')
        rows = read_csv(tmp_path/others/'predictions.csv')
        assert len(card.counts) == 5 and {r['part'] for r in rows} == {'valid', 'test'} and {int(r['count']) for r in rows} <= set(range(1, 6))
    assert all(heads['use'][k].shape == heads['leave'][k].shape for k in heads['leave'])
    assert any(not torch.equal(heads['use'][k], heads['leave'][k]) for k in heads['leave'])


def test_an_ensemble_is_the_mean_of_its_members(bins, split, weights, tmp_path):
    "Each member alone, trained with its own seed, averaged by hand"
    from bin_counter.train import _member_seed
    samples = [s for i, s in enumerate(read_samples(split/'splits.csv', bins)) if i < 60]
    config = preset_config('best', **{**hps(weights), 'epochs': 1, 'precision': 'fp32'}, members=2, later_size=1.)
    from dataclasses import replace
    nets = {}
    for name, c in (('both', config), ('first', replace(config, members=1)), ('second', replace(config, members=1, seed=_member_seed(config.seed, 1)))):
        train(samples, c, tmp_path/name, log=lambda l: None)
        nets[name] = load_model(tmp_path/name)[0]
    x = torch.randn(4, 3, 64, 64)
    with torch.inference_mode(): torch.testing.assert_close(nets['both'](x), (nets['first'](x) + nets['second'](x))/2, rtol=1e-4, atol=1e-5)
    assert (tmp_path/'both/history2.csv').exists() and len(list((tmp_path/'both/checkpoints').iterdir())) == 2


@pytest.mark.parametrize('changes, later', [({}, dict(side=32, cut=5)), (dict(later_size=1.), dict(cut=5)), (dict(later_trained='upper'), dict(side=32)), (dict(trained='all'), dict(side=32)),
                                            (dict(later_size=1., later_trained='upper'), None)])
def test_later_members_see_what_their_settings_say(changes, later, bins, split, weights, tmp_path):
    "Smaller squares, more blocks: trained, saved, loaded, exported, and asked through the package"
    from bin_counter.cache import photo_squares
    from bin_counter.model import normalise
    from bin_counter.package import Package, build_package, photo_heat
    samples = [s for i, s in enumerate(read_samples(split/'splits.csv', bins)) if i < 60]
    config = preset_config('best', **{**hps(weights), 'trained': 'upper', 'later_trained': 'most', 'epochs': 1, 'precision': 'fp32', 'members': 3 if later is None else 2, **changes})
    train(samples, config, tmp_path, log=lambda l: None)
    net, card = load_model(tmp_path)
    assert card.net.get('later') == later and card.net['members'] == config.members and card.preprocess.size == 64
    x = torch.from_numpy(normalise(next(photo_squares(samples[:4], card.preprocess))[1], card.preprocess))
    with torch.inference_mode():
        each = net.each(x)
        torch.testing.assert_close(net(x), torch.stack(each).mean(0))
        assert len({tuple(z.flatten().tolist()) for z in each}) == config.members
        if later and 'side' in later: # a member that sees small squares is asked about photos that were small before
            small = torch.nn.functional.interpolate(x, size=(32, 32), mode='bilinear', antialias=True)
            torch.testing.assert_close(each[1], net.later.tails[0](net.later.front[1:](small)))
    if not later or 'side' not in later: return # what ships like any other network
    build_package(tmp_path, tmp_path/'model.tar.gz')
    package = Package.load(tmp_path/'model.tar.gz')
    with torch.inference_mode(): want = ((net(x) + net(x.flip(-1)))/2/card.temperature).softmax(-1).numpy()
    np.testing.assert_allclose(package.probs(x.numpy()), want, atol=1e-4)
    assert photo_heat(package, x[0].numpy(), 0).shape == (3, 3)


def test_other_later_members_leave_the_first_alone(bins, split, weights, tmp_path):
    "A first network that is trained is not trained again because later ones change"
    samples, said = [s for i, s in enumerate(read_samples(split/'splits.csv', bins)) if i < 60], []
    settings = {**hps(weights), 'epochs': 1, 'precision': 'fp32'}
    for changes in (dict(members=1), dict(members=2), dict(members=2, later_size=1.), dict(members=2, later_trained='upper')):
        train(samples, preset_config('best', **settings, **changes), tmp_path, log=said.append, tidy=False)
    assert sum(l.startswith('resuming after epoch 1 of 1') for l in said) == 3 and len(list((tmp_path/'checkpoints').iterdir())) == 4


def test_a_transformer_keeps_its_size(bins, split, tmp_path):
    "timm bodies take the size they were made for: later members differ by their seeds, and by what they train"
    from bin_counter.core import ModelCard
    from bin_counter.net import build_net
    torch.save(build_net(ModelCard('test_vit')).state_dict(), tmp_path/'w.pth')
    samples = [s for i, s in enumerate(read_samples(split/'splits.csv', bins)) if i < 60]
    train(samples, preset_config('best', arch='test_vit', weights=str(tmp_path/'w.pth'), size=160, epochs=1, batch_size=32), tmp_path/'run', log=lambda l: None)
    net, card = load_model(tmp_path/'run')
    assert card.net['members'] == 2 and 'later' not in card.net


def test_too_many_blocks_of_a_later_member_are_refused_before_the_first_is_trained(bins, split, weights, tmp_path):
    from bin_counter.core import ConfigError
    config = preset_config('best', **hps(weights), later_trained='30')
    with pytest.raises(ConfigError, match='30 blocks are to be trained, and squeezenet1_1 has 13'): train(read_samples(split/'splits.csv', bins), config, tmp_path, log=lambda l: None)
    assert not (tmp_path/'checkpoints').exists()
