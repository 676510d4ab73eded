"Looking at photos: faults are found and listed, never fatal; the fast search for twins misses none"
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bin_counter.core import BinRecord, ConfigError, DataError, read_csv
from bin_counter.explore import (BinPair, blur, find_pairs, format_quality, measure_photos, near_duplicates, phash, plot_balance, plot_light, plot_pairs,
                                 plot_samples, plot_sizes, quality_report, unpadded_ids)
from bin_counter.scene import draw_bin
from bin_counter.synth import draw_bins


@pytest.fixture
def drawn(tmp_path):
    "Twenty-four drawn bins, all different from each other"
    records = [r for r in draw_bins(40, tmp_path, seed=9, size=128, workers=1)]
    seen, out = set(), []
    for r in records:
        if r.group not in seen: out.append(r)
        seen.add(r.group)
    return tmp_path, out[:24]


def brute(hashes, distance):
    "Every pair, compared"
    ids = sorted(hashes)
    return sorted((b, a, d) for i, a in enumerate(ids) for b in ids[i + 1:] if (d := (hashes[a] ^ hashes[b]).bit_count()) <= distance)


@pytest.mark.parametrize('distance', [0, 1, 2, 3, 4, 6, 10, 16])
def test_no_near_duplicate_is_missed(distance):
    rng = random.Random(distance)
    hashes = {f'{i:04}': rng.getrandbits(64) for i in range(300)}
    for i in range(0, 200, 2): hashes[f'{i:04}'] = hashes[f'{i + 1:04}'] ^ sum(1 << b for b in rng.sample(range(64), rng.randint(1, distance + 2)))
    found = near_duplicates(hashes, distance)
    assert found == brute(hashes, distance) and (found or distance == 0)


def test_bits_that_differ_in_few_places_are_found_wherever_they_are():
    "Every single bit, and the extremes of the range"
    for bit in range(64): assert near_duplicates({'a': 0, 'b': 1 << bit}, 1) == [('b', 'a', 1)]
    assert near_duplicates({'a': 0, 'b': 2**64 - 1}, 30) == []
    assert near_duplicates({'a': 2**64 - 1, 'b': 2**64 - 2}) == [('b', 'a', 1)]
    assert near_duplicates({}) == near_duplicates({'a': 5}) == []


def test_a_thousand_equal_hashes_give_a_thousand_rows():
    found = near_duplicates({f'{i:04}': 7 for i in range(1000)})
    assert len(found) == 999 and {f[1:] for f in found} == {('0000', 0)}


def test_a_cluster_of_close_hashes_is_searched_quickly():
    "Hashes with one common half would fill one bucket of a single band"
    rng = random.Random(1)
    hashes = {f'{i:05}': rng.getrandbits(32) for i in range(3000)}
    assert near_duplicates(hashes, 2) == brute(hashes, 2)


def test_phash_is_imagehash_on_the_grey_square():
    import cv2, imagehash
    img = np.random.default_rng(0).integers(0, 255, (120, 180, 3), np.uint8)
    square = cv2.resize(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), (224, 224), interpolation=cv2.INTER_AREA)
    assert f'{phash(img):016x}' == str(imagehash.phash(Image.fromarray(square)))


def test_sharpness_falls_with_blur_and_not_with_size():
    import cv2
    img = np.asarray(draw_bin(2, 3, 640)[0])
    figures = [blur(img if s == 0 else cv2.GaussianBlur(img, (0, 0), s)) for s in (0, 2, 4, 8)]
    assert figures == sorted(figures, reverse=True) and figures[-1] < .2*figures[0]
    half = cv2.resize(img, None, fx=.5, fy=.5, interpolation=cv2.INTER_AREA)
    assert abs(blur(half)/figures[0] - 1) < .35


def spoil(folder, records):
    "Five faults, by id"
    photo = {r.id: folder/'bin-images'/f'{r.id}.jpg' for r in records}
    ids = [r.id for r in records]
    photo[ids[1]].write_bytes(photo[ids[1]].read_bytes()[:900])
    photo[ids[2]].write_bytes(b'<html>not found</html>')
    photo[ids[3]].write_bytes(b'')
    photo[ids[4]].unlink()
    photo[ids[5]].unlink()
    photo[ids[5]].mkdir()
    return {ids[1]: 'damaged', ids[2]: 'damaged', ids[3]: 'damaged', ids[4]: 'missing', ids[5]: 'damaged'}


@pytest.mark.parametrize('workers', [1, 4])
def test_faults_are_listed_and_not_fatal(drawn, workers):
    folder, records = drawn
    faults = spoil(folder, records)
    measures = measure_photos(records, folder, workers)
    assert [m.id for m in measures] == [r.id for r in records]
    assert {m.id: m.fault for m in measures if m.fault} == faults
    assert all(m.detail and '\n' not in m.detail and str(folder) not in m.detail for m in measures if m.fault)
    rows = quality_report(records, folder, folder/'q.csv', measures=measures)
    assert {r.id: r.reason for r in rows if r.reason in ('missing', 'damaged')} == faults
    assert f"{'damaged':18}       4" in format_quality(rows, len(records))


