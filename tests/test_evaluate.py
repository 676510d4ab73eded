"""Figures against other libraries, degenerate cases, the report as a page"""
import json, math, subprocess, sys, time
from html.parser import HTMLParser

import numpy as np
import pytest

from bin_counter import evaluate as ev
from bin_counter.core import ConfigError, Counts, DataError, ModelCard, write_card, write_csv
from bin_counter.evaluate import (Predictions, baselines, calibration, compare_predictions, confusion_matrix, evaluate, format_comparison, format_scores,
                                  read_predictions, score_predictions, weighted_kappa, worst_mistakes)


def make(n, k=5, seed=0, groups=None, counts=None, skill=1.0, part='test'):
    "Random predictions with some skill"
    counts = counts or Counts(1, k)
    rng, k = np.random.default_rng(seed), len(counts)
    truth = rng.integers(k, size=n)
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), truth] += skill
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(tuple(f'{i:05}' for i in range(n)), (part,)*n, truth + counts.low, tuple(groups or (str(i//2) for i in range(n))), probs, counts)


def fixed(labels, answers, counts=Counts(), trust=.9, groups=None):
    "Predictions with given answers"
    k, n = len(counts), len(labels)
    probs = np.full((n, k), (1 - trust)/(k - 1))
    for i, a in enumerate(answers): probs[i, counts.index(a)] = trust
    return Predictions(tuple(map(str, range(n))), ('test',)*n, np.array(labels), tuple(groups or map(str, range(n))), probs, counts)


def save(p, path, **changes):
    "Write predictions.csv"
    rows = [dict(id=p.ids[i], part=p.parts[i], label=int(p.labels[i]), group=p.groups[i], count=p.counts.values[p.answers[i]],
                 **{f'p{n}': repr(float(v)) for n, v in zip(p.counts.names, p.probs[i])}) for i in range(len(p))]
    rows[0] |= changes
    write_csv(path, rows, rows[0])
    return path


@pytest.mark.parametrize('counts', [Counts(), Counts(0, 5), Counts(1, 6, True), Counts(9, 12)])
def test_predictions_read_back(tmp_path, counts):
    p = make(40, counts=counts)
    q = read_predictions(save(p, tmp_path/'p.csv'))
    assert (q.ids, q.parts, q.groups, q.counts) == (p.ids, p.parts, p.groups, p.counts)
    assert (q.labels == p.labels).all() and np.allclose(q.probs, p.probs)


@pytest.mark.parametrize('changes,says', [
    (dict(p1='nan'), 'not a number from 0 to 1'), (dict(p1='inf'), 'not a number from 0 to 1'), (dict(p1='-0.1'), 'not a number from 0 to 1'),
    (dict(p1='7'), 'sum to'), (dict(p1='x'), 'a cell is not a number'), (dict(p1=''), 'a cell is not a number'), (dict(label='x'), 'a cell is not a number'),
    (dict(label=0), 'outside of the counts 1-5'), (dict(label=6), 'outside of the counts 1-5'), (dict(count=9), 'was answered 9, outside'),
    (dict(part='dev'), 'none of train, valid, test'), (dict(id='00001'), 'there twice'), (dict(id='../../etc/passwd'), 'cannot name a photo')])
def test_damaged_predictions_are_one_line(tmp_path, changes, says):
    with pytest.raises(DataError) as e: read_predictions(save(make(5), tmp_path/'p.csv', **changes))
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('header', ['id,part,label,count', 'id,part,label,count,p1', 'id,part,label,count,p1,p3', 'id,part,label,count,p2,p1', 'id,part,label,count,p1+,p2', 'id,part,count,p1,p2'])
def test_wrong_columns(tmp_path, header):
    (tmp_path/'p.csv').write_text(header + '\n' + ','.join(['1', 'test', '1', '1', '.5', '.5'][:header.count(',') + 1]) + '\n')
    with pytest.raises(DataError, match='make it with bin_run'): read_predictions(tmp_path/'p.csv')


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match='is missing'): read_predictions(tmp_path/'no.csv')
    (tmp_path/'p.csv').write_text('id,part,label,count,p1,p2\n')
    with pytest.raises(DataError, match='holds no photo'): read_predictions(tmp_path/'p.csv')


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('skill', [0, 1, 3])
def test_figures_agree_with_scikit_learn(seed, skill):
    import sklearn.metrics as sk
    p = make(300, seed=seed, skill=skill)
    y, a = p.labels, p.answers + 1
    s = score_predictions(p, draws=50)
    got = {k: f['value'] for k, f in s['figures'].items()}
    want = dict(accuracy=sk.accuracy_score(y, a), within_one=np.mean(abs(y - a) <= 1), mae=sk.mean_absolute_error(y, a), rmse=sk.root_mean_squared_error(y, a),
                rmse_expected=sk.root_mean_squared_error(y, p.probs @ np.arange(1, 6)), log_loss=sk.log_loss(y, p.probs, labels=range(1, 6)),
                kappa=sk.cohen_kappa_score(y, a, weights='quadratic'))
    assert {k: got[k] for k in want} == pytest.approx(want, abs=2e-6)
    assert s['confusion'] == sk.confusion_matrix(y, a, labels=range(1, 6)).tolist()
    for name, fn in (('recall', sk.recall_score), ('precision', sk.precision_score)):
        assert [c[name]['value'] for c in s['per_class'].values()] == pytest.approx(fn(y, a, labels=range(1, 6), average=None), abs=1e-6)
    assert float(ev._kappas(confusion_matrix(p))) == pytest.approx(want['kappa'])


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('bins', [5, 10, 15])
def test_ece_agrees_with_torchmetrics(seed, bins):
    from bin_counter import net # before torchmetrics, which imports torchvision
    torch, metrics = net.torch, pytest.importorskip('torchmetrics.classification')
    p = make(500, seed=seed, skill=2)
    want = metrics.MulticlassCalibrationError(5, n_bins=bins, norm='l1')(torch.tensor(p.probs), torch.tensor(p.truth))
    assert calibration(p, bins)['ece'] == pytest.approx(float(want), abs=1e-6)


def test_ece_at_the_edges():
    sure = fixed([1, 2, 3, 4], [1, 2, 3, 5], trust=1.)
    assert calibration(sure)['ece'] == pytest.approx(.25) and len(calibration(sure)['bins']) == 1
    flat = Predictions(('a', 'b'), ('test',)*2, np.array([1, 2]), ('a', 'b'), np.full((2, 5), .2), Counts())
    assert calibration(flat)['ece'] == pytest.approx(.3)


def test_bootstrap_agrees_with_a_plain_loop():
    p = make(60, seed=3)
    got = ev._means(ev._draw_sums(ev._group_sums(ev._photo_sums(p), p.groups), 4000, 0))
    rng, names, acc, rmse = np.random.default_rng(1), sorted(set(p.groups)), [], []
    off = {g: [int(p.answers[i] - p.truth[i]) for i in range(len(p)) if p.groups[i] == g] for g in names}
    for _ in range(4000):
        d = np.array([x for g in rng.choice(names, len(names)) for x in off[g]])
        acc.append((d == 0).mean()); rmse.append(math.sqrt((d**2).mean()))
    for q in (2.5, 50, 97.5):
        assert np.percentile(got['accuracy'], q) == pytest.approx(np.percentile(acc, q), abs=.02)
        assert np.percentile(got['rmse'], q) == pytest.approx(np.percentile(rmse, q), abs=.05)


def test_intervals_cover():
    "Of many test sets, about 95% have an interval that holds the true accuracy; groups differ in difficulty"
    rng, hits = np.random.default_rng(0), 0
    for t in range(150):
        easy = rng.random(60) < .5
        right = rng.random(180) < np.where(easy, .9, .1).repeat(3)
        p = fixed([3]*180, [3 if r else 4 for r in right], groups=[str(i//3) for i in range(180)])
        f = score_predictions(p, draws=400, seed=t)['figures']['accuracy']
        hits += f['low'] <= .5 <= f['high']
    assert .88 <= hits/150 <= .99


def test_ten_thousand_photos_take_under_two_seconds():
    p = make(10_000)
    weighted_kappa(p.truth[:9], p.answers[:9], 5) # the import is not timed
    start = time.process_time()
    score_predictions(p)
    assert time.process_time() - start < 2


def test_same_seed_same_intervals():
    p = make(100)
    assert score_predictions(p, seed=1) == score_predictions(p, seed=1) != score_predictions(p, seed=2)


DEGENERATE = dict(one_photo=fixed([3], [3]), one_wrong=fixed([3], [4]), one_class=fixed([2]*9, [2]*9), one_class_mixed=fixed([2]*9, [2, 1, 3]*3), constant=fixed([1, 2, 3, 4, 5], [3]*5),
                  perfect=fixed([1, 2, 3, 4, 5]*4, [1, 2, 3, 4, 5]*4), one_group=fixed([1, 2, 3], [1, 2, 4], groups=['g']*3), certain=fixed([1, 5], [5, 1], trust=1.),
                  zero=fixed([0, 0, 1, 5], [0, 1, 1, 5], Counts(0, 5)), open_top=fixed([6, 9, 40, 1], [6, 6, 5, 1], Counts(1, 6, True)), no_three=fixed([1, 2, 1], [1, 1, 2], Counts(1, 2)))


@pytest.mark.parametrize('name', DEGENERATE)
def test_degenerate_cases_have_defined_answers(name, tmp_path):
    p = DEGENERATE[name]
    s = score_predictions(p, draws=100)
    json.dumps(s, allow_nan=False)
    assert s['figures']['accuracy']['value'] == pytest.approx((p.answers == p.truth).mean(), abs=1e-6)
    assert format_scores(s).count('\n') >= 9
    m = evaluate(save(p, tmp_path/'p.csv'), tmp_path)
    assert m['test']['figures'].keys() == s['figures'].keys() and (tmp_path/'report.html').stat().st_size > 10_000


def test_degenerate_kappa():
    def kappa(name): return score_predictions(DEGENERATE[name], draws=100)['figures']['kappa']['value']
    assert kappa('one_class') is None and kappa('one_photo') is None
    assert (kappa('one_class_mixed'), kappa('constant'), kappa('perfect')) == (0, 0, 1)
    assert any('kappa' in n for n in score_predictions(DEGENERATE['one_class'], draws=0)['notes'])


def test_open_top_labels_count_as_the_class():
    s = score_predictions(DEGENERATE['open_top'], draws=0)
    assert (s['figures']['accuracy']['value'], s['figures']['mae']['value']) == (.75, .25)
    assert s['per_class']['6+']['photos'] == 3


def test_certain_and_wrong_is_finite():
    assert score_predictions(DEGENERATE['certain'], draws=0)['figures']['log_loss']['value'] == pytest.approx(-math.log(1e-6), abs=1e-5)


def test_baselines_by_hand():
    p = fixed([1, 3, 3, 5], [1, 1, 1, 1])
    b = baselines(p, reference=[4, 4, 4, 1, 99])
    assert {k: v['answer'] for k, v in b.items()} == dict(majority=4, always_3=3, mean=3.25)
    assert b['majority'] == pytest.approx(dict(answer=4, accuracy=0, within_one=.75, mae=1.5, rmse=math.sqrt(12/4), rmse_expected=math.sqrt(12/4)), abs=1e-6)
    assert b['mean']['rmse_expected'] == pytest.approx(math.sqrt((2.25**2 + 2*.25**2 + 1.75**2)/4), abs=1e-6)
    assert b['mean']['accuracy'] == b['always_3']['accuracy'] == .5
    assert 'always_3' not in baselines(DEGENERATE['no_three'], [1, 2])


def test_comparison_is_paired_and_antisymmetric():
    a, b = make(400, seed=1, part='valid'), make(400, seed=1, part='valid')
    wrong = np.flatnonzero(b.answers != b.truth)[:30] # b is a, with 30 photos put right
    probs = b.probs.copy()
    probs[wrong] = np.eye(5)[b.truth[wrong]]
    b = Predictions(b.ids, b.parts, b.labels, b.groups, probs, b.counts)
    one, two = compare_predictions(a, b), compare_predictions(b, a)
    assert (one['verdict'], two['verdict']) == ('better', 'worse')
    f = one['figures']['accuracy']
    assert f['difference'] == pytest.approx(30/400) and f['difference'] == -two['figures']['accuracy']['difference']
    alone = score_predictions(a)['figures']['accuracy']
    assert f['high'] - f['low'] < .7*(alone['high'] - alone['low'])
    assert '+7.5 points' in format_comparison(one) and 'second is more accurate' in format_comparison(one)
    shuffled = b.take(np.random.default_rng(0).permutation(len(b)))
    assert compare_predictions(a, shuffled) == one


def test_comparison_without_an_answer():
    p = fixed([1, 2, 3], [1, 2, 4], groups=['g']*3)
    c = compare_predictions(p, p, 'test')
    assert c['verdict'] == 'undecided' and c['figures']['rmse']['low'] is None and '–' in format_comparison(c)


@pytest.mark.parametrize('b,error,says', [(make(30), DataError, 'scored by one model only'), (make(20, k=4), ConfigError, 'cannot be compared'),
                                          (make(20, seed=5), DataError, 'labels of the two models differ')])
def test_what_cannot_be_compared(b, error, says):
    with pytest.raises(error, match=says): compare_predictions(make(20), b, 'test')
    with pytest.raises(DataError, match='no photo to compare'): compare_predictions(make(20), make(20), 'valid')


def test_worst_mistakes_are_wrong_and_sorted():
    p = make(200)
    got = worst_mistakes(p, 20)
    right = {p.ids[i] for i in np.flatnonzero(p.answers == p.truth)}
    assert not right & {m['id'] for m in got} and [m['trust'] for m in got] == sorted((m['trust'] for m in got), reverse=True)
    assert worst_mistakes(DEGENERATE['perfect']) == []


class Page(HTMLParser):
    "What a browser would look at"
    void = {'meta', 'img', 'br', 'path', 'use', 'rect', 'link', 'circle', 'line'}
    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(text)
        assert not self.stack, self.stack
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void: self.stack.append(tag)
    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_endtag(self, tag):
        if tag not in self.void: assert self.stack.pop() == tag
    def handle_data(self, data): self.text.append(data)
    def all(self, tag): return [a for t, a in self.tags if t == tag]


NASTY = '<script>alert("x")</script>&"\''


@pytest.fixture
def run(tmp_path):
    "A full run, with nasty text wherever text may come from"
    import cv2
    p, v = make(300, skill=.7), make(300, seed=1, skill=.7, part='valid')
    both = Predictions(p.ids + tuple('v' + i for i in v.ids), p.parts + v.parts, np.r_[p.labels, v.labels], p.groups + tuple('v' + g for g in v.groups), np.r_[p.probs, v.probs], p.counts)
    save(both, tmp_path/'predictions.csv')
    (tmp_path/'data/bin-images').mkdir(parents=True)
    for n, m in enumerate(worst_mistakes(p)):
        if n != 5: cv2.imwrite(str(tmp_path/f"data/bin-images/{m['id']}.jpg"), np.random.default_rng(n).integers(0, 255, (600, 800, 3), np.uint8))
    (tmp_path/f"data/bin-images/{worst_mistakes(p)[6]['id']}.jpg").write_bytes(b'not a photo')
    write_card(tmp_path/'card.json', ModelCard(NASTY, training=dict(preset=NASTY, versions=dict(torch='2'))  , data_licence=NASTY))
    rows = [dict(epoch=e, train_loss=1/(e + 1), valid_loss='' if e == 1 else .5, accuracy=.3, within_one=.7) for e in range(3)]
    write_csv(tmp_path/'history.csv', rows, rows[0])
    split = [dict(id=i, label=2 if part == 'test' else 4, part=part) for i, part in zip(both.ids, both.parts)] + [dict(id=f't{i}', label=4, part='train') for i in range(9)] + [dict(id='z', label=1, part='test')]
    write_csv(tmp_path/'splits.csv', split, split[0])
    return tmp_path


LEAK = dict(photos=dict(train=9, valid=3, test=3), groups=dict(total=5, across=2), asins=dict(total=5, across=1), near_duplicates=dict(total=0, across=0), visible=True,
            valid=dict(photos=3, with_relative=0, share=0.), test=dict(photos=3, with_relative=2, share=2/3), examples=[dict(id=NASTY, part='test', relative='b', kind='groups')])


def full(run, **kw):
    m = evaluate(run/'predictions.csv', run/'out', **{**dict(splits=run/'splits.csv', history=run/'history.csv', card=run/'card.json', leak=LEAK, data=run/'data', title=NASTY, command=NASTY), **kw})
    return m, (run/'out/report.html').read_text()


def test_the_report_is_one_safe_accessible_page(run):
    m, text = full(run)
    page = Page(text)
    assert not page.all('script') and NASTY in ''.join(page.text)
    assert not [a for _, a in page.tags for k in ('src', 'href', 'xlink:href') if not a.get(k, '#').startswith(('#', 'data:image/jpeg;base64,'))]
    assert 'url(http' not in text and '@import' not in text and not page.all('link')
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len(set(ids))
    assert all(a['href'][1:] in ids for a in page.all('a'))
    assert all(a.get('scope') in ('col', 'row') for a in page.all('th')) and len(page.all('caption')) == len(page.all('table'))
    assert len(page.all('img')) == 10 and all(a['alt'].startswith('Photo ') for a in page.all('img'))
    assert all(a.get('aria-label') and a.get('role') == 'img' for a in page.all('svg')) and len(page.all('svg')) == 6
    assert 'no such file' in text and 'not a JPEG or PNG' in text # two photos that cannot be shown say why
    assert len(text) < 2_000_000
    assert json.loads((run/'out/metrics.json').read_text()) == json.loads(json.dumps(m))


def test_reference_and_notes_come_from_the_split(run):
    m, _ = full(run)
    assert m['baselines_chosen_on'] == 'train' and m['test']['baselines']['majority']['answer'] == 4
    assert '1 photos of test in splits.csv have no prediction' in m['test']['notes'] and m['test_scored'] == 1
    m, _ = full(run, splits=None)
    assert m['baselines_chosen_on'] == 'valid'


def test_a_split_of_another_run_is_refused(run):
    text = (run/'splits.csv').read_text().replace('00007,2,test', '00007,2,train')
    (run/'splits.csv').write_text(text)
    with pytest.raises(DataError, match='photo 00007 is train in .* of different runs'): full(run)
    assert not (run/'out').exists()


@pytest.mark.parametrize('name', ['card.json', 'history.csv', 'predictions.csv', 'splits.csv'])
def test_damaged_inputs_leave_the_old_report(run, name):
    full(run)
    before = {p.name: p.read_bytes() for p in (run/'out').iterdir()}
    (run/name).write_text('epoch,id,label,part,count\n' + 'x,1,1,test,1\n' if name == 'history.csv' else '{"broken')
    with pytest.raises(Exception) as e: full(run)
    assert '\n' not in str(e.value) and str(e.type.__module__).startswith('bin_counter')
    assert {p.name: p.read_bytes() for p in (run/'out').iterdir()} == before


def test_scorings_of_test_are_counted(run):
    assert [full(run)[0]['test_scored'] for _ in range(2)] == [1, 1]
    save(make(300, seed=9), run/'predictions.csv')
    m, text = full(run, splits=None)
    assert m['test_scored'] == 2 and 'Test was scored 2 times' in text
    (run/'out/metrics.json').write_text('damaged')
    assert full(run, splits=None)[0]['test_scored'] == 1


def test_valid_alone_says_so(tmp_path):
    m = evaluate(save(make(50, part='valid'), tmp_path/'p.csv'), tmp_path)
    assert 'test' not in m and m['test_scored'] == 0 and 'There are no test photos' in (tmp_path/'report.html').read_text()
    with pytest.raises(DataError, match='no photo of valid or test'): evaluate(save(make(50, part='train'), tmp_path/'p.csv'), tmp_path)


@pytest.mark.parametrize('labels,answers,says', [([3]*40 + [4]*40, [3]*40 + [4]*40, 'The model is better than that'), ([3, 4]*40, [4, 3]*40, 'The model is worse than that'),
                                                 ([3, 4, 3, 4]*9, [3, 3, 4, 4]*9, 'not clearly better'), ([3], [3], 'too few to compare')])
def test_the_headline_claims_no_more_than_the_interval(labels, answers, says):
    assert says in ev._headline_words(score_predictions(fixed(labels, answers)), 'test')


def test_the_import_is_light():
    code = "import sys, bin_counter.evaluate; print([m for m in ('torch', 'fastai', 'matplotlib', 'sklearn', 'cv2', 'PIL', 'boto3') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
