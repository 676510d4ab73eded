"Commands as a shell runs them: exit status, one line on bad input, nothing half-written, stages that are skipped."
import csv, json, shutil, subprocess, sys

import pytest

from bin_counter import cli
from bin_counter.core import read_csv, read_json

TINY = dict(arch='squeezenet1_1', weights='none', size=64, epochs=1, batch_size=16)


def call(capsys, monkeypatch, name, *argv):
    "Run a command with an argument vector, in this process: status, stdout, stderr"
    monkeypatch.setattr(sys, 'argv', [name, *map(str, argv)])
    status = getattr(cli, name)()
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture(scope='module')
def run(bins, tmp_path_factory):
    "One small run, from photos to package"
    out = tmp_path_factory.mktemp('cli')/'run'
    cli.bin_run(data=str(bins), out=str(out), **TINY)
    return out


def test_a_run_leaves_what_it_says(run, bins):
    assert {'manifest.csv', 'quality.csv', 'splits.csv', 'leak.json', 'model.pth', 'card.json', 'history.csv', 'predictions.csv', 'metrics.json',
            'report.html', 'model.tar.gz', 'stages.json'} <= {p.name for p in run.iterdir()}
    assert read_json(run/'leak.json')['groups']['across'] == 0
    assert read_json(run/'metrics.json')['test_scored'] == 1
    assert not list(run.rglob('*.part')) and not list(bins.rglob('*.part'))


def test_stages_are_redone_only_where_their_input_changed(run, bins, capsys):
    def stages(**changes):
        cli.bin_run(data=str(bins), out=str(run), **{**TINY, **changes})
        lines = [l for l in capsys.readouterr().out.splitlines() if l.startswith('[')]
        return [l.split(']')[0][1:] for l in lines if 'done before' not in l]
    assert stages() == []
    (run/'report.html').unlink()
    assert stages() == ['evaluate']
    assert stages(lr=1e-3) == ['train', 'evaluate', 'package']
    assert stages(lr=1e-3, balance='weights') == ['split', 'train', 'evaluate', 'package']


def test_photos_keep_their_part_when_more_arrive(bins, tmp_path):
    from bin_counter.synth import draw_bins
    shutil.copytree(bins, tmp_path/'bins')
    part = lambda: {r['id']: r['part'] for r in read_csv(tmp_path/'run/splits.csv')}
    cli._index(tmp_path/'bins', tmp_path/'run')
    cli.bin_split(out=str(tmp_path/'run'), data=None)
    before = part()
    draw_bins(200, tmp_path/'bins', seed=5, size=96)
    cli._index(tmp_path/'bins', tmp_path/'run')
    cli.bin_split(out=str(tmp_path/'run'), data=None)
    after = part()
    assert len(after) > len(before) and all(after[i] == p for i, p in before.items())


def test_other_ratios_split_anew(bins, tmp_path):
    out = tmp_path/'run'
    cli._index(bins, out)
    shares = lambda: {p: sum(r['part'] == p for r in read_csv(out/'splits.csv')) for p in ('train', 'valid', 'test')}
    cli.bin_split(out=str(out), data=None)
    first = shares()
    cli.bin_split(out=str(out), data=None, ratios='40/30/30')
    assert first['train'] > .6*sum(first.values()) and shares()['train'] < .5*sum(first.values())


def test_the_licence_of_the_photos_reaches_the_card(run, bins):
    assert (bins/'LICENCE.txt').read_text().strip() == read_json(run/'card.json')['data_licence'] != ''


def test_bin_explore_draws_its_figures(bins, tmp_path):
    cli.bin_explore(data=str(bins), out=str(tmp_path/'look'))
    assert {p.name for p in (tmp_path/'look/figures').iterdir()} == {'samples.png', 'classes.svg', 'sizes.svg', 'light.svg', 'pairs.svg'}


def break_manifest(folder, change):
    "A data folder whose metadata were changed"
    for p in (folder/'metadata').iterdir():
        d = json.loads(p.read_text())
        change(p, d)
        if p.exists() and d is not None: p.write_text(json.dumps(d))


def drop(folder):
    (folder/'manifest.csv').unlink()
    return folder


