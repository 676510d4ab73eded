"Drift and monitoring: captures of an endpoint that really answers, broken lines, simulated rates, ground truth, the queue, and the container as a schedule runs it."
import base64, io, json, os, random, sys, time, tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

np = pytest.importorskip('numpy')
pytest.importorskip('cv2', reason="photos are decoded by OpenCV: pip install 'bin_counter[serve]'")

from bin_counter.cloud import Asker, CloudError, Plan, Step, apply, check_requests
from bin_counter.core import ConfigError, DataError
from bin_counter.drift import (CaptureError, FolderPlace, Recounted, Seen, Window, check_reference, counts_change, cut_lines, energy_change, distances, holm, judge, make_reference,
                               open_place, read_capture, read_captures, read_recounts, recount_line, score_recounts, values_change)
from bin_counter.monitor import (Reviews, agreed, answer_review, collect_reviews, drawn, headline, main, metric_data, monitor, monitor_plan, monitor_request, read_job, render_monitor, review_name, stop_monitoring, violations)
from bin_counter.package import Package, count_photo
from bin_counter.plans import Project

TIME = '2026-11-21T10:05:00Z'


def wired(event='e1', answer=None, body=b'\xff\xd8photo', kind='image/jpeg', encoding='BASE64', time=TIME, **meta):
    "A captured line, written by hand from AWS's documentation"
    answer = dict(count=3, trust=.8, model=dict(package='abc')) if answer is None else answer
    data = base64.b64encode(body).decode() if encoding == 'BASE64' else body.decode()
    return json.dumps(dict(captureData=dict(endpointInput=dict(observedContentType=kind, mode='INPUT', encoding=encoding, data=data),
                                            endpointOutput=dict(observedContentType='application/json', mode='OUTPUT', encoding='JSON', data=json.dumps(answer))),
                           eventMetadata=dict(eventId=event, inferenceTime=time, **meta), eventVersion='0'))


@pytest.mark.parametrize('line, reason', [
    (None, 'line too long'), (b'', 'the line is not JSON'), (b'{"a": ', 'the line is not JSON'), (b'[1]', 'the line is no JSON object'), (b'\xff\xfe\x00', 'the line is not JSON'), (b'{}', 'not a captured request'),
    ('[' * 100_000, 'the line is not JSON'), (wired('').encode(), 'no event id'), (wired(time='yesterday'), 'no time'), (wired(answer=[]), 'the answer is no JSON object'), (wired(answer={}), 'the answer holds no count'),
    (wired(answer=dict(count=True, trust=.5)), 'the answer holds no count'), (wired(answer=dict(count=-1, trust=.5)), 'the answer holds no count'), (wired(answer=dict(count=3)), 'the answer holds no trust'),
    (wired(answer=dict(count=3, trust=1.2)), 'the answer holds no trust'), (wired(answer=dict(count=3, trust=float('nan'))), 'the answer holds no trust'),
    (wired().replace('"endpointOutput"', '"elsewhere"'), 'endpointOutput was not captured'), (wired().replace('"encoding": "JSON"', '"encoding": "BASE64"'), 'endpointOutput is not base64')])
def test_a_broken_line_has_a_reason(line, reason):
    with pytest.raises(CaptureError) as e: read_capture(line)
    assert str(e.value) == reason


@pytest.mark.parametrize('line, photo, lacks', [
    (wired(), b'\xff\xd8photo', ''),
    (wired(kind='image/png; charset=binary'), b'\xff\xd8photo', ''),
    (wired(kind='application/json', encoding='JSON', body=b'{"image": "' + base64.b64encode(b'photo') + b'"}'), b'photo', ''),
    (wired(kind='application/json', body=b'{"image": "' + base64.b64encode(b'photo') + b'"}'), b'photo', ''),
    (wired(kind='application/json', encoding='JSON', body=b'{"url": "http://169.254.169.254/latest"}'), b'', 'sent as an address, which is not fetched'),
    (wired(kind='application/json', encoding='JSON', body=b'{"image": 7}'), b'', 'the request holds no photo as base64'),
    (wired(kind='application/json', encoding='JSON', body=b'{"image": "%%"}'), b'', 'the request holds no photo as base64'),
    (wired(kind='application/json', encoding='JSON', body=b'{}'), b'', 'the request holds no photo as base64'),
    (wired().replace('"endpointInput"', '"elsewhere"'), b'', 'endpointInput was not captured')])
def test_a_photo_is_found_or_its_absence_has_a_reason(line, photo, lacks):
    seen = read_capture(line)
    assert (seen.photo, seen.lacks, seen.count) == (photo, lacks, 3)


@pytest.mark.parametrize('attributes, recorded', [(['recorded=4'], 4), (['explain=1,recorded=0'], 0), ('id=7, recorded=12', 12), (['recorded=-4'], None), (['xrecorded=4'], None), (['recorded=99999999'], None), (None, None), ({'a': 1}, None)])
def test_the_record_is_read_from_the_attributes(attributes, recorded):
    assert read_capture(wired(customAttributes=attributes)).recorded == recorded


