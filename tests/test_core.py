"Files that are whole or absent, also when many threads write at once."
import io, os, stat, tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from bin_counter.core import atomic_write, in_threads, unpack_tar


def test_many_threads_write_with_the_modes_that_open_gives(tmp_path):
    "A umask is of the process: a writer that changes it for a moment would leave files of other threads open to all"
    before = os.umask(0o027)
    try:
        def write(i):
            with atomic_write(tmp_path/f'{i}.txt') as f: f.write(str(i))
        with ThreadPoolExecutor(8) as pool: list(pool.map(write, range(400)))
        now = os.umask(0o027)
    finally: os.umask(before)
    assert now == 0o027
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o640}
    assert all(p.read_text() == p.stem for p in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 400


def test_in_threads_keeps_order_and_runs_only_a_little_ahead():
    taken = []
    def items():
        for i in range(10_000):
            taken.append(i)
            yield i
    answers = in_threads(lambda i: i*i, items(), workers=4)
    assert [next(answers) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) < 200
    answers.close()
    assert len(taken) < 200


def test_in_threads_raises_where_the_failing_item_stands():
    def half(i):
        if i == 7: raise ValueError('seven')
        return i
    answers, got = in_threads(half, range(100), workers=4), []
    with pytest.raises(ValueError, match='seven'):
        for a in answers: got.append(a)
    assert got == list(range(7))


def _odd(name, kind, link=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize('has_filter', [True, False], ids=['as this Python does', 'as before 3.11.4'])
@pytest.mark.parametrize('info', [_odd('../out', tarfile.REGTYPE), _odd('/tmp/bin_counter_out', tarfile.REGTYPE), _odd('a/../../out', tarfile.REGTYPE), _odd('link', tarfile.SYMTYPE, '../out'),
                                  _odd('link', tarfile.LNKTYPE, '../out'), _odd('pipe', tarfile.FIFOTYPE), _odd('device', tarfile.CHRTYPE)], ids=lambda i: f'{i.name} {i.type.decode()}')
def test_nothing_of_an_archive_lands_elsewhere(info, has_filter, tmp_path, monkeypatch):
    if not has_filter: monkeypatch.delattr(tarfile, 'data_filter', raising=False)
    elif not hasattr(tarfile, 'data_filter'): pytest.skip('this Python has no filter')
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode='w') as t:
        t.addfile(_odd('box', tarfile.DIRTYPE))
        t.addfile(info)
    raw.seek(0)
    with tarfile.open(fileobj=raw) as t:
        if has_filter and info.name.startswith('/tmp'): unpack_tar(t, tmp_path/'in') # the filter takes the first slash away
        else:
            with pytest.raises(tarfile.TarError): unpack_tar(t, tmp_path/'in')
    assert not (tmp_path/'out').exists() and not os.path.exists('/tmp/bin_counter_out')