@pytest.mark.parametrize('name, spoil, why', [
    ('no folder', lambda f: shutil.rmtree(f), 'no such folder'),
    ('no photos', lambda f: shutil.rmtree(drop(f)/'bin-images'), 'bin-images'),
    ('one class only', lambda f: break_manifest(drop(f), lambda p, d: d.update(EXPECTED_QUANTITY=2)), 'every photo shows 2'),
    ('an empty class', lambda f: break_manifest(drop(f), lambda p, d: d.update(EXPECTED_QUANTITY=min(4, d['EXPECTED_QUANTITY']))), 'count 5'),
    ('all labels outside', lambda f: break_manifest(drop(f), lambda p, d: d.update(EXPECTED_QUANTITY=70)), 'fewer than the 5 classes'),
    ('fewer photos than classes', lambda f: [p.unlink() for p in sorted((drop(f)/'bin-images').iterdir())[3:]], 'fewer than the 5 classes'),
    ('every photo damaged', lambda f: [p.write_bytes(b'x') for p in (drop(f)/'bin-images').iterdir()], 'photos can be used (first: 00000, '),
    ('every metadata invalid', lambda f: [p.write_text('{') for p in (drop(f)/'metadata').iterdir()], 'photos can be used (first: 00000, '),
])
def test_bad_data_ends_bin_run_in_one_line(name, spoil, why, bins, tmp_path, capsys, monkeypatch):
    shutil.copytree(bins, tmp_path/'bins')
    spoil(tmp_path/'bins')
    status, _, err = call(capsys, monkeypatch, 'bin_run', '--data', tmp_path/'bins', '--out', tmp_path/'run', *[x for k, v in TINY.items() for x in (f'--{k.replace("_", "-")}', v)])
    line = [l for l in err.splitlines() if l.startswith('bin_run: ')]
    assert status == 1 and len(line) == 1 and why in line[0] and 'Traceback' not in err
    assert not (tmp_path/'run/model.pth').exists() and not list(tmp_path.rglob('*.part'))


@pytest.mark.parametrize('argv, why', [
    (['--arch', 'resnet19x'], 'is unknown'),
    (['--preset', 'fastest'], 'choose classic or best'),
    (['--counts', 'many'], 'write them as 1-5'),
    (['--ratios', '70/20'], 'sum to 100'),
    (['--balance', 'both'], 'choose one of none'),
    (['--split', 'bin'], "choose 'group' or 'random'"),
    (['--set', 'colour=blue'], 'no such setting: colour'),
    (['--set', 'mixup'], 'write it as name=value'),
    (['--set', 'dropout=2'], 'dropout 2.0: choose'),
    (['--epochs', '0'], 'epochs 0: choose'),
    (['--where', 'moon'], '--where moon'),
    (['--weights', 'missing.pth'], 'missing'),
])
def test_bad_settings_end_bin_run_in_one_line(argv, why, bins, tmp_path, capsys, monkeypatch):
    base = [] if argv[0] in ('--weights',) else ['--weights', 'none']
    status, _, err = call(capsys, monkeypatch, 'bin_run', '--data', bins, '--out', tmp_path/'run', '--size', '64', *base, *argv)
    assert status == 1 and why in err and 'Traceback' not in err
    assert not (tmp_path/'run/model.pth').exists()


def test_bin_count_in_words_json_and_csv(run, bins, tmp_path, capsys, monkeypatch):
    package, photo = run/'model.tar.gz', bins/'bin-images/00003.jpg'
    status, out, _ = call(capsys, monkeypatch, 'bin_count', photo, '--package', package)
    assert status == 0 and 'trust' in out and str(photo) in out
    status, out, _ = call(capsys, monkeypatch, 'bin_count', photo, '--package', package, '--json', '--recorded', '2')
    answer = json.loads(out)
    assert {'count', 'probs', 'expected_count', 'interval', 'trust', 'review', 'model', 'recorded', 'p_mismatch', 'alarm'} <= set(answer)
    assert set(answer['probs']) == set('12345') and abs(sum(answer['probs'].values()) - 1) < 1e-4
    status, out, _ = call(capsys, monkeypatch, 'bin_count', bins, '--package', package, '--csv', tmp_path/'c.csv')
    rows = list(csv.DictReader(open(tmp_path/'c.csv')))
    assert status == 0 and len(rows) == 120 and list(rows[0]) == ['id', 'count', 'p1', 'p2', 'p3', 'p4', 'p5']
    row = next(r for r in rows if r['id'] == '00003')
    assert int(row['count']) == answer['count'] and abs(float(row['p1']) - answer['probs']['1']) < 1e-4


def test_bin_count_goes_on_past_a_bad_photo_and_says_so(run, bins, tmp_path, capsys, monkeypatch):
    shutil.copytree(bins/'bin-images', tmp_path/'bin-images')
    (tmp_path/'bin-images/00005.jpg').write_bytes(b'')
    package = run/'model.tar.gz'
    status, out, err = call(capsys, monkeypatch, 'bin_count', tmp_path, '--package', package, '--csv', tmp_path/'c.csv')
    assert status == 0 and '1 of 120 photos could not be counted' in err and '00005.jpg' in err and len(read_csv(tmp_path/'c.csv')) == 119
    assert call(capsys, monkeypatch, 'bin_count', tmp_path/'bin-images/00005.jpg', tmp_path/'bin-images/00006.jpg', '--package', package)[0] == 1
    for argv, why in ((['nowhere.jpg'], 'no such photo'), ([tmp_path/'bin-images/00006.jpg', '--recorded', '-1'], 'a quantity is 0 or more')):
        status, _, err = call(capsys, monkeypatch, 'bin_count', *argv, '--package', package)
        assert status == 1 and why in err and len(err.strip().splitlines()) == 1


