"Drawn bins: the same whatever the number of processes, countable, and in the real data's own form"
import json
from collections import Counter

import pytest
from PIL import Image

from bin_counter.core import ConfigError, DataError, file_hash, read_csv, read_manifest
from bin_counter.scene import LEVELS, Look, draw_bin
from bin_counter.synth import draw_bins


def hashes(folder):
    "Content of every file below a folder"
    return {str(p.relative_to(folder)): file_hash(p) for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "Sixty small bins, drawn by one process"
    out = tmp_path_factory.mktemp('drawn')
    return out, draw_bins(60, out, seed=5, size=96, low=0, high=6, workers=1)


@pytest.mark.parametrize('workers', [2, 3])
def test_same_bytes_for_any_number_of_processes(drawn, tmp_path, workers):
    draw_bins(60, tmp_path, seed=5, size=96, low=0, high=6, workers=workers)
    assert hashes(tmp_path) == hashes(drawn[0])


def test_another_seed_gives_other_photos_and_products(drawn, tmp_path):
    other = draw_bins(10, tmp_path, seed=6, size=96, low=0, high=6, workers=1)
    assert not {r.sha256 for r in other} & {r.sha256 for r in drawn[1]}
    assert not {a for r in other for a in r.asins} & {a for r in drawn[1] for a in r.asins}


def test_a_later_start_continues_the_same_series(drawn, tmp_path):
    part = draw_bins(20, tmp_path, seed=5, size=96, low=0, high=6, workers=1, start=30)
    assert [(r.id, r.sha256) for r in part] == [(r.id, r.sha256) for r in drawn[1][30:50]]
    assert min(r.group for r in part) == '00030'


def test_an_interrupted_run_is_completed_by_the_next(drawn, tmp_path, monkeypatch):
    import bin_counter.synth as synth
    real, calls = synth.write_json, []
    def stop(path, obj):
        calls.append(path)
        if len(calls) == 7: raise KeyboardInterrupt
        real(path, obj)
    monkeypatch.setattr(synth, 'write_json', stop)
    with pytest.raises(KeyboardInterrupt): draw_bins(60, tmp_path, seed=5, size=96, low=0, high=6, workers=1)
    assert not (tmp_path/'manifest.csv').exists()
    for p in (tmp_path/'bin-images').iterdir(): Image.open(p).load()
    monkeypatch.undo()
    draw_bins(60, tmp_path, seed=5, size=96, low=0, high=6, workers=1)
    assert hashes(tmp_path) == hashes(drawn[0])


def test_metadata_has_the_real_keys(drawn):
    "Keys as in https://registry.opendata.aws/amazon-bin-imagery/"
    out, records = drawn
    for r in records:
        meta = json.loads((out/'metadata'/f'{r.id}.json').read_text())
        assert set(meta) == {'BIN_FCSKU_DATA', 'EXPECTED_QUANTITY'}
        assert meta['EXPECTED_QUANTITY'] == r.label == r.quantity_sum == sum(p['quantity'] for p in meta['BIN_FCSKU_DATA'].values())
        for asin, p in meta['BIN_FCSKU_DATA'].items():
            assert set(p) == {'asin', 'height', 'length', 'name', 'normalizedName', 'quantity', 'weight', 'width'}
            assert p['asin'] == asin and len(asin) == 10 and p['quantity'] >= 1
            assert {p[k]['unit'] for k in ('height', 'length', 'width')} == {'IN'} and p['weight']['unit'] == 'pounds'


def test_records_fit_the_files(drawn):
    out, records = drawn
    assert read_manifest(out/'manifest.csv') == records
    for r in records:
        p = out/'bin-images'/f'{r.id}.jpg'
        with Image.open(p) as im: assert im.size == (r.width, r.height) and im.format == 'JPEG' and max(im.size) == 96
        assert (p.stat().st_size, file_hash(p)) == (r.bytes, r.sha256)


def test_groups_are_what_a_shared_product_joins(tmp_path):
    records = draw_bins(300, tmp_path, seed=2, size=64, low=0, high=5)
    joined = {r.id: r.id for r in records}
    def root(i): return i if joined[i] == i else root(joined[i])
    owner = {}
    for r in records:
        for a in r.asins:
            x, y = sorted((root(r.id), root(owner.setdefault(a, r.id))))
            joined[y] = x
    assert {r.id: r.group for r in records} == {i: root(i) for i in joined}
    following = sum(a.group == b.group for a, b in zip(records, records[1:]))
    assert .3 < following/299 < .5
    assert all(a.label != b.label for a, b in zip(records, records[1:]) if a.group == b.group)


def test_before_and_after_share_the_scene(tmp_path):
    "Two photos of one bin differ less than two photos of different bins"
    import numpy as np
    records = draw_bins(80, tmp_path, seed=3, size=96, workers=1)
    def pixels(r): return np.asarray(Image.open(tmp_path/'bin-images'/f'{r.id}.jpg').resize((48, 48)), float)
    gap = {True: [], False: []}
    for a, b in zip(records, records[1:]): gap[a.group == b.group].append(abs(pixels(a) - pixels(b)).mean())
    assert np.median(gap[True]) < .5*np.median(gap[False])


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('count', [0, 1, 5, 9, 20])
def test_every_item_is_in_view(level, count):
    for seed in range(4):
        photo, items = draw_bin(seed, count, 160, level)
        assert len(items) == count and max(photo.size) == 160
        assert all(i.visible >= LEVELS[level].visible for i in items)
        assert all(0 <= i.box[0] < i.box[2] <= photo.width and 0 <= i.box[1] < i.box[3] <= photo.height for i in items)


def test_an_item_changes_the_photo_where_its_box_says():
    "The drawing itself, not only the plan: taking out the last item changes the pixels in its box"
    import numpy as np
    from bin_counter.scene import named_rng, plan_bin, shoot
    for seed in range(12):
        scene = plan_bin(named_rng(seed, 'x'), 4, 224, Look(noise=0), seed)
        (full, items), (less, _) = (shoot(scene, n, named_rng(seed, 'y')) for n in (4, 3))
        change = abs(np.asarray(full, float) - np.asarray(less, float)).max(2)
        x0, y0, x1, y1 = items[-1].box
        assert (change[y0:y1, x0:x1] > 10).mean() > .15
        assert (change > 10).sum() > 60


def test_labels_follow_the_real_ones_or_are_uniform(tmp_path):
    from bin_counter.synth import _label
    real, even = (Counter(_label(0, i, 1, 5, u) for i in range(6000)) for u in (False, True))
    assert max(real, key=real.get) == 3 and min(real, key=real.get) == 1
    assert abs(real[3]/6000 - 1592/6259) < .02
    assert all(abs(even[c]/6000 - .2) < .02 for c in range(1, 6))


@pytest.mark.parametrize('low,high', [(1, 5), (0, 3), (2, 2)])
def test_wrong_records_are_known_to_truth_only(tmp_path, low, high):
    records = draw_bins(120, tmp_path, seed=4, size=64, low=low, high=high, wrong_records=.25)
    truth = {t['id']: int(t['drawn']) for t in read_csv(tmp_path/'truth.csv')}
    wrong = [r for r in records if r.label != truth[r.id] and truth[r.id] > 0]
    assert .1 < len(wrong)/120 < .4
    assert all(r.quantity_sum == r.label for r in records)
    assert all(low <= r.label <= high for r in records) or low == high
    clean = draw_bins(120, tmp_path, seed=4, size=64, low=low, high=high)
    assert [r.sha256 for r in clean] == [r.sha256 for r in records], 'the photos are the same, only the records differ'
    assert [r.group for r in clean] == [r.group for r in records]


@pytest.mark.parametrize('bad,says', [(dict(n=0), 'at least 1 bin'), (dict(low=-1), '0 or more'), (dict(low=3, high=2), 'not larger'), (dict(high=21), 'at most 20'), (dict(size=63), '64 to 1024'),
                                      (dict(workers=0), '1 or more'), (dict(start=-1), '0 or more'), (dict(wrong_records=1.5), '0 to 1'), (dict(look='odd'), 'choose one of')])
def test_bad_settings_are_one_line(tmp_path, bad, says):
    with pytest.raises(ConfigError, match=says) as e: draw_bins(**{**dict(n=3, out=tmp_path/'x'), **bad})
    assert '\n' not in str(e.value) and not (tmp_path/'x').exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(DataError, match='is a file, not a folder'): draw_bins(2, tmp_path/'file'/'x')


def test_photos_that_were_not_drawn_are_left_alone(tmp_path):
    (tmp_path/'bin-images').mkdir()
    (tmp_path/'bin-images'/'00001.jpg').write_bytes(b'mine')
    with pytest.raises(ConfigError, match='choose another folder'): draw_bins(2, tmp_path)
    assert [p.name for p in tmp_path.rglob('*.*')] == ['00001.jpg']


def test_a_killed_process_is_one_line(tmp_path, monkeypatch):
    import os, bin_counter.synth as synth
    monkeypatch.setattr(synth, '_draw_nth', lambda *a: os._exit(9))
    with pytest.raises(DataError, match='workers=1'): draw_bins(4, tmp_path, workers=2)