def test_ids_and_answers():
    seen = read_capture(wired(answer=dict(count=2, trust=1, recorded=5, alarm=True, review=True, model=dict(package='abc')), inferenceId='pick-1', customAttributes=['recorded=4']))
    assert (seen.id, seen.event, seen.recorded, seen.alarm, seen.review, seen.package) == ('pick-1', 'e1', 5, True, True, 'abc')
    assert read_capture(wired(answer=dict(count=2, trust=1))).id == 'e1'


def test_nothing_is_dropped_in_silence(tmp_path):
    "Every line is either yielded or counted"
    place, skipped = open_place(tmp_path), Counter()
    lines = [wired(f'e{i}') for i in range(5)] + [wired('e1'), 'broken', '', wired('late', time='2026-11-21T11:00:00Z'), wired('e9').replace('"trust', '"rust')]
    place.write('v/2026/11/21/10/a.jsonl', '\n'.join(lines).encode())
    place.write('v/2026/11/20/10/a.jsonl', wired('old').encode())
    place.write('v/notes.txt', b'hello')
    found = [s.event for s in read_captures(place, skipped, '2026-11-21T10:00:00Z', '2026-11-21T11:00:00Z')]
    assert found == [f'e{i}' for i in range(5)]
    assert skipped == {'captured twice': 1, 'the line is not JSON': 1, 'outside of the time asked for': 1, 'the answer holds no trust': 1, 'file of another hour': 1, 'not a .jsonl file': 1}
    assert sum(skipped.values()) + len(found) == len([l for l in lines if l]) + 2


@pytest.mark.parametrize('seed', range(20))
def test_lines_are_cut_as_python_cuts_them(seed):
    rng = random.Random(seed)
    data = bytes(rng.choices(b'ab\n', k=rng.randrange(300)))
    want = data.split(b'\n')
    if want[-1] == b'': want.pop()
    assert list(cut_lines(io.BytesIO(data), 1000, rng.randrange(1, 40))) == want
    limit = rng.randrange(1, 6)
    assert list(cut_lines(io.BytesIO(data), limit, rng.randrange(1, 40))) == [None if len(l) > limit else l for l in want]


def test_a_line_of_gigabytes_is_not_held():
    class Endless:
        left = 300
        def read(self, n):
            self.left -= 1
            return b'x'*n if self.left > 0 else b'\nok' if self.left == 0 else b''
    tracemalloc.start()
    try:
        assert list(cut_lines(Endless(), limit=4_000_000)) == [None, b'ok']
        assert tracemalloc.get_traced_memory()[1] < 20_000_000 # of 300 MB
    finally: tracemalloc.stop()


def test_a_window_is_bounded():
    reference = dict(package='abc', size=32, answers={'3': 100}, trust=[.5]*100, brightness=[.5]*100, sharpness=[0.]*100, looks=[[0.]*36]*100)
    w = Window(reference)
    for i in range(6000): w.add(Seen(f'e{i}', f'e{i}', TIME, 3, i/6000, 'abc'))
    assert len(w.trust.rows) == 5000 and w.answers['3'] == 6000 and w.lacks == {'no photo': 6000}
    assert .45 < float(np.mean(w.trust.rows)) < .55 # not only the first
    assert not w.add(Seen('x', 'x', TIME, 3, .5, 'other')) and w.skipped == {'answered by another package than the reference': 1}
    assert w.add(Seen('y', 'y', TIME, 3, .5, 'abc', photo=b'1')) and not w.add(Seen('z', 'z', TIME, 3, .5, 'abc', photo=b'1')) and w.skipped['the same photo again'] == 1


def test_p_values_are_uniform_where_nothing_changed():
    "Each test of its own: 5% of p-values below 5%, within what 400 of them allow"
    rng = np.random.default_rng(1)
    ps = dict(counts=[], values=[], look=[])
    for _ in range(400):
        a, b = (dict(zip('12345', rng.multinomial(n, [.1, .2, .3, .3, .1]).tolist())) for n in (300, 80))
        ps['counts'].append(counts_change(a, b, rng, 499)[1])
        ps['values'].append(values_change(rng.normal(size=300), rng.normal(size=80))[1])
        ps['look'].append(energy_change(distances(rng.normal(size=(120, 36))), 80, rng, 199)[1])
    for name, p in ps.items(): assert .02 < np.mean(np.array(p) < .05) < .085, name


def test_tests_agree_with_scipy():
    stats = pytest.importorskip('scipy.stats')
    rng = np.random.default_rng(2)
    for n, m, shift in ((500, 60, 0), (500, 60, .4), (80, 400, .2)):
        a, b = rng.normal(size=n), rng.normal(shift, size=m)
        want = stats.ks_2samp(a, b, method='exact')
        d, p = values_change(a, b)
        assert d == pytest.approx(want.statistic) and p == pytest.approx(want.pvalue, abs=.02)
    a, b = [100, 200, 150], [30, 40, 50]
    psi, p = counts_change(dict(zip('123', a)), dict(zip('123', b)), rng)
    assert p == pytest.approx(stats.chi2_contingency([a, b])[1], abs=.02)
    assert counts_change({'1': 10}, {'1': 20}, rng)[1] == 1 # one class: nothing to compare
    x, y = rng.normal(size=40), rng.normal(1, size=30)
    energy = stats.energy_distance(x, y)**2 # of the empirical distributions, so pairs with themselves count
    d = np.abs(np.subtract.outer(np.concatenate([x, y]), np.concatenate([x, y]))).astype(np.float32)
    between, within = d[:40, 40:].mean(), (d[:40, :40].sum()/(40*39), d[40:, 40:].sum()/(30*29))
    effect, _ = energy_change(d, 40, rng, 99)
    assert effect == pytest.approx((2*between - sum(within))/(2*between), abs=1e-4)
    assert energy == pytest.approx(2*between - d[:40, :40].mean() - d[40:, 40:].mean(), abs=1e-4)


