"Audit: the promised rate of false alarms, a figure for everything, no bin that vanishes, and the command on a folder with all kinds of trouble."
import json, math, shutil, sys
from dataclasses import replace

import numpy as np
import pytest

from bin_counter import cli
from bin_counter.audit import AUDIT_COLUMNS, alarm_threshold, audit_photos, audit_power, control_alarms, format_audit, format_power, plot_power, read_records, wrong_records
from bin_counter.core import ConfigError, Counts, DataError, ModelCard, PackageError, Preprocess, make_answer, read_csv

PRIOR = np.array([.12, .22, .26, .23, .17])


def counter(n, seed, blur=1.):
    "Probabilities and labels of a counter with blurred sight"
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, n, p=PRIOR) + 1
    seen = labels + blur*rng.normal(size=n)
    probs = PRIOR*np.exp(-(np.arange(1, 6) - seen[:, None])**2 / (2*blur**2))
    return probs/probs.sum(1, keepdims=True), labels


def mismatch(probs, labels): return 1 - probs[np.arange(len(labels)), labels - 1]
def card_of(p, arch='resnet18', **kw): return ModelCard(arch, calibration=dict(mismatch_quantiles=np.quantile(p, np.linspace(0, 1, 101)).round(6).tolist(), photos=len(p)), **kw)


# the rate of false alarms

@pytest.mark.parametrize('rate', [.01, .02, .05, .1, .25])
def test_on_the_validation_photos_the_rate_is_exact_to_one_photo(rate):
    for seed, n in ((0, 100), (1, 333), (2, 1199)):
        p = mismatch(*counter(n, seed))
        assert abs((p > alarm_threshold(card_of(p), rate)).mean() - rate) <= 1/n + 1e-9


@pytest.mark.parametrize('rate', [.005, .01, .033, .05, .2])
def test_on_new_photos_the_rate_is_kept_on_average(rate):
    "Over 40 validation sets of 400 photos; the mean has a standard error of less than a tenth of the rate and a bit"
    new = mismatch(*counter(40_000, 99))
    got = np.mean([(new > alarm_threshold(card_of(mismatch(*counter(400, seed))), rate)).mean() for seed in range(40)])
    assert abs(got - rate) < .1*rate + 1.5/400


def test_a_rate_between_percentiles_lies_between_their_thresholds():
    card = card_of(mismatch(*counter(900, 3)))
    rates = [.002, .005, .0099, .01, .0151, .02, .07, .5, .99, .999]
    thresholds = [alarm_threshold(card, r) for r in rates]
    assert thresholds == sorted(thresholds, reverse=True)
    q = card.calibration['mismatch_quantiles']
    assert q[98] < alarm_threshold(card, .015) < q[99] and alarm_threshold(card, .07) == pytest.approx(q[93])


@pytest.mark.parametrize('rate, error, why', [
    (0, ConfigError, 'between 0 and 1'), (1, ConfigError, 'between 0 and 1'), (5, ConfigError, '0.05 for 5%'), (-.1, ConfigError, 'between 0 and 1'),
    (math.nan, ConfigError, 'between 0 and 1'), (.0099, ConfigError, '100 validation photos cannot promise less than 0.01')])
def test_rates_that_cannot_be_promised(rate, error, why):
    with pytest.raises(error, match=why): alarm_threshold(card_of(np.linspace(0, .9, 100)), rate)


@pytest.mark.parametrize('n', [3, 7, 30, 997, 1199])
def test_the_smallest_rate_that_the_error_names_is_accepted(n):
    card = card_of(np.linspace(0, .9, n))
    with pytest.raises(ConfigError) as e: alarm_threshold(card, .5/n)
    assert alarm_threshold(card, float(str(e.value).split('less than ')[1].split(':')[0])) <= .9


GOOD = np.linspace(0, .9, 101).tolist()

