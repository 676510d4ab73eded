"Labels: tables that must be refused, suspects that are found, weights that change where they may, and the command."
import shutil, sys

import numpy as np
import pytest
from PIL import Image

from bin_counter import cli
from bin_counter.core import ConfigError, Counts, DataError, read_csv, write_csv
from bin_counter.labels import SCORES, SUSPECT_COLUMNS, HeldOut, Suspect, down_weight, find_suspects, format_suspects, plot_suspects, read_held_out, read_suspects, write_suspects
from bin_counter.splits import SplitRow, read_splits, write_splits


def table(path, ids, labels, probs, part='test', counts=Counts()):
    "Write predictions as a run does"
    rows = [dict(id=i, part=part, label=n, group=i, count=counts.values[int(np.argmax(p))], **{f'p{c}': f'{v:.6f}' for c, v in zip(counts.names, p)}) for i, n, p in zip(ids, labels, probs)]
    write_csv(path, rows, ['id', 'part', 'label', 'group', 'count', *(f'p{c}' for c in counts.names)])
    return path


def photos(n, seed, wrong=.08, blur=.7, counts=Counts(), by_one=False):
    "Predictions for true counts, records of which a known share is wrong"
    rng, k = np.random.default_rng(seed), len(counts)
    truth = rng.integers(0, k, n)
    bad = np.zeros(n, bool)
    bad[rng.choice(n, round(wrong*n), replace=False)] = True
    off = np.where(truth == k - 1, -1, 1) if by_one else rng.integers(1, k, n)
    recorded = np.where(bad, (truth + off) % k, truth)
    seen = truth + blur*rng.normal(size=n)
    probs = np.exp(-(np.arange(k) - seen[:, None])**2 / (2*blur**2))
    return HeldOut(tuple(f'{i:05}' for i in range(n)), tuple(counts.values[i] for i in recorded), probs/probs.sum(1, keepdims=True), counts), bad


HEAD = 'id,part,label,group,count,p1,p2,p3\n'
GOOD = '7,test,1,7,1,.8,.1,.1\n'

@pytest.mark.parametrize('text, why', [
    (HEAD, 'holds no photo'), (HEAD.replace('label', 'tag') + GOOD, 'has no column label'), (HEAD.replace(',p1', ',q1') + GOOD, 'do not sum to 1'),
    (HEAD.replace('p2', 'p4') + GOOD, 'are no run of counts'), (HEAD.replace('p1', 'p1+') + GOOD, 'are no run of counts'), ('id,part,label,p3\n7,test,3,1\n', 'are no run of counts'), ('id,part,label\n7,test,3\n', 'are no run of counts'),
    (HEAD + GOOD + GOOD, 'line 3: photo 7 is there twice'), (HEAD + GOOD.replace('.8', 'nan'), 'do not sum to 1'), (HEAD + GOOD.replace('.8', '.9'), 'do not sum to 1'),
    (HEAD + GOOD.replace('.8,.1', '1.1,-.2'), 'do not sum to 1'), (HEAD + GOOD.replace('.8', 'x'), 'could not convert'), (HEAD + GOOD.replace('test,1', 'test,4'), 'outside of the counts 1-3'),
    (HEAD + GOOD.replace('test,1', 'test,one'), 'line 2: photo 7'), (HEAD + GOOD.replace('test,1', 'test,0'), 'outside of the counts'), (HEAD + '7,test,1\n', 'another number of cells')])
def test_tables_that_are_refused(text, why, tmp_path):
    (tmp_path/'p.csv').write_text(text)
    with pytest.raises(DataError, match=why): read_held_out([tmp_path/'p.csv'])


def test_no_table_and_a_missing_one(tmp_path):
    with pytest.raises(DataError, match='no table'): read_held_out([])
    with pytest.raises(DataError, match='is missing: make it with bin_run'): read_held_out([tmp_path/'p.csv'])