def test_judging():
    assert holm({}) == {} and holm(dict(a=.5)) == dict(a=.5)
    states = lambda **f: {k: v['state'] for k, v in judge(f).items()}
    assert states(counts=(100, .5, .0001), trust=(100, .01, .0001), brightness=(100, .9, .5), look=(49, .9, .0001)) == dict(counts='drift', trust='small', brightness='steady', look='too few')
    assert judge(dict(counts=(100, .5, .006), trust=(100, .5, .5)))['counts']['state'] == 'steady' # .006*2 is above .01
    assert judge(dict(counts=(100, .5, .006)), thresholds=dict(counts=.6))['counts']['state'] == 'small'


@pytest.mark.parametrize('change', [dict(format=2), dict(trust=[]), dict(trust=['a']), dict(looks=[1]), dict(answers=[]), dict(package=None), dict(brightness=[float('inf')])])
def test_a_damaged_reference_is_refused(change):
    good = dict(format=1, package='abc', answers={'1': 3}, trust=[.5], brightness=[.5], sharpness=[.5], looks=[[0.]*36])
    assert check_reference(good) == good
    with pytest.raises(DataError, match='make it again'): check_reference(good | change)


@pytest.fixture(scope='module')
def photos(bins): return [p.read_bytes() for p in sorted((bins/'bin-images').glob('*.jpg'))]


@pytest.fixture(scope='module')
def reference(package, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('reference')/'reference.json'
    made = make_reference(Package.load(package), photos, [3]*len(photos), out)
    assert json.loads(out.read_text()) == made
    return out


def darker(photo, by=.55):
    from PIL import Image, ImageEnhance
    out = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(photo))).enhance(by).save(out, 'JPEG', quality=92)
    return out.getvalue()


def test_a_reference_holds_what_the_counter_says(package, photos, reference):
    made, counter = json.loads(reference.read_text()), Package.load(package)
    answers = [count_photo(counter, p) for p in photos]
    assert made['answers'] == {k: v for k, v in sorted(Counter(str(a['count']) for a in answers).items())}
    assert made['trust'] == pytest.approx(sorted(a['trust'] for a in answers), abs=1e-3)
    assert made['card_sha256'] == counter.sha256 and made['scored']['photos'] == len(photos) and made['size'] == counter.card.preprocess.size
    assert made == make_reference(counter, photos, [3]*len(photos)) # the same again
    few = make_reference(counter, photos + [b'', b'no photo'], most=10**6)
    assert few['unreadable'] == {'the file is empty': 1, 'not a JPEG or PNG photo': 1} and few['photos'] == len(photos)


def capture_folder(folder, package, photos, prefix, changed=lambda p: p, recorded=None):
    "Answers of a real package, as a folder of captures"
    counter, lines = Package.load(package), []
    for i, p in enumerate(map(changed, photos)):
        lines.append(wired(f'{prefix}-{i}', count_photo(counter, p, recorded), p))
    FolderPlace(Path(folder)).write('v/2026/11/21/10/05-00.jsonl', '\n'.join(lines).encode())


def test_no_drift_is_silent_and_darkness_rings(package, photos, reference, tmp_path):
    capture_folder(tmp_path/'same', package, photos[::2], 'a')
    capture_folder(tmp_path/'dark', package, photos[::2], 'b', darker)
    same, dark = (monitor(tmp_path/name, reference, tmp_path/f'out-{name}', endpoint='bins-counter') for name in ('same', 'dark'))
    assert same['state'] == 'steady' and same['answers'] == same['photos'] == 60
    assert dark['state'] == 'drift' and dark['figures']['brightness']['state'] == 'drift'
    assert json.loads((tmp_path/'out-dark/drift.json').read_text()) == dark
    assert violations(same) == dict(violations=[]) and {v['feature_name'] for v in violations(dark)['violations']} >= {'brightness'}
    assert 'brightness' in headline(dark).lower() and 'not known: no answer was recounted' in headline(dark)


