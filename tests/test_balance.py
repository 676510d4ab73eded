"""Splits, remedies and channels: matrices, growth, faults"""
import errno, os, random
from collections import Counter
from dataclasses import replace

import pytest

from bin_counter import balance, splits
from bin_counter.balance import balance_rows, leak_report, parse_ratios, split_bins
from bin_counter.core import BinRecord, ConfigError, Counts, DataError
from bin_counter.splits import PARTS, SplitRow, channel_photos, read_channels, read_splits, write_channels, write_splits


def make_records(n, seed=0):
    "Records in groups of one to four, named after their first id"
    rng, out = random.Random(seed), []
    while len(out) < n:
        i = len(out)
        for k in range(rng.choice([1, 1, 2, 2, 3, 4])):
            out.append(BinRecord(f'{i + k:05}', rng.choices([1, 2, 3, 4, 5], [1, 2, 3, 2, 1])[0], asins=(f'B{i}',), group=f'{i:05}'))
    return out


def places(rows): return {r.id: r.part for r in rows}


@pytest.mark.parametrize('text,want', [('70/20/10', (.7, .2, .1)), ('90/5/5', (.9, .05, .05)), ('80/20/0', (.8, .2, 0)),
                                       ('100/0/0', (1, 0, 0)), ('0.7/0.2/0.1', (.7, .2, .1)), (' 98 / 1 / 1 ', (.98, .01, .01))])
def test_ratios_are_read(text, want): assert parse_ratios(text) == pytest.approx(want)


@pytest.mark.parametrize('text', ['', '70', '70/30', '70/20/20', '0/50/50', '-10/100/10', 'a/b/c', '7/2/1', 'nan/1/1', 'inf/1/1', '70/20/5/5'])
def test_wrong_ratios_are_refused(text):
    with pytest.raises(ConfigError) as e: parse_ratios(text)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('ratios', [(.7, .2, .1), (.9, .05, .05), (.8, .2, 0), (.8, 0, .2)])
@pytest.mark.parametrize('by', ['group', 'random'])
def test_shares_come_out_close(ratios, by):
    rows = split_bins(make_records(6000), ratios=ratios, by=by).rows
    got = Counter(r.part for r in rows)
    for part, want in zip(PARTS, ratios):
        assert got[part] / len(rows) == pytest.approx(want, abs=.02)
        assert bool(got[part]) == bool(want)


def test_another_seed_is_another_split():
    records = make_records(1000)
    a, b = (places(split_bins(records, seed=s).rows) for s in (0, 1))
    assert sum(a[i] != b[i] for i in a) > 200


@pytest.mark.parametrize('by', ['group', 'random'])
@pytest.mark.parametrize('seed', range(3))
def test_order_and_absence_of_others_do_not_matter(by, seed):
    records = make_records(1500)
    want, rng = places(split_bins(records, by=by, seed=seed).rows), random.Random(seed)
    some = rng.sample(records, 700)
    assert places(split_bins(some, by=by, seed=seed).rows) == {r.id: want[r.id] for r in some}


@pytest.mark.parametrize('seed', range(5))
def test_a_photo_stays_while_groups_are_renamed_and_joined(seed):
    "Photos arrive in random order; after each arrival groups are recomputed from products and named after their first id"
    rng = random.Random(seed)
    products = [f'B{i}' for i in range(300)]
    pool = [(f'{i:05}', rng.choices([1, 2, 3, 4, 5], [1, 2, 3, 2, 1])[0], tuple(rng.sample(products, rng.choice([1, 1, 2])))) for i in range(400)]
    rng.shuffle(pool)
    previous, moved_names, skipped = None, 0, 0
    for n in (150, 200, 300, 400):
        records = grouped(pool[:n])
        split = split_bins(records, previous=previous)
        now = places(split.rows)
        if previous:
            assert {i: now[i] for i in places(previous)} == places(previous)
            moved_names += sum(r.group != g for r in split.rows for g in [dict((p.id, p.group) for p in previous).get(r.id)] if g)
        assert len(split.rows) + len(split.skipped) == len(records)
        skipped += len(split.skipped)
        new = set(now) - set(places(previous or []))
        for r in split.rows: # a new photo is never apart from an older relative
            if r.id in new and previous:
                kin = {now[o.id] for o in split.rows if o.group == r.group}
                assert kin == {r.part}
        previous = split.rows
    assert moved_names and skipped # the case was really met