@pytest.mark.parametrize('calibration, why', [
    ({}, 'train it again'), (dict(photos=9), 'train it again'), (dict(mismatch_quantiles=GOOD), 'train it again'), (dict(mismatch_quantiles=GOOD, photos=0), 'train it again'),
    (dict(mismatch_quantiles=GOOD[:100], photos=99), 'damaged'), (dict(mismatch_quantiles=GOOD[::-1], photos=99), 'damaged'), (dict(mismatch_quantiles=[*GOOD[:100], 1.2], photos=99), 'damaged'),
    (dict(mismatch_quantiles=[math.nan]*101, photos=99), 'damaged'), (dict(mismatch_quantiles=['0']*101, photos=99), 'damaged'), (dict(mismatch_quantiles=[None]*101, photos=99), 'damaged'),
    (dict(mismatch_quantiles=.5, photos=99), 'damaged'), (dict(mismatch_quantiles=GOOD, photos='99'), 'damaged'), (dict(mismatch_quantiles=GOOD, photos=-1), 'damaged')])
def test_cards_without_sound_quantiles(calibration, why):
    with pytest.raises(PackageError, match=why): alarm_threshold(ModelCard('resnet18', calibration=calibration))


def test_a_counter_that_rules_out_right_records_too_often_raises_no_alarm_by_mistake():
    "One right record in ten has a probability of 0: at 5% nothing could be told apart"
    card = card_of(np.r_[np.linspace(0, .9, 900), np.ones(100)])
    with pytest.raises(ConfigError, match='as wrong as anything can'): alarm_threshold(card, .05)
    assert alarm_threshold(card, .2) < 1


# rows

def test_every_photo_and_every_record_has_a_row_and_judged_ones_come_first_in_order():
    probs, labels = counter(200, 0)
    answers = [(f'{i:05}', make_answer(p)) for i, p in enumerate(probs)]
    answers[3], answers[7] = ('00003', 'the file is empty'), ('00007', 'cut short: fetch it again')
    records = {f'{i:05}': int(n) for i, n in enumerate(labels)} | {'00010': 0, '00011': 6, '00012': 700, '00013': 'record unusable: text', '00300': 2, '00007': 9}
    del records['00014']
    rows = audit_photos(answers, records, Counts(), .8)
    assert sorted(r.id for r in rows) == sorted({i for i, _ in answers} | set(records))
    judged, rest = [r for r in rows if r.p_mismatch is not None], [r for r in rows if r.p_mismatch is None]
    assert rows == judged + rest and [r.p_mismatch for r in judged] == sorted((r.p_mismatch for r in judged), reverse=True)
    assert all(r.reason == '' and r.alarm is (r.p_mismatch > .8) for r in judged)
    assert {r.id: r.reason.split(':')[0] for r in rest} == {'00300': 'no photo', '00014': 'no record', '00003': 'photo unusable', '00007': 'photo unusable',
        '00010': 'record outside of the counts', '00011': 'record outside of the counts', '00012': 'record outside of the counts', '00013': 'record unusable'}
    assert all(r.alarm is None and r.review for r in rest)
    said = format_audit(rows, .8, .05)
    assert said.startswith(f'{len(judged)} bins judged: {sum(r.alarm for r in judged)} alarms') and '8 not judged' in said and '3 record outside of the counts' in said


@pytest.mark.parametrize('counts, recorded, judged', [('1-5', 0, False), ('1-5', 1, True), ('1-5', 5, True), ('1-5', 6, False), ('0-5', 0, True), ('1-6+', 6, True), ('1-6+', 40, True), ('1-6+', 0, False)])
def test_records_outside_of_the_counts(counts, recorded, judged):
    c = Counts.parse(counts)
    probs = np.arange(1, len(c) + 1)/sum(range(1, len(c) + 1))
    row = audit_photos([('7', make_answer(probs, c))], {'7': recorded}, c, .5)[0]
    if judged: assert row.p_mismatch == pytest.approx(1 - probs[c.index(recorded)], abs=1e-6) and row.reason == ''
    else: assert row.p_mismatch is None and row.count == c.values[-1] and row.recorded == recorded and f'this model knows {counts}' in row.reason


def test_equal_probabilities_are_ordered_by_id():
    answers = [(i, make_answer([.2]*5)) for i in ('00100', '100', '00007')]
    assert [r.id for r in audit_photos(answers, dict.fromkeys(('100', '00007', '00100'), 3), Counts(), .9)] == ['00007', '00100', '100']


@pytest.mark.parametrize('text, want', [
    ('{"EXPECTED_QUANTITY": 4}', 4), ('{"EXPECTED_QUANTITY": 0}', 0), ('{"EXPECTED_QUANTITY": true}', None), ('{"EXPECTED_QUANTITY": 4.0}', None), ('{"EXPECTED_QUANTITY": "4"}', None),
    ('{"EXPECTED_QUANTITY": null}', None), ('{"EXPECTED_QUANTITY": -1}', None), ('{}', None), ('[4]', None), ('{', None), ('', None), ('['*100_000, None)])