def test_several_runs_are_averaged_and_must_agree(tmp_path):
    a = table(tmp_path/'a.csv', ['00100', '100'], [1, 2], [[.6, .2, .2, 0, 0], [0, 1, 0, 0, 0]], 'valid')
    b = table(tmp_path/'b.csv', ['00100', '7'], [1, 5], [[.2, .6, .2, 0, 0], [0, 0, 0, .5, .5]])
    held = read_held_out([a, b])
    assert held.ids == ('00100', '100', '7') and held.labels == (1, 2, 5) and held.probs[0] == pytest.approx([.4, .4, .2, 0, 0])
    with pytest.raises(DataError, match='photo 7 has a label of 5, and of 4 in'): read_held_out([a, b, table(tmp_path/'c.csv', ['7'], [4], [[.2]*5])])
    with pytest.raises(DataError, match='counts 1-3, the tables before it about 1-5'): read_held_out([a, table(tmp_path/'d.csv', ['9'], [2], [[.2, .6, .2]], counts=Counts(1, 3))])


@pytest.mark.parametrize('right, refused', [(.95, True), (.8, True), (.55, False), (.5, False), (.1, False)])
def test_photos_learnt_by_heart_are_noticed(right, refused, tmp_path):
    "300 training photos answered right this often, beside 300 others of which half were"
    def part(share, name):
        "Predictions of which a share agrees with the record"
        hits = np.arange(300) < share*300
        probs = np.where(hits[:, None], [.9, .1, 0, 0, 0], [.1, .9, 0, 0, 0])
        return table(tmp_path/f'{name}.csv', [f'{name}{i}' for i in range(300)], [1]*300, probs, name)
    paths = [part(right, 'train'), part(.5, 'test')]
    if not refused: assert len(read_held_out(paths)) == 600
    else:
        with pytest.raises(DataError, match='this counter was trained on them'): read_held_out(paths)


def test_a_few_photos_prove_nothing(tmp_path):
    "Four training photos, all right: chance"
    a = table(tmp_path/'a.csv', list('abcd'), [1]*4, [[.9, .1, 0, 0, 0]]*4, 'train')
    b = table(tmp_path/'b.csv', list('efgh'), [1]*4, [[.9, .1, 0, 0, 0]]*2 + [[.1, .9, 0, 0, 0]]*2)
    assert len(read_held_out([a, b])) == 8


@pytest.mark.parametrize('score, by_one, times', [('self_confidence', False, 8), ('normalized_margin', False, 6), ('self_confidence', True, 1.5), ('normalized_margin', True, 1.5)])
def test_suspects_hold_far_more_wrong_records_than_chance(score, by_one, times):
    "8% of the records are wrong; the first 40 of 1,000, over five draws"
    found = []
    for seed in range(5):
        held, bad = photos(1000, seed, by_one=by_one)
        found.append(np.mean([bad[int(s.id)] for s in find_suspects(held, score=score)[:40]]))
    assert np.mean(found) > times*.08


@pytest.mark.parametrize('score', SCORES)
def test_what_a_suspect_says(score):
    held, _ = photos(400, 1, counts=Counts.parse('1-6+'))
    suspects = find_suspects(held, .1, score)
    assert 0 < len(suspects) <= 40 and [s.rank for s in suspects] == list(range(1, len(suspects) + 1))
    assert [s.quality for s in suspects] == sorted(s.quality for s in suspects)
    for s in suspects:
        p = held.probs[held.ids.index(s.id)]
        assert s.suggested == held.counts.names[p.argmax()] != held.counts.names[held.counts.index(s.label)]
        assert s.p_label == pytest.approx(p[held.counts.index(s.label)], abs=1e-6)
    assert any(s.suggested == '6+' for s in suspects)
    assert suspects == find_suspects(held, .1, score)


def test_no_suspect_among_sure_and_right_answers():
    held, _ = photos(300, 0, wrong=0, blur=.05)
    assert find_suspects(held) == []
    assert format_suspects(held, []).startswith('0 of 300')


def test_counts_without_photos_do_no_harm():
    "No record shows 4 or 5, and the counter thinks of them all the same"
    held, bad = photos(500, 2)
    keep = [i for i, n in enumerate(held.labels) if n <= 3]
    some = HeldOut(tuple(held.ids[i] for i in keep), tuple(held.labels[i] for i in keep), held.probs[keep], held.counts)
    assert np.mean([bad[int(s.id)] for s in find_suspects(some)]) > .4


@pytest.mark.parametrize('n, share, most', [(1000, .05, 50), (30, .05, 1), (29, .1, 2), (10, .01, 1), (100, .07, 7)])
def test_the_share_is_a_ceiling_but_one_may_be_listed(n, share, most):
    held, _ = photos(n, 4, wrong=.5)
    assert len(find_suspects(held, share)) == most