def grouped(pool):
    "Records whose groups are the connected components over shared products"
    root = {}
    def find(x):
        while root.setdefault(x, x) != x: x = root[x]
        return x
    for i, _, asins in pool:
        for a in asins: root[find(a)] = find(i)
    first = {}
    for i, _, _ in pool: first[find(i)] = min(first.get(find(i), i), i)
    return [BinRecord(i, label, asins=asins, group=first[find(i)]) for i, label, asins in pool]


def test_photos_that_went_away_are_named():
    records = make_records(300)
    before = split_bins(records).rows
    split = split_bins(records[1:], previous=before)
    assert [s.id for s in split.skipped] == [records[0].id] and 'no longer' in split.skipped[0].reason


def test_balanced_rows_serve_as_previous():
    before = split_bins(make_records(600)).rows
    again = split_bins(make_records(600), previous=balance_rows(before, 'undersample')).rows
    assert again == before # remedies are not inherited


@pytest.mark.parametrize('records,counts,says', [
    ([], Counts(), 'fewer than the 5 classes'),
    ([BinRecord(str(i), 1 + i % 3) for i in range(4)], Counts(), 'fewer than the 5 classes'),
    ([BinRecord(str(i), 2) for i in range(50)], Counts(), 'every photo shows 2'),
    ([BinRecord(str(i), 9) for i in range(50)], Counts(1, 6, True), 'every photo shows 6+'),
    ([BinRecord(str(i), 1 + i % 4) for i in range(50)], Counts(), 'no photo of count 5 in train'),
    ([BinRecord('7', 1 + i % 5) for i in range(50)], Counts(), 'photo 7 is there twice'),
])
def test_what_cannot_be_split_is_one_line(records, counts, says):
    with pytest.raises(DataError) as e: split_bins(records, counts)
    assert says in str(e.value) and '\n' not in str(e.value)


def test_100_and_00100_are_two_photos():
    records = make_records(200) + [BinRecord('100', 3)]
    rows = split_bins(records).rows
    assert {'100', '00100'} <= set(places(rows)) and len(rows) == len(records)


@pytest.mark.parametrize('counts', [Counts(), Counts(0, 5), Counts(1, 6, True)])
@pytest.mark.parametrize('parts', [('train',), ('train', 'test'), PARTS, 'train'])
@pytest.mark.parametrize('remedy', ['undersample', 'oversample', 'weights'])
def test_one_remedy_levels_the_classes(counts, parts, remedy):
    rng = random.Random(1)
    records = [BinRecord(f'{i:05}', rng.choices(range(0, 10), [1, 2, 4, 6, 5, 3, 2, 1, 1, 1])[0]) for i in range(4000)]
    rows = split_bins(records, counts).rows
    after = balance_rows(rows, remedy, parts, counts=counts)
    assert [r.id for r in after] == [r.id for r in rows]
    assert all((r.repeats == 1 or r.weight == 1) for r in after)
    for part in PARTS:
        n, mass = balance._mass(after, part, counts)
        if part in ((parts,) if isinstance(parts, str) else parts):
            assert mass == pytest.approx([mass[0]] * len(counts))
            assert mass[0] == pytest.approx(dict(undersample=min(n), oversample=max(n), weights=sum(n) / len(n))[remedy])
        else: assert [r for r in after if r.part == part] == [r for r in rows if r.part == part]