def test_records_of_metadata(text, want, tmp_path):
    (tmp_path/'metadata').mkdir()
    (tmp_path/'metadata/00042.json').write_text(text)
    (tmp_path/'metadata/._00042.json').write_bytes(b'\x00\x05')
    (tmp_path/'manifest.csv').write_text('id,label\n00042,3\n42,2\n')
    records = read_records(tmp_path)
    assert set(records) == {'00042', '42'} and records['42'] == 2
    assert records['00042'] == want if want is not None else records['00042'].startswith('record unusable: ') and '\n' not in records['00042']


def test_folders_without_records(tmp_path):
    with pytest.raises(DataError, match='no such folder'): read_records(tmp_path/'none')
    with pytest.raises(DataError, match='holds no record'): read_records(tmp_path)


# the power of an audit

def slow_power(probs, labels, threshold, counts):
    "False alarms and recall by kind, by loops over every wrong record"
    false, caught = [], {'off by one': [], 'off by two or more': [], 'any other count': []}
    for p, n in zip(probs, labels):
        rings = lambda i: round(1 - p[i], 6) > threshold
        own = counts.index(int(n))
        false.append(rings(own))
        wrong = {'off by one': [], 'off by two or more': [], 'any other count': []}
        for i, v in enumerate(counts.values):
            if i == own: continue
            wrong['any other count'].append(rings(i))
            wrong['off by one' if abs(v - n) == 1 else 'off by two or more'].append(rings(i))
        for k, w in wrong.items(): caught[k] += [np.mean(w)] if w else []
    return np.mean(false), {k: np.mean(v) for k, v in caught.items()}


@pytest.mark.parametrize('text', ['1-5', '0-5', '1-4+', '1-3'])
def test_the_figures_are_those_of_a_plain_loop(text):
    counts, rng = Counts.parse(text), np.random.default_rng(0)
    labels = rng.integers(counts.low, counts.high + (4 if counts.open_top else 1), 300)
    probs = rng.dirichlet(np.ones(len(counts)), 300)
    power = audit_power(probs, labels, list(map(str, range(300))), .8, labels, counts, draws=0)
    false, caught = slow_power(probs, labels, .8, counts)
    assert power['false_alarms'] == dict(value=pytest.approx(false, abs=1e-6), low=None, high=None)
    for kind, share in caught.items():
        assert power['kinds'][kind]['recall']['value'] == pytest.approx(share, abs=1e-6)
        assert power['kinds'][kind]['precision']['value'] == pytest.approx(.05*share/(.05*share + .95*false), abs=1e-6)


@pytest.mark.parametrize('prior', [PRIOR, np.full(5, .2), np.array([.1, .1, .3, .3, .2]), np.array([0, .25, .25, .25, .25])])
@pytest.mark.parametrize('rate', [0, .001, .05, .15, .5, 1])
def test_the_control_raises_exactly_the_false_alarms_that_it_is_given(prior, rate):
    for shares in (prior, np.random.default_rng(1).dirichlet(np.ones(5))):
        chance = control_alarms(prior, shares, rate)
        assert (chance*shares).sum() == pytest.approx(rate, abs=1e-12) and chance.min() >= 0 and chance.max() <= 1
        order = np.argsort(prior, kind='stable')
        assert all(chance[a] >= chance[b] - 1e-12 for a, b in zip(order, order[1:])), 'a rarer count is doubted first'


@pytest.mark.parametrize('threshold', [.3, .6, .9, .97])
def test_the_control_stands_at_the_false_alarms_of_the_counter(threshold):
    "Recomputed from its chances: the same false alarms to the last digit, and its recall by hand"
    probs, labels = counter(700, 5)
    reference = counter(2000, 6)[1]
    power = audit_power(probs, labels, list(map(str, range(700))), threshold, reference, draws=0)
    share = lambda y: np.bincount(y - 1, minlength=5)/len(y)
    chance = control_alarms(share(reference), share(labels), (mismatch(probs, labels).round(6) > threshold).mean())
    assert chance[labels - 1].mean() == pytest.approx(power['false_alarms']['value'], abs=1e-6)
    for kind, w in wrong_records(labels).items():
        assert power['kinds'][kind]['control_recall']['value'] == pytest.approx((w*chance).sum()/w.sum(), abs=1e-6)
        assert power['kinds'][kind]['gain']['value'] == pytest.approx(power['kinds'][kind]['recall']['value'] - power['kinds'][kind]['control_recall']['value'], abs=2e-6)