def test_no_answers_and_another_package(package, photos, reference, tmp_path):
    empty = monitor(tmp_path/'nothing', reference, tmp_path/'out')
    assert empty['state'] == 'too few' and empty['answers'] == 0 and 'too few' in headline(empty)
    assert {d['MetricName'] for d in metric_data(empty)} >= {'runs', 'answers'} and 'drift' not in {d['MetricName'] for d in metric_data(empty)}
    FolderPlace(tmp_path/'other').write('a.jsonl', wired(answer=dict(count=3, trust=.5, model=dict(package='f'*12)), body=photos[0]).encode())
    other = monitor(tmp_path/'other', reference, tmp_path/'out')
    assert 'make a reference for it' in headline(other) and next(d['Value'] for d in metric_data(other) if d['MetricName'] == 'stale') == 1


def test_the_page_escapes_what_it_was_sent(package, photos, reference, tmp_path):
    capture_folder(tmp_path/'c', package, photos[:60], 'a')
    report = monitor(tmp_path/'c', reference, tmp_path/'out', endpoint='<script>alert(1)</script>')
    page = render_monitor(report)
    assert '<script' not in page and '&lt;script&gt;' in page and 'http-equiv' not in page


# ground truth

def filled(rows):
    "Recounted from (kind, trust, count, recount, recorded); a recount of None was not made"
    r = Recounted()
    for i, (kind, trust, count, recount, recorded) in enumerate(rows): r.add(Seen(str(i), str(i), TIME, count, trust, recorded=recorded), kind, recount)
    return r


def test_recounts_are_weighted_by_stratum():
    "100 doubtful answers all recounted, half right; 900 others of which 90 recounted, nine in ten right: .1*.5 + .9*.9"
    rows = [('review', .4, 3, 3 if i % 2 else 4, None) for i in range(100)] + [('other', .9, 3, None if i >= 90 else 3 if i % 10 else 5, None) for i in range(900)]
    scores = score_recounts(filled(rows), dict(scored=dict(photos=1000, right=960, within_one=990)))
    assert scores['accuracy']['value'] == pytest.approx(.86) and scores['accuracy']['low'] < .86 < scores['accuracy']['high']
    assert scores['within_one']['value'] == pytest.approx(.1 + .9*.9) and scores['overconfidence']['value'] == pytest.approx(.85 - .86, abs=1e-9)
    assert scores['by_stratum']['other'] == dict(answers=900, recounted=90) and scores['recounted'] == 190
    assert scores['worse'] is True # held-out photos had 96%
    assert score_recounts(filled(rows), dict(scored=dict(photos=1000, right=860, within_one=990)))['worse'] is False
    assert score_recounts(filled(rows), {})['expected'] is None
    mixed = rows[:100] + [('alarm', .95, 3, 4, 4)]*10 + rows[100:] # ten alarms, all because the answer was wrong: they stand for themselves only
    assert score_recounts(filled(mixed), {})['calibration'] == [dict(low=.4, high=.6, n=100, said=.4, right=.5), dict(low=.8, high=1., n=100, said=pytest.approx((900*.9 + 10*.95)/910, abs=1e-4), right=pytest.approx(900*.9/910, abs=1e-4))]
    assert [c['low'] for c in score_recounts(filled(mixed[:110] + [('other', .9, 3, None, None)]*900), {})['calibration']] == [.4]


def test_alarms_are_scored_by_what_nobody_suspected_too():
    "10 alarms, 8 of wrong records; 90 others of which 45 recounted, 1 of them wrong and so 2 of 90: recall 8/10"
    rows = [('alarm', .9, 3, 3, 4 if i < 8 else 3) for i in range(10)] + [('other', .9, 3, None if i >= 45 else 3, 4 if i == 0 else 3) for i in range(90)]
    scores = score_recounts(filled(rows), {})
    assert scores['alarm_precision']['value'] == pytest.approx(.8) and scores['alarm_recall']['value'] == pytest.approx(.8)
    assert scores['alarm_recall']['low'] < .8 < scores['alarm_recall']['high']
    silent = score_recounts(filled([r for r in rows if r[0] == 'alarm'] + [('other', .9, 3, None, 3)]*90), {})
    assert silent['accuracy']['value'] is None and silent['alarm_precision']['value'] == pytest.approx(.8) and silent['alarm_recall']['value'] is None and 'other' in silent['notes'][0]
    assert score_recounts(filled([]), {})['accuracy'] == dict(value=None, low=None, high=None, n=0)


def test_recounts_join_by_either_id(package, photos, reference, tmp_path):
    counter, answer = Package.load(package), None
    lines = []
    for i, p in enumerate(photos[:60]):
        answer = count_photo(counter, p)
        lines.append(wired(f'event-{i}', answer, p, **(dict(inferenceId=f'pick-{i}') if i % 2 else {})))
    FolderPlace(tmp_path/'c').write('a.jsonl', '\n'.join(lines).encode())
    truth = [recount_line(f'pick-{i}' if i % 2 else f'event-{i}', 3) for i in range(40)] + [recount_line('event-41', 3), recount_line('nobody', 3), 'broken', recount_line('x', 3).replace('"3"', '"three"')]
    FolderPlace(tmp_path/'t').write('2026/11/21/11/a.jsonl', '\n'.join(truth).encode())
    report = monitor(tmp_path/'c', reference, tmp_path/'out', tmp_path/'t')
    assert report['recounts']['recounted'] == 41 # event-41 has an inference id, and is found by its event all the same
    assert report['unread_recounts'] == {'the line is not JSON': 1, 'the recount is no whole number': 1}