@pytest.mark.parametrize('kw, why', [(dict(share=0), 'share 0'), (dict(share=1.1), 'share 1.1'), (dict(share=float('nan')), 'share nan'), (dict(score='margin'), 'choose self_confidence or normalized_margin')])
def test_bad_wishes(kw, why):
    with pytest.raises(ConfigError, match=why): find_suspects(photos(50, 0)[0], **kw)


def test_records_of_one_count_only():
    with pytest.raises(DataError, match='all records show one count'): find_suspects(HeldOut(('1', '2'), (3, 3), np.full((2, 5), .2), Counts()))


def test_without_cleanlab_it_says_what_to_install(monkeypatch):
    for name in ('cleanlab', 'cleanlab.filter', 'cleanlab.rank'): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match='pip install cleanlab'): find_suspects(photos(50, 0)[0])


def test_a_list_that_a_person_shortened_reads_back(tmp_path):
    suspects = find_suspects(photos(400, 0)[0])
    write_suspects(tmp_path/'s.csv', suspects)
    lines = (tmp_path/'s.csv').read_text().splitlines()
    (tmp_path/'s.csv').write_text('\ufeff' + '\n'.join(lines[:2] + lines[3:]) + '\n', encoding='utf-8')
    assert read_suspects(tmp_path/'s.csv') == suspects[:1] + suspects[2:]
    (tmp_path/'s.csv').write_text('\n'.join(lines).replace(lines[2].split(',')[3], 'bad', 1))
    with pytest.raises(DataError, match='s.csv line'): read_suspects(tmp_path/'s.csv')


def suspect(id): return Suspect(id, 1, '2', .1, .1, 1)


def test_only_training_photos_weigh_less_and_class_weights_stay():
    rows = [SplitRow('00100', 1, 'g', 'train', 2, 1.5), SplitRow('100', 1, 'g', 'train'), SplitRow('2', 2, 'g', 'valid', 1, 1.5), SplitRow('3', 3, 'h', 'test')]
    after = down_weight(rows, map(suspect, ['00100', '2', '3', '9']), .3)
    assert after[0].weight == pytest.approx(.45) and after[0].repeats == 2 and after[1:] == rows[1:]
    assert down_weight(rows, [], .3) == rows
    held = HeldOut(tuple(map(str, range(20))), (1,)*20, np.full((20, 5), .2), Counts())
    assert '1 training photos weigh less now; 2 suspects are validation or test photos, which keep their weight; 1 are not in the split' in format_suspects(held, [suspect(i) for i in ('00100', '2', '3', '9')], rows, after)
    assert 'no training photo is among them' in format_suspects(held, [suspect('2')], rows, rows)


@pytest.mark.parametrize('weight', [0, -1, 1.01, float('nan'), float('inf')])
def test_weights_that_make_no_sense(weight):
    with pytest.raises(ConfigError, match='choose above 0 and up to 1'): down_weight([], [], weight)


def test_the_sheet_shows_photos_and_says_why_not(bins):
    suspects = [suspect(i) for i in ('00001', '00002', 'none')]
    fig = plot_suspects(suspects, bins, columns=2, licence='drawn')
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 0, 0] and 'no such file' in fig.axes[2].texts[0].get_text()
    assert '00001\nrecord 1, looks like 2' == fig.axes[0].get_title() and 'not to be published. Licence of the photos: drawn.' in fig._supxlabel.get_text()
    assert len(plot_suspects(suspects, bins, most=1).axes[0].images) == 1
    for bad, why in (([], 'no suspects'), (suspects, 'has no folder bin-images')):
        with pytest.raises(DataError, match=why): plot_suspects(bad, bins/'metadata')


# the command

@pytest.fixture
def run(bins, tmp_path):
    "Predictions of all drawn bins in which three records are doubted, and a split"
    rows = read_csv(bins/'manifest.csv')
    labels = [int(r['label']) for r in rows]
    probs = np.full((len(rows), 5), .05) + .75*np.eye(5)[[n - 1 for n in labels]]
    for i in (10, 20, 30): probs[i] = np.eye(5)[labels[i] % 5]*.96 + .008
    table(tmp_path/'run/predictions.csv', [r['id'] for r in rows], labels, probs)
    write_splits(tmp_path/'run/splits.csv', [SplitRow(r['id'], n, r['group'], 'test' if i == 30 else 'train') for i, (r, n) in enumerate(zip(rows, labels))])
    return tmp_path/'run', [rows[i]['id'] for i in (10, 20, 30)]