def test_pairs_count_as_one_bin_and_the_interval_covers():
    "Each photo twice: as photos the interval is too narrow, as pairs it is that of the single photos"
    probs, labels = counter(300, 8)
    width = lambda groups: np.diff([audit_power(probs.repeat(2, 0), labels.repeat(2), groups, .8, labels)['false_alarms'][k] for k in ('low', 'high')])[0]
    pairs, alone = width([str(i//2) for i in range(600)]), width([str(i) for i in range(600)])
    assert pairs/alone == pytest.approx(math.sqrt(2), rel=.12)


def test_kinds_that_do_not_exist_are_none_and_can_be_drawn():
    probs = np.random.default_rng(0).dirichlet([1, 1], 40)
    labels = np.arange(40) % 2
    power = audit_power(probs, labels, list(map(str, labels)), .6, labels, Counts(0, 1), draws=50)
    assert power['kinds']['off by two or more']['recall']['value'] is None and '–' in format_power(power)
    assert len(plot_power([power]).axes[0].lines) == 2
    one = audit_power(probs, labels, ['a']*40, .6, labels, Counts(0, 1))
    assert one['groups'] == 1 and one['false_alarms']['low'] is None
    silent = audit_power(probs, labels, list(map(str, range(40))), 1., labels, Counts(0, 1), draws=50)
    assert silent['false_alarms']['value'] == 0 and silent['kinds']['off by one']['recall']['value'] == 0 and silent['kinds']['off by one']['precision']['value'] is None


P, Y = counter(20, 0)
G = [str(i) for i in range(20)]

@pytest.mark.parametrize('change, why', [
    (dict(probs=P[:19]), 'do not go together'), (dict(probs=P[:, :4]), 'do not go together'), (dict(groups=G[:3]), 'do not go together'), (dict(probs=P[:0], labels=Y[:0], groups=[]), 'do not go together'),
    (dict(probs=P*2), 'sum to 1'), (dict(probs=np.full((20, 5), np.nan)), 'sum to 1'), (dict(probs=np.tile([2, -1, 0, 0, 0], (20, 1))), 'sum to 1'),
    (dict(labels=Y + 5), 'outside of the counts'), (dict(wrong_share=0), 'between 0 and 1'), (dict(wrong_share=1), 'between 0 and 1'), (dict(reference=[]), 'no reference label'), (dict(reference=[9]), 'no reference label')])
def test_damaged_tables_give_no_figures(change, why):
    with pytest.raises((DataError, ConfigError), match=why): audit_power(**{**dict(probs=P, labels=Y, groups=G, threshold=.8, reference=Y), **change})


# the command

@pytest.fixture(scope='module')
def package(tmp_path_factory):
    "A small untrained counter with made-up quantiles, packed; and the same without quantiles"
    import torch
    from bin_counter.net import build_net, save_model
    from bin_counter.package import build_package
    out = tmp_path_factory.mktemp('audit')
    card = card_of(np.linspace(.6, .9, 50), 'squeezenet1_1', preprocess=Preprocess(size=64), net=dict(pool='meanmax'))
    torch.manual_seed(0)
    for name, c in (('model', card), ('old', replace(card, calibration={}))):
        save_model(out/name, build_net(c), c)
        build_package(out/name, out/f'{name}.tar.gz')
    return out/'model.tar.gz'


def call(capsys, monkeypatch, *argv):
    "Run bin_audit with an argument vector, in this process: status, stdout, stderr"
    monkeypatch.setattr(sys, 'argv', ['bin_audit', *map(str, argv)])
    status = cli.bin_audit()
    out = capsys.readouterr()
    return status, out.out, out.err


def test_a_folder_with_all_kinds_of_trouble(package, bins, tmp_path, capsys, monkeypatch):
    data, out = tmp_path/'bins', tmp_path/'made/mismatches.csv'
    shutil.copytree(bins, data)
    (data/'manifest.csv').unlink()
    (data/'bin-images/00005.jpg').write_bytes(b'')
    (data/'bin-images/00006.jpg').write_bytes((data/'bin-images/00007.jpg').read_bytes()[:900])
    (data/'metadata/00008.json').unlink()
    (data/'metadata/00009.json').write_text('{')
    (data/'metadata/00010.json').write_text(json.dumps(dict(EXPECTED_QUANTITY=12)))
    (data/'bin-images/00011.jpg').unlink()
    status, said, err = call(capsys, monkeypatch, '--package', package, '--data', data, '--out', out, '--false-alarms', '.2')
    rows = read_csv(out)
    assert status == 0 and err == '' and list(rows[0]) == AUDIT_COLUMNS and len(rows) == 120 and {r['id'] for r in rows} == {p.stem for p in (bins/'bin-images').iterdir()}
    kinds = {r['id']: r['reason'].split(':')[0] for r in rows[-6:]}
    assert kinds == {'00005': 'photo unusable', '00006': 'photo unusable', '00008': 'no record', '00009': 'record unusable', '00010': 'record outside of the counts', '00011': 'no photo'}
    assert '114 bins judged' in said and '6 not judged, listed last: 1 no photo, 1 no record, 2 photo unusable, 1 record outside of the counts, 1 record unusable' in said and f'wrote {out}' in said
    p = [float(r['p_mismatch']) for r in rows[:114]]
    assert p == sorted(p, reverse=True) and f"{sum(r['alarm'] == 'True' for r in rows)} alarm" in said
    reason = next(r['reason'] for r in rows if r['id'] == '00005')
    assert reason == 'photo unusable: the file is empty: fetch it again' and not list(tmp_path.rglob('*.part'))
    before = out.read_bytes()
    call(capsys, monkeypatch, '--package', package, '--data', data, '--out', out, '--false-alarms', '.2')
    assert out.read_bytes() == before


def test_the_probabilities_are_those_of_bin_count(package, bins, tmp_path, capsys, monkeypatch):
    call(capsys, monkeypatch, '--package', package, '--data', bins, '--out', tmp_path/'m.csv')
    from bin_counter.package import Package, count_photo
    p = Package.load(package)
    for r in read_csv(tmp_path/'m.csv')[:3]:
        answer = count_photo(p, (bins/f'bin-images/{r["id"]}.jpg').read_bytes(), int(r['recorded']))
        assert float(r['p_mismatch']) == pytest.approx(answer['p_mismatch'], abs=1e-4) and int(r['count']) == answer['count']


@pytest.mark.parametrize('argv, why', [
    (['--false-alarms', '5'], '0.05 for 5%'), (['--false-alarms', '0'], 'between 0 and 1'), (['--false-alarms', '.01'], '50 validation photos cannot promise less than 0.02'),
    (['--package', 'none.tar.gz'], 'no such file'), (['--package', 'OLD'], 'train it again with bin_run'), (['--data', 'nowhere'], 'nowhere: no such folder'), (['--data', 'EMPTY'], 'holds no record')])
def test_bad_input_ends_in_one_line_and_writes_nothing(argv, why, package, bins, tmp_path, capsys, monkeypatch):
    (tmp_path/'empty').mkdir()
    given = dict(zip(argv[::2], argv[1::2]))
    given = {'--package': package, '--data': bins, '--out': tmp_path/'m.csv'} | {k: {'OLD': package.with_name('old.tar.gz'), 'EMPTY': tmp_path/'empty'}.get(v, v) for k, v in given.items()}
    status, _, err = call(capsys, monkeypatch, *[x for kv in given.items() for x in kv])
    assert status == 1 and why in err and len(err.strip().splitlines()) == 1 and not (tmp_path/'m.csv').exists()


def test_a_folder_in_which_nothing_can_be_judged(package, bins, tmp_path, capsys, monkeypatch):
    shutil.copytree(bins, tmp_path/'bins')
    for p in (tmp_path/'bins/bin-images').iterdir(): p.write_bytes(b'not a photo')
    status, _, err = call(capsys, monkeypatch, '--package', package, '--data', tmp_path/'bins', '--out', tmp_path/'m.csv')
    assert status == 1 and 'none of 120 bins could be judged' in err and len(read_csv(tmp_path/'m.csv')) == 120