def test_bin_count_runs_without_torch(run, bins):
    "In a process where importing torch or fastai fails"
    code = ("import sys; sys.modules['torch'] = sys.modules['fastai'] = sys.modules['torchvision'] = None; sys.argv = ['bin_count', "
            f"{str(bins/'bin-images/00001.jpg')!r}, '--package', {str(run/'model.tar.gz')!r}]; from bin_counter.cli import bin_count; sys.exit(bin_count())")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.returncode == 0 and 'trust' in out.stdout, out.stderr


def test_comparing_two_runs(run, bins, tmp_path, capsys):
    "The same run twice: no difference, and it says so"
    shutil.copytree(run, tmp_path/'second', ignore=shutil.ignore_patterns('work'))
    cli.bin_compare(first=str(run), second=str(tmp_path/'second'))
    assert 'cannot tell which is more accurate' in capsys.readouterr().out


def test_a_run_that_cannot_write_says_where(bins, tmp_path, capsys, monkeypatch):
    (tmp_path/'file').write_text('in the way')
    status, _, err = call(capsys, monkeypatch, 'bin_run', '--data', bins, '--out', tmp_path/'file', '--weights', 'none')
    assert status == 1 and 'Traceback' not in err and len(err.strip().splitlines()) == 1


def test_a_missing_extra_is_named(bins, tmp_path):
    "Where torch is not installed, training says what to install"
    code = (f"import sys; sys.modules['torch'] = None; sys.argv = ['bin_run', '--data', {str(bins)!r}, '--out', {str(tmp_path/'run')!r}]; "
            "from bin_counter.cli import bin_run; sys.exit(bin_run())")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.returncode == 1 and out.stderr.strip() == "bin_run: needs torch: pip install 'bin_counter[train]'"


def test_explain_draws_one_photo_and_refuses_others(run, bins, tmp_path, capsys, monkeypatch):
    import numpy as np
    from PIL import Image
    package, photos = run/'model.tar.gz', sorted((bins/'bin-images').iterdir())
    status, out, err = call(capsys, monkeypatch, 'bin_count', photos[0], '--package', package, '--explain', tmp_path/'why.png')
    picture = np.asarray(Image.open(tmp_path/'why.png')).astype(int)
    assert status == 0 and 'why.png' in err and 'trust' in out
    colour = np.abs(picture.max(2) - picture.min(2))
    assert colour.max() > 40, 'some place should glow'
    for argv, why in ([[photos[0], photos[1]], 'name one'], [[photos[0]], 'name a .png']):
        name = tmp_path/('other.png' if 'one' in why else 'other.gif')
        status, _, err = call(capsys, monkeypatch, 'bin_count', *argv, '--package', package, '--explain', name)
        assert status == 1 and why in err and not name.exists()


def test_an_earlier_photo_needs_its_count_and_a_counter_that_knows_pairs(run, bins, tmp_path, capsys, monkeypatch):
    "The tiny run has too few pairs to learn from; with pairs in its card, the answer changes and says what the photo alone gave"
    import io, tarfile
    from bin_counter.pairs import difference_prior
    photos = sorted((bins/'bin-images').iterdir())
    for argv, why in ([['--before', photos[0]], 'give both'], [['--before-count', '3'], 'give both'], [['--before', photos[0], '--before-count', '3'], 'learnt nothing about pairs']):
        status, _, err = call(capsys, monkeypatch, 'bin_count', photos[1], '--package', run/'model.tar.gz', *argv)
        assert status == 1 and why in err
    knows = tmp_path/'knows.tar.gz'
    with tarfile.open(run/'model.tar.gz') as old, tarfile.open(knows, 'w:gz') as new:
        for m in old:
            content = old.extractfile(m).read()
            if m.name == 'card.json':
                card = json.loads(content)
                card['calibration']['pairs'] = dict(weights=[1., 1., .5, .1], prior=difference_prior([-1]*20), pairs=50, mass=.9)
                content = json.dumps(card).encode()
            m.size = len(content)
            new.addfile(m, io.BytesIO(content))
    status, out, _ = call(capsys, monkeypatch, 'bin_count', photos[1], '--package', knows, '--json', '--before', photos[0], '--before-count', '4')
    answer = json.loads(out)
    assert status == 0 and answer['before']['count'] == 4 and answer['count'] == 3 and answer['probs'] != answer['before']['probs_alone']
    status, _, err = call(capsys, monkeypatch, 'bin_count', photos[1], '--package', knows, '--before', tmp_path/'none.jpg', '--before-count', '4')
    assert status == 1 and 'none.jpg' in err