def call(capsys, monkeypatch, *argv):
    "Run bin_labels with an argument vector, in this process: status, stdout, stderr"
    monkeypatch.setattr(sys, 'argv', ['bin_labels', *map(str, argv)])
    status = cli.bin_labels()
    out = capsys.readouterr()
    return status, out.out, out.err


def test_the_command_lists_draws_and_weighs(run, bins, tmp_path, capsys, monkeypatch):
    run, doubted = run
    before, out = (run/'splits.csv').read_bytes(), tmp_path/'labels'
    status, said, err = call(capsys, monkeypatch, '--predictions', run/'predictions.csv', '--data', bins, '--out', out, '--splits', run/'splits.csv', '--weight', '.2')
    assert status == 0 and err == '' and 'not to be published' in said and '2 training photos weigh less now; 1 suspects' in said
    assert sorted(r['id'] for r in read_csv(out/'suspects.csv', SUSPECT_COLUMNS)) == doubted
    assert {r.id: r.weight for r in read_splits(out/'splits.csv') if r.weight != 1} == dict.fromkeys(doubted[:2], .2)
    assert (run/'splits.csv').read_bytes() == before and Image.open(out/'suspects.png').width > 1000
    assert not list(tmp_path.rglob('*.part'))


def test_a_sheet_of_an_earlier_run_does_not_stay(run, bins, tmp_path, capsys, monkeypatch):
    "With nobody suspected there is a table without rows, and no sheet"
    run, _ = run
    args = ['--data', bins, '--out', tmp_path/'labels']
    call(capsys, monkeypatch, '--predictions', run/'predictions.csv', *args)
    rows = read_csv(run/'predictions.csv')
    table(run/'sure.csv', [r['id'] for r in rows], [int(r['label']) for r in rows], np.eye(5)[[int(r['label']) - 1 for r in rows]])
    status, said, _ = call(capsys, monkeypatch, '--predictions', run/'sure.csv', *args)
    assert status == 0 and '0 of 120 records are suspected' in said and read_csv(tmp_path/'labels/suspects.csv') == [] and not (tmp_path/'labels/suspects.png').exists()


@pytest.mark.parametrize('argv, why', [
    (['--predictions', 'none.csv'], 'none.csv is missing'), (['--data', 'nowhere'], 'nowhere has no folder bin-images'), (['--weight', '0'], 'weight 0'), (['--share', '2'], 'share 2'),
    (['--score', 'x'], 'choose self_confidence'), (['--splits', 'none.csv'], 'none.csv is missing'), (['--out', 'RUN'], 'holds the split itself')])
def test_bad_input_ends_in_one_line_and_writes_nothing(argv, why, run, bins, tmp_path, capsys, monkeypatch):
    run, _ = run
    before = sorted(run.iterdir())
    given = {'--predictions': run/'predictions.csv', '--data': bins, '--out': tmp_path/'labels', '--splits': run/'splits.csv'} | {argv[0]: run if argv[1] == 'RUN' else argv[1]}
    status, _, err = call(capsys, monkeypatch, *[x for kv in given.items() for x in kv])
    assert status == 1 and why in err and len(err.strip().splitlines()) == 1 and not (tmp_path/'labels').exists() and sorted(run.iterdir()) == before


def test_several_tables_and_a_photo_that_cannot_be_read(run, bins, tmp_path, capsys, monkeypatch):
    run, doubted = run
    shutil.copytree(bins, tmp_path/'bins')
    (tmp_path/f'bins/bin-images/{doubted[0]}.jpg').write_bytes(b'')
    lines = (run/'predictions.csv').read_text().splitlines(keepends=True)
    (run/'a.csv').write_text(''.join(lines[:50])), (run/'b.csv').write_text(lines[0] + ''.join(lines[40:]))
    status, said, _ = call(capsys, monkeypatch, '--predictions', run/'a.csv', run/'b.csv', '--data', tmp_path/'bins', '--out', tmp_path/'labels')
    assert status == 0 and '3 of 120 records' in said and (tmp_path/'labels/suspects.png').exists()