# the queue

def test_the_queue_is_idempotent_and_becomes_ground_truth(package, photos, reference, tmp_path):
    capture_folder(tmp_path/'c', package, photos[:60], 'a', recorded=5)
    first = monitor(tmp_path/'c', reference, tmp_path/'out', tmp_path/'t', tmp_path/'q', share=.5)
    queue, before = FolderPlace(tmp_path/'q'), {p: p.read_bytes() for p in (tmp_path/'q').rglob('*') if p.is_file()}
    assert first['reviews']['open'] == len(list(queue.names('open/'))) > 10
    again = monitor(tmp_path/'c', reference, tmp_path/'out', tmp_path/'t', tmp_path/'q', share=.5)
    assert {p: p.read_bytes() for p in (tmp_path/'q').rglob('*') if p.is_file()} == before and set(again['reviews']['here']) == {'queued before'}
    names = [Path(n).stem for n in queue.names('open/')]
    for n in names[:5]: answer_review(queue, n, 4, 'ada')
    third = monitor(tmp_path/'c', reference, tmp_path/'out', tmp_path/'t', tmp_path/'q', share=.5)
    assert third['recounts']['recounted'] == 5 and third['reviews'] == {**third['reviews'], 'done': 5, 'open': len(names) - 5}
    assert len(list(FolderPlace(tmp_path/'t').names())) == 5
    with pytest.raises(ConfigError, match='whole number'): answer_review(queue, names[6], '4')


def test_an_answer_that_was_cut_off_counts_as_done(tmp_path, photos):
    "Killed between writing done/ and removing from open/"
    seen, queue = Seen('e', 'e', TIME, 3, .2, photo=photos[0]), Reviews(FolderPlace(tmp_path))
    queue.add(seen, 'review')
    task = (tmp_path/f'open/{review_name("e")}.json').read_bytes()
    answer_review(queue.place, review_name('e'), 2)
    (tmp_path/f'open/{review_name("e")}.json').write_bytes(task)
    later = Reviews(FolderPlace(tmp_path))
    assert later.open == set() and later.done == {review_name('e')} and later.add(seen, 'review') and later.counts == {'queued before': 1}


def test_the_queue_ends_and_chance_is_fair(tmp_path, photos):
    queue = Reviews(FolderPlace(tmp_path), most=3)
    for i in range(5): queue.add(Seen(f'e{i}', f'e{i}', TIME, 3, .2, photo=photos[i]), 'alarm')
    assert queue.counts == {'alarm': 3, 'queue full': 2} and len(list(queue.place.names('photos/'))) == 3
    assert not any(drawn(f'{i}', 0) for i in range(1000)) and all(drawn(f'{i}', 1) for i in range(1000))
    assert 430 < sum(drawn(f'{i}', .05) for i in range(10_000)) < 570


@pytest.mark.parametrize('answers, count', [([3], 3), ([3, 4, 3], 3), ([3, 4], None), ([], None), (['x'], None), ([None, 5], 5)])
def test_people_agree_or_not(answers, count): assert agreed(dict(humanAnswers=[dict(answerContent=dict(count=a)) for a in answers])) == count


def test_damaged_reviews_are_counted(tmp_path):
    place, skipped = FolderPlace(tmp_path/'q'), Counter()
    good = dict(inputContent=dict(id='a'), humanAnswers=[dict(answerContent=dict(count=2), submissionTime=TIME)])
    for name, content in dict(a=good, b={}, c=dict(good, inputContent={}), d=dict(good, humanAnswers=7), e=dict(good, humanAnswers=[dict(answerContent=dict(count=2))])).items(): place.write(f'done/{name}.json', json.dumps(content).encode())
    place.write('done/f.json', b'{')
    assert collect_reviews(place, FolderPlace(tmp_path/'t'), skipped) == 1 and sum(skipped.values()) == 5
    assert read_recounts(FolderPlace(tmp_path/'t'), Counter()) == {'a': 2}


# the container and its plan

@pytest.mark.parametrize('change, said', [(dict(dataset_source=''), 'dataset_source must be set'), (dict(baseline_statistics=''), 'baseline_statistics must be set'), (dict(BIN_COUNTER_HOURS='x'), 'whole number of hours'),
                                          (dict(BIN_COUNTER_HOURS='1', end_time='now'), 'end_time'), (dict(BIN_COUNTER_ALPHA='x'), 'must be numbers')])
def test_the_environment_is_checked(change, said, tmp_path, capsys):
    env = dict(dataset_source='in', output_path=str(tmp_path/'out'), baseline_statistics='r.json', SAGEMAKER_BASE_DIR=str(tmp_path)) | change
    with pytest.raises(ConfigError, match=said): read_job(env)
    assert main(env) == 1 and said in (tmp_path/'output/message').read_text() and said in capsys.readouterr().err