def test_the_draw_changes_little_when_data_are_added():
    small, large = (balance_rows(split_bins(make_records(n)).rows, 'undersample') for n in (2000, 2100))
    kept = {r.id for r in small if r.repeats == 1 and r.part == 'train'}
    still = {r.id for r in large if r.repeats == 1 and r.part == 'train'}
    assert len(kept - still) < .1 * len(kept)


@pytest.mark.parametrize('first', ['undersample', 'oversample', 'weights'])
@pytest.mark.parametrize('second', ['none', 'undersample', 'oversample', 'weights'])
def test_never_two_remedies(first, second):
    rows = balance_rows(split_bins(make_records(500)).rows, first)
    with pytest.raises(ConfigError, match='would correct twice'): balance_rows(rows, second, parts=('test',))


def test_balancing_needs_each_class_and_the_right_counts():
    rows = [SplitRow(str(i), 1 + i % 5, str(i), 'train') for i in range(20)] + [SplitRow('t', 1, 't', 'test')]
    with pytest.raises(DataError, match='test has no photo of count 2, 3, 4, 5'): balance_rows(rows, 'undersample', ('train', 'test'))
    with pytest.raises(ConfigError, match='outside of the counts 1-3'): balance_rows(rows, 'weights', counts=Counts(1, 3))
    with pytest.raises(ConfigError, match='choose from train'): balance_rows(rows, 'weights', ('dev',))


def test_leaks_by_hand():
    rows = [SplitRow(i, 1, i, p) for i, p in dict(a='train', b='train', c='valid', d='test', e='test', f='test', g='test').items()]
    rows.append(SplitRow('h', 1, 'h', 'train', repeats=0)) # left out by balancing: cannot leak
    records = [BinRecord('a', 1, group='g1', asins=('B1',)), BinRecord('c', 1, group='g1', asins=('B2',)), BinRecord('b', 1, asins=('B3', 'B4')),
               BinRecord('d', 1, asins=('B4',)), BinRecord('e', 1), BinRecord('f', 1, group='g2'), BinRecord('h', 1, group='g2')]
    leak = leak_report(rows, records, duplicates=[('e', 'a'), ('a', 'e'), ('f', 'g'), ('x', 'a'), ('b', 'b')])
    assert leak['photos'] == dict(train=2, valid=1, test=4) and leak['visible']
    assert leak['groups'] == dict(total=6, across=1)
    assert leak['asins'] == dict(total=4, across=1)
    assert leak['near_duplicates'] == dict(total=2, across=1)
    assert leak['test'] == dict(photos=4, with_relative=2, share=.5, by=dict(groups=0, asins=1, near_duplicates=1))
    assert leak['valid']['by'] == dict(groups=1, asins=0, near_duplicates=0)
    assert dict(id='d', part='test', relative='b', kind='asins') in leak['examples']


def test_rows_without_records_keep_their_groups():
    rows = [SplitRow('a', 1, 'g', 'train'), SplitRow('b', 1, 'g', 'test')]
    assert leak_report(rows, [])['test']['share'] == 1


@pytest.mark.parametrize('line,says', [('a,1,a,dev,1,1', 'line 3: photo a: part'), ('a,x,a,train,1,1', 'line 3'), ('a,1,a,train,-1,1', '-1 repeats'),
                                       ('a,1,a,train,1,nan', 'weight nan'), ('a,1,a,train,1,0', 'weight 0.0'), ('b,1,b,train,1,1', 'appears twice')])
def test_damaged_tables_name_the_line(tmp_path, line, says):
    (tmp_path/'splits.csv').write_text(f'id,label,group,part,repeats,weight\nb,1,b,train,1,1\n{line}\n')
    with pytest.raises(DataError) as e: read_splits(tmp_path/'splits.csv')
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.fixture
def data(tmp_path):
    (tmp_path/'data/bin-images').mkdir(parents=True)
    records = make_records(80)
    for r in records: (tmp_path/f'data/bin-images/{r.id}.jpg').write_bytes(r.id.encode())
    return tmp_path/'data', split_bins(records).rows


