"What the benchmarks share: the machine in words, a table, a timer that takes the best of several runs."
import os, platform, time
from pathlib import Path

os.environ.setdefault('BIN_COUNTER_PROGRESS', '0')


def machine():
    "Processor, cores and versions, for the head of a result"
    import torch
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor()) if Path('/proc/cpuinfo').exists() else platform.processor()
    return f'{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads'


def table(head, rows):
    "A markdown table"
    return '\n'.join('| ' + ' | '.join(map(str, r)) + ' |' for r in [head, ['---']*len(head), *rows])


def best(f, repeats=5, number=1):
    "Seconds of the fastest of some runs, each of `number` calls"
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(number): f()
        times.append((time.perf_counter() - start)/number)
    return min(times)


def unit(seed, name):
    "A number from 0 to 1 that a seed and a name decide"
    from bin_counter.core import bytes_hash
    return int(bytes_hash(f'{seed} {name}'.encode())[:12], 16)/16**12