@pytest.mark.parametrize('every', ['hourly', 'daily'])
@pytest.mark.parametrize('by', ['scheduler', 'model-monitor'])
@pytest.mark.parametrize('project', [Project(), Project('a'*20, 'cn-north-1', '123456789012', 'arn:aws-cn:iam::123456789012:role/service-role/x')])
def test_plans_are_what_aws_takes(every, by, project, reference):
    plan = monitor_plan(project, reference, every, 'a@example.com', by)
    assert check_requests(plan) == len(plan.steps) and all(c.usd >= 0 for c in plan.charges)
    inner = [json.loads(s.request['Target']['Input']) for s in plan.steps if s.operation == 'CreateSchedule']
    for request in inner:
        check_requests(Plan('x', 'x', '', (Step('x', 'sagemaker', 'CreateProcessingJob', request),)))
        assert len(request['ProcessingJobName'].replace('<aws.scheduler.execution-id>', '0'*36)) <= 63
    alarms = [s.request for s in plan.steps if s.operation == 'PutMetricAlarm']
    assert len(alarms) == 4 and all(a['Period']*a['EvaluationPeriods'] <= 7*86400 for a in alarms)
    tagged = [s for s in plan.steps if s.operation.startswith('Create') and s.operation != 'CreateSchedule'] # that one is tagged by its group
    assert all(dict(Key='bin_counter', Value=project.name) in s.request['Tags'] for s in tagged)


@pytest.mark.parametrize('operation, code, message, sent', [('CreateSchedule', 'ConflictException', 'Schedule bins-monitor already exists.', ['CreateSchedule', 'UpdateSchedule']), ('CreateScheduleGroup', 'ConflictException', 'There is one.', ['CreateScheduleGroup']),
                                                            ('CreateMonitoringSchedule', 'ResourceInUse', 'Monitoring Schedule already exists', ['CreateMonitoringSchedule', 'UpdateMonitoringSchedule'])])
def test_a_schedule_that_is_there_is_changed(operation, code, message, sent, monkeypatch):
    "moto lets a schedule be created twice; AWS does not"
    from botocore.exceptions import ClientError
    from bin_counter.cloud import SPECIAL, explain
    asked = []
    class Cloud(Asker):
        def ask(self, service, operation, **request):
            asked.append((operation, request))
            if operation.startswith('Create'):
                e = ClientError(dict(Error=dict(Code=code, Message=message)), operation)
                raise explain(e, service, operation) from e
    step = next(s for by in ('scheduler', 'model-monitor') for s in monitor_plan(BINS, 'r.json', by=by).steps if s.operation == operation)
    SPECIAL[operation](Cloud('us-east-1', say=str), step, step.request)
    assert [o for o, _ in asked] == sent and 'Tags' not in asked[-1][1] or len(sent) == 1
    code, message = 'AccessDeniedException', 'no'
    with pytest.raises(CloudError, match='access denied'): SPECIAL[operation](Cloud('us-east-1', say=str), step, step.request)


def test_the_container_needs_only_what_the_image_has(reference, package, photos, tmp_path):
    "As in our image: no torch, fastai, scipy, sklearn, matplotlib, moto, sagemaker"
    import subprocess
    capture_folder(tmp_path/'c', package, photos[:60], 'a')
    code = ('import sys\nclass No:\n def find_spec(self, name, *a):\n  if name.split(".")[0] in ("torch", "torchvision", "fastai", "scipy", "sklearn", "matplotlib", "moto", "sagemaker", "pandas"): raise ImportError(name)\n'
            'sys.meta_path.insert(0, No())\nfrom bin_counter.monitor import main\nsys.exit(main())')
    env = os.environ | dict(dataset_source=str(tmp_path/'c'), output_path=str(tmp_path/'out'), baseline_statistics=str(reference), publish_cloudwatch_metrics='Disabled', SAGEMAKER_BASE_DIR=str(tmp_path), end_time='2026-11-21T11:00:00Z',
                            start_time='2026-11-21T10:00:00Z', PYTHONPATH=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path/'out/20261121T110000Z/drift.json').read_text())['answers'] == 60


# the whole of it, in the emulated cloud

BINS = Project('bins', account='123456789012', role='arn:aws:iam::123456789012:role/bins', bucket='bins')


@pytest.fixture(scope='module')
def aws(tmp_path_factory, package, reference):
    "An emulated cloud with a real endpoint that captures everything"
    pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")
    from bin_counter.emulator import Emulator
    with Emulator(tmp_path_factory.mktemp('aws'), settings=dict(capture=.2, grace=1, pace=.02, start=60)) as aws:
        if aws.mode != 'namespaces': pytest.skip('this machine permits no namespaces: run as root on Linux')
        s3, sm = aws.client('s3'), aws.client('sagemaker')
        s3.create_bucket(Bucket='bins')
        s3.put_object(Bucket='bins', Key='packages/a/model.tar.gz', Body=package.read_bytes())
        sm.create_model(ModelName='m', ExecutionRoleArn=BINS.role, PrimaryContainer=dict(Image=BINS.image, ModelDataUrl='s3://bins/packages/a/model.tar.gz'))
        capture = dict(EnableCapture=True, InitialSamplingPercentage=100, DestinationS3Uri='s3://bins/captured', CaptureOptions=[dict(CaptureMode='Input'), dict(CaptureMode='Output')], CaptureContentTypeHeader=dict(JsonContentTypes=['application/json']))
        sm.create_endpoint_config(EndpointConfigName='c', ProductionVariants=[dict(VariantName='v', ModelName='m', InstanceType='ml.m5.large', InitialInstanceCount=1)], DataCaptureConfig=capture)
        sm.create_endpoint(EndpointName=BINS.endpoint, EndpointConfigName='c')
        said = wait(lambda: (d := sm.describe_endpoint(EndpointName=BINS.endpoint))['EndpointStatus'] != 'Creating' and d, 'the endpoint')
        assert said['EndpointStatus'] == 'InService', said.get('FailureReason')
        yield aws