def test_twins_and_their_labels(drawn):
    folder, records = drawn
    images = folder/'bin-images'
    shutil.copy(images/f'{records[0].id}.jpg', images/f'{records[1].id}.jpg')
    im = Image.open(images/f'{records[2].id}.jpg').convert('RGB')
    im.resize((im.width//2, im.height//2), Image.Resampling.BOX).save(images/f'{records[3].id}.jpg', quality=90)
    rows = quality_report(records, folder, folder/'q.csv')
    twins = {(r.id, r.reason, r.other) for r in rows if r.other}
    assert twins == {(records[1].id, 'exact_duplicate', records[0].id), (records[3].id, 'near_duplicate', records[2].id)}
    differ = [r.detail for r in rows if r.reason == 'exact_duplicate'][0]
    assert differ.endswith('differ') == (records[0].label != records[1].label)
    assert read_csv(folder/'q.csv', ['id', 'reason', 'detail', 'other']) == [dict(id=r.id, reason=r.reason, detail=r.detail, other=r.other) for r in rows]


@pytest.mark.parametrize('ids,wanted', [(['00007', '00008'], [('00007', '00008')]), (['99999', '100000'], [('99999', '100000')]), (['7', '00008'], []), (['999', '1000'], [('999', '1000')]),
                                        (['00007', '00009'], []), (['a7', 'a8'], []), (['²', '3'], [])])
def test_adjacent_ids(ids, wanted):
    records = [BinRecord(i, k + 1, asins=('B1', f'C{k}')) for k, i in enumerate(ids)]
    assert [(p.first, p.second) for p in find_pairs(records)] == wanted
    assert all((p.shared, p.change) == (1, 1) for p in find_pairs(records))
    assert find_pairs([BinRecord(i, 1, asins=(f'C{k}',)) for k, i in enumerate(ids)]) == []


@pytest.mark.parametrize('ids,wanted', [(['1', '2', '30'], []), (['00001', '1'], [('1', '00001')]), (['00001', '100001'], []), (['00001', '00002', '07', '7'], [('07', ''), ('7', '')]), (['00001', 'x1'], [])])
def test_ids_without_zeros(ids, wanted):
    assert unpadded_ids([BinRecord(i, 1) for i in ids]) == wanted


def test_figures_show_what_was_counted(drawn):
    folder, records = drawn
    bars = plot_balance([BinRecord(f'{i}', n) for i, n in enumerate([1, 1, 3, 12, 40])], top=5).axes[0]
    assert [round(b.get_height()) for b in bars.patches] == [2, 0, 1, 0, 0, 2]
    assert [t.get_text() for t in bars.get_xticklabels()] == ['1', '2', '3', '4', '5', '>5']
    changes = plot_pairs([BinPair('1', '2', 1, c) for c in (-9, -1, -1, 2)]).axes[0]
    assert [round(b.get_height()) for b in changes.patches] == [1, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0]
    for fig in (plot_sizes(records), plot_light(measure_photos(records, folder))):
        assert all(ax.get_xlabel() and (ax.get_ylabel() or ax.get_title()) for ax in fig.axes)


def test_samples_show_a_field_for_a_photo_that_cannot_be_read(drawn):
    folder, records = drawn
    for r in records: (folder/'bin-images'/f'{r.id}.jpg').write_bytes(b'')
    fig = plot_samples(records, folder, per_count=2)
    assert sum(t.get_text() == 'cannot be read' for ax in fig.axes for t in ax.texts) == sum(bool(ax.get_title()) for ax in fig.axes) > 0


@pytest.mark.parametrize('call', [lambda: plot_samples([], '.'), lambda: plot_balance([]), lambda: plot_sizes([BinRecord('1', 1)]), lambda: near_duplicates({'a': 1}, 31)])
def test_nothing_to_show_is_one_line(call):
    with pytest.raises(ConfigError) as e: call()
    assert '\n' not in str(e.value)


def test_a_folder_without_any_photo_is_one_line(tmp_path):
    with pytest.raises(DataError, match='bin-images'): quality_report([BinRecord('1', 1), BinRecord('2', 1)], tmp_path, tmp_path/'q.csv')
    assert not (tmp_path/'q.csv').exists()


def test_drawing_figures_leaves_pyplot_alone():
    "No window, no figure kept in memory"
    code = "import sys; from bin_counter.core import BinRecord; from bin_counter.explore import plot_balance; plot_balance([BinRecord('1', 1)]); sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
