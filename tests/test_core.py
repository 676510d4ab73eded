"Files that are whole or absent, also when many threads write at once."
import os, stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from bin_counter.core import atomic_write, in_threads


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