def wait(ready, why, seconds=60):
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, f'waited {seconds} s for {why}'
        time.sleep(.1)
    return found


def ask_all(aws, photos, prefix):
    "Send photos to the endpoint, and wait until they are captured"
    runtime, s3 = aws.client('sagemaker-runtime'), aws.client('s3')
    for i, p in enumerate(photos):
        if i % 3: body, kind, attributes = p, 'image/jpeg', dict(CustomAttributes='recorded=4')
        else: body, kind, attributes = json.dumps(dict(image=base64.b64encode(p).decode(), recorded=4)).encode(), 'application/json', {}
        runtime.invoke_endpoint(EndpointName=BINS.endpoint, Body=body, ContentType=kind, InferenceId=f'{prefix}-{i}', **attributes)
    def arrived():
        found = [o['Key'] for o in s3.list_objects_v2(Bucket='bins', Prefix=f'captured/{BINS.endpoint}/').get('Contents', [])]
        lines = b'\n'.join(s3.get_object(Bucket='bins', Key=k)['Body'].read() for k in found)
        return lines.count(f'"inferenceId": "{prefix}-'.encode()) == len(photos)
    wait(arrived, 'captures')


def run_monitor(aws):
    "Run the schedule, and give its execution's summary"
    time.sleep(1.1) # the window ends with this second, and does not hold it
    job = aws.run_schedule(BINS.schedule)
    def ended():
        d = aws.client('sagemaker').describe_processing_job(ProcessingJobName=job)
        return d['ProcessingJobStatus'] in ('Completed', 'Failed', 'Stopped') and d
    said = wait(ended, 'the monitor')
    return said, aws.client('sagemaker').list_monitoring_executions(MonitoringScheduleName=BINS.schedule)['MonitoringExecutionSummaries'][0]


def latest(aws, prefix='monitor/'):
    "The newest drift.json"
    found = [o for o in aws.client('s3').list_objects_v2(Bucket='bins', Prefix=prefix).get('Contents', []) if o['Key'].endswith('drift.json')]
    return json.loads(aws.client('s3').get_object(Bucket='bins', Key=max(found, key=lambda o: (o['LastModified'], o['Key']))['Key'])['Body'].read())


def ring(aws):
    "State of every alarm, from its own definition and the metrics that were put: moto evaluates no alarm by itself"
    from datetime import datetime, timedelta, timezone
    cw, now = aws.client('cloudwatch'), datetime.now(timezone.utc)
    compare = dict(GreaterThanOrEqualToThreshold=lambda v, t: v >= t, LessThanThreshold=lambda v, t: v < t)
    for a in cw.describe_alarms(AlarmNamePrefix=BINS.schedule)['MetricAlarms']:
        points = cw.get_metric_statistics(Namespace=a['Namespace'], MetricName=a['MetricName'], Dimensions=a['Dimensions'], StartTime=now - timedelta(seconds=a['Period']), EndTime=now + timedelta(seconds=60), Period=2*a['Period'], Statistics=[a['Statistic']])['Datapoints']
        bad = compare[a['ComparisonOperator']](points[0][a['Statistic']], a['Threshold']) if points else a['TreatMissingData'] == 'breaching'
        cw.set_alarm_state(AlarmName=a['AlarmName'], StateValue='ALARM' if bad else 'OK', StateReason='as its definition says')
    return {a['AlarmName'].removeprefix(f'{BINS.schedule}-'): a['StateValue'] for a in cw.describe_alarms(AlarmNamePrefix=BINS.schedule)['MetricAlarms']}