def names(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


@pytest.mark.parametrize('remedy', ['none', 'undersample', 'oversample', 'weights'])
@pytest.mark.parametrize('link', [True, False])
def test_channels_read_back(data, tmp_path, remedy, link):
    folder, rows = data[0], balance_rows(data[1], remedy)
    channels = write_channels(rows, folder, tmp_path/'out', link=link)
    want = sorted((r for r in rows if r.repeats), key=lambda r: r.id)
    assert sorted(read_channels(channels), key=lambda r: r.id) == want
    photos = {i: p for c in channels.values() for i, p in channel_photos(c).items()}
    assert set(photos) == {r.id for r in want}
    for r in want:
        assert photos[r.id].parent.name == str(r.label) and photos[r.id].read_bytes() == r.id.encode()
        assert photos[r.id].samefile(folder/f'bin-images/{r.id}.jpg') == link
    assert oct((tmp_path/'out').stat().st_mode & 0o777) == oct(0o777 & ~balance_umask())


def balance_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_linked_symlinks_point_at_the_photo(data, tmp_path):
    folder, rows = data
    other = tmp_path/'linked/bin-images'
    other.mkdir(parents=True)
    for p in (folder/'bin-images').iterdir(): (other/p.name).symlink_to(p)
    channels = write_channels(rows, tmp_path/'linked', tmp_path/'out')
    assert not any(p.is_symlink() for c in channels.values() for p in c.rglob('*'))


def test_copies_where_links_fail(data, tmp_path, monkeypatch):
    def no_link(*a, **kw): raise OSError(errno.EXDEV, 'cross-device')
    monkeypatch.setattr(os, 'link', no_link)
    channels = write_channels(data[1], data[0], tmp_path/'out')
    assert len(read_channels(channels)) == len(data[1])


def test_rerun_replaces_and_failure_keeps(data, tmp_path, monkeypatch):
    folder, rows = data
    write_channels(rows, folder, tmp_path/'out')
    write_channels(rows[:40], folder, tmp_path/'out')
    before = names(tmp_path/'out')
    assert sum(n.endswith('.jpg') for n in before) == 40
    calls = []
    def full(source, target):
        calls.append(target)
        if len(calls) > 20: raise OSError(errno.ENOSPC, 'no space')
        target.write_bytes(source.read_bytes())
    monkeypatch.setattr(splits.shutil, 'copyfile', full)
    with pytest.raises(DataError, match='the disk is full'): write_channels(rows, folder, tmp_path/'out', link=False)
    assert names(tmp_path/'out') == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['data', 'out'] # nothing left beside


def test_a_failed_last_rename_is_taken_back(data, tmp_path, monkeypatch):
    folder, rows = data
    write_channels(rows[:40], folder, tmp_path/'out')
    before, real = names(tmp_path/'out'), os.replace
    def replace_but_new(a, b):
        if str(a).endswith('/new'): raise OSError(errno.EACCES, 'denied')
        return real(a, b)
    monkeypatch.setattr(splits.os, 'replace', replace_but_new)
    with pytest.raises(DataError, match='permission denied'): write_channels(rows, folder, tmp_path/'out')
    assert names(tmp_path/'out') == before


def test_only_channels_are_replaced(data, tmp_path):
    folder, rows = data
    home = tmp_path/'home'
    (home/'train').mkdir(parents=True)
    (home/'train/thesis.txt').write_text('years of work')
    with pytest.raises(DataError, match='holds other things'): write_channels(rows, folder, home)
    assert (home/'train/thesis.txt').is_file()
    (tmp_path/'file').write_text('')
    with pytest.raises(DataError, match='is a file'): write_channels(rows, folder, tmp_path/'file')


def test_missing_photos_and_empty_splits(data, tmp_path):
    folder, rows = data
    (folder/f'bin-images/{rows[3].id}.jpg').unlink()
    with pytest.raises(DataError, match=f'1 photos missing .* the first {rows[3].id}.jpg: run bin_data again'): write_channels(rows, folder, tmp_path/'out')
    with pytest.raises(DataError, match='the split is empty'): write_channels([replace(r, repeats=0) for r in rows], folder, tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_channels_that_disagree_are_refused(data, tmp_path):
    channels = write_channels(data[1], data[0], tmp_path/'out')
    with pytest.raises(DataError, match='given as test'): read_channels(dict(test=channels['train']))
    with pytest.raises(ConfigError, match='name the channels'): read_channels(dict(validation=channels['valid']))
    next(channels['train'].glob('*/*.jpg')).unlink()
    with pytest.raises(DataError, match='1 photos of splits.csv are missing'): read_channels(channels)
    with pytest.raises(DataError, match='holds no photos'): read_channels(dict(train=tmp_path))


def test_class_folders_alone(tmp_path, capsys):
    for name in ('train/1/7.jpg', 'train/6+/00007.jpg', 'train/notes/9.jpg', 'train/2/readme.txt', 'test/2/8.JPG'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes(b'x')
    rows = read_channels(dict(train=tmp_path/'train', test=tmp_path/'test'))
    assert {(r.id, r.label, r.group, r.part) for r in rows} == {('7', 1, '7', 'train'), ('00007', 6, '00007', 'train'), ('8', 2, '8', 'test')}
    assert 'leaks between parts cannot be seen' in capsys.readouterr().err
    (tmp_path/'test/2/7.png').write_bytes(b'x')
    with pytest.raises(DataError, match='photo 7 is in two channels'): read_channels(dict(train=tmp_path/'train', test=tmp_path/'test'))


def test_splits_survive_odd_groups(tmp_path):
    rows = [SplitRow('a', 1, 'g,"1"', 'train', 0, 1.0), SplitRow('b', 2, '', 'test', 3, 1.0), SplitRow('c', 2, 'é', 'valid', 1, 1/3)]
    write_splits(tmp_path/'s.csv', rows)
    assert read_splits(tmp_path/'s.csv') == rows


@pytest.mark.parametrize('by', ['group', 'random'])
def test_other_counts_teach_only_beside_train(by):
    "Photos of other counts get the part extra where their place is in train, and are left out with a reason elsewhere"
    records = [replace(r, label=r.label if i % 4 else (0, 7, 9)[i % 3]) for i, r in enumerate(make_records(1200))]
    split = split_bins(records, by=by)
    extra = [r for r in split.rows if r.part == splits.EXTRA]
    assert 150 < len(extra) and {r.label for r in extra} == {0, 7, 9} and all(Counts().index(r.label) is not None for r in split.rows if r.part != splits.EXTRA)
    assert len(split.rows) + len(split.skipped) == len(records) and all('its place is among the' in s.reason for s in split.skipped)
    leak = leak_report(split.rows, records)
    assert (leak['groups']['across'] == 0) == (by == 'group')
    if by == 'group':
        held = {r.group for r in split.rows if r.part in ('valid', 'test')}
        assert not held & {r.group for r in extra}
    again = split_bins(records, by=by, previous=split.rows)
    assert places(again.rows) == places(split.rows)


def test_extra_photos_travel_in_a_channel_of_their_own(tmp_path):
    rows = [SplitRow('a', 3, 'a', 'train'), SplitRow('b', 12, 'b', 'extra')]
    (tmp_path/'data/bin-images').mkdir(parents=True)
    for r in rows: (tmp_path/f'data/bin-images/{r.id}.jpg').write_bytes(b'x')
    channels = write_channels(rows, tmp_path/'data', tmp_path/'channels')
    assert sorted(channels) == ['extra', 'train'] and (channels['extra']/'12/b.jpg').is_file()
    assert read_channels(channels) == rows