def test_an_endpoint_is_watched(aws, photos, reference, tmp_path):
    "Silent without drift, an alarm after the lamps went, both by the schedule's own container"
    said = []
    with aws.active():
        apply(monitor_plan(BINS, reference, 'hourly', by='model-monitor'), say=said.append, poll=.1)
        apply(monitor_plan(BINS, reference, 'hourly', by='model-monitor'), say=said.append, poll=.1)
    assert '    it was there, and is changed' in said
    assert ring(aws) == dict(drift='OK', worse='OK', stale='OK', silent='ALARM') # nothing has run yet
    ask_all(aws, photos[::2], 'day')
    job, execution = run_monitor(aws)
    assert job['ProcessingJobStatus'] == 'Completed', job
    assert execution['MonitoringExecutionStatus'] == 'Completed' and job['ExitMessage'].startswith('Completed: ')
    report = latest(aws)
    assert (report['state'], report['answers'], report['photos'], report['endpoint']) == ('steady', 60, 60, BINS.endpoint) and report['skipped'] == {}
    assert ring(aws) == dict(drift='OK', worse='OK', stale='OK', silent='OK')
    ask_all(aws, [darker(p) for p in photos[1::2]], 'night')
    job, execution = run_monitor(aws)
    assert execution['MonitoringExecutionStatus'] == 'CompletedWithViolations', job
    assert latest(aws)['figures']['brightness']['state'] == 'drift' and latest(aws)['answers'] == 120
    assert ring(aws)['drift'] == 'ALARM'
    listed = json.loads(aws.client('s3').get_object(Bucket='bins', Key='monitor/constraint_violations.json')['Body'].read())
    assert 'brightness' in {v['feature_name'] for v in listed['violations']}
    with aws.active(): assert 'monitoring schedule' in stop_monitoring(Asker('us-east-1', say=said.append), BINS)
    assert aws.client('sagemaker').list_monitoring_schedules()['MonitoringScheduleSummaries'] == []


def test_the_request_of_the_scheduler_runs(aws, photos, reference):
    "What EventBridge Scheduler would send, sent: captures are read from S3 by the job, reviews and recounts lie there"
    from datetime import datetime, timedelta, timezone
    s3, sm, said = aws.client('s3'), aws.client('sagemaker'), []
    with aws.active():
        apply(monitor_plan(BINS, reference), say=said.append, poll=.1)
        apply(monitor_plan(BINS, reference), say=said.append, poll=.1)
    assert aws.client('scheduler').get_schedule(Name=BINS.schedule, GroupName=BINS.schedule)['ScheduleExpression'] == 'cron(15 6 * * ? *)'
    ask_all(aws, [darker(p, .9) for p in photos[:30]], 'more')
    asker = Asker('us-east-1', say=said.append)
    def run(name):
        soon = f'{datetime.now(timezone.utc) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}'
        sm.create_processing_job(**monitor_request(BINS, 48, soon, name))
        done = wait(lambda: (d := sm.describe_processing_job(ProcessingJobName=name))['ProcessingJobStatus'] in ('Completed', 'Failed') and d, name)
        assert done['ProcessingJobStatus'] == 'Completed', done
        return latest(aws)
    first = run('one')
    assert first['reviews']['open'] > 0 and first['recounts']['recounted'] == 0
    with aws.active():
        queue = open_place('s3://bins/reviews', asker)
        names = [Path(n).stem for n in queue.names('open/')]
        for n in names[:4]: answer_review(queue, n, 3, 'ada')
    second = run('two')
    assert second['recounts']['recounted'] == 4 and second['reviews']['done'] == 4 and second['reviews']['open'] == len(names) - 4
    assert len(s3.list_objects_v2(Bucket='bins', Prefix='recounts/')['Contents']) == 4
    with aws.active():
        local = monitor('s3://bins/captured/bins-counter', reference, '/'.join(('s3://bins', 'by-hand')), 's3://bins/recounts', aws=asker)
    assert local['answers'] == second['answers'] and latest(aws, 'by-hand/') == local


def test_only_what_is_ours_is_removed(aws, reference):
    said, cw, sns, cats = [], aws.client('cloudwatch'), aws.client('sns'), replace(BINS, name='cats')
    cw.put_metric_alarm(AlarmName='cats-monitor-drift', Namespace='x', MetricName='x', Statistic='Sum', Period=60, EvaluationPeriods=1, Threshold=1, ComparisonOperator='LessThanThreshold') # somebody else's
    theirs = sns.create_topic(Name='cats-monitor', Tags=[dict(Key='bin_counter', Value='bins')])['TopicArn'] # another project's
    asker = Asker('us-east-1', say=said.append)
    with aws.active():
        apply(monitor_plan(BINS, reference), say=said.append, poll=.1)
        assert stop_monitoring(asker, cats) == []
        assert stop_monitoring(asker, BINS) == ['schedule', *(f'alarm bins-monitor-{a}' for a in ('drift', 'worse', 'stale', 'silent')), 'topic']
        assert not {'schedule', 'topic'} & set(stop_monitoring(asker, BINS)) # moto remembers the tags of alarms that are gone
    assert [a['AlarmName'] for a in cw.describe_alarms()['MetricAlarms']] == ['cats-monitor-drift'] and [t['TopicArn'] for t in sns.list_topics()['Topics']] == [theirs]
    assert all(g['Name'] != BINS.schedule for g in aws.client('scheduler').list_schedule_groups()['ScheduleGroups'])
    assert aws.client('s3').list_objects_v2(Bucket='bins', Prefix='monitor/reference.json')['KeyCount'] == 1


def test_refusals_of_s3_are_one_line(aws, reference, tmp_path):
    with aws.active():
        with pytest.raises(CloudError, match='s3:'): monitor('s3://no-such-bucket-here/captured', reference, tmp_path)
        with pytest.raises(BaseException, match='make a reference|NoSuchKey|does not exist'): monitor('s3://bins/captured', 's3://bins/nowhere.json', tmp_path)
