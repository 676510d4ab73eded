"""Several processes against one: the same counter, and how many photos a second.

    python benchmarks/hosts.py [--n 1500] [--epochs 8] [--processes 2] [--seeds 3] [--weights FILE] [--size 96]

Drawn bins, the preset `best` with one member, and the entry point that a container runs: once as it is, and once under
torchrun with several processes on this machine, each with one thread and its share of the photos, at the same batch size. Per
seed the two counters answer the same photos, so their difference is paired; its interval is over all seeds together. Photos a
second are those of the fastest epoch, its validation included, for the machine may do other things besides.
"""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path

from _shared import machine, table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--n', type=int, default=1500, help='drawn bins')
parser.add_argument('--epochs', type=int, default=8)
parser.add_argument('--processes', type=int, default=2)
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--arch', default='resnet10t')
parser.add_argument('--weights', default='none', help="a file of weights; 'none' trains everything from noise")
parser.add_argument('--size', type=int, default=96, help='pixels')
args = parser.parse_args()

import numpy as np
from bin_counter.balance import split_bins
from bin_counter.core import read_csv
from bin_counter.evaluate import Predictions, compare_predictions, read_predictions, score_predictions
from bin_counter.splits import write_splits
from bin_counter.synth import draw_bins


def train(d, processes, seed):
    "Train in processes of their own; the output folder and seconds in all"
    out = d/f'{processes}-{seed}'
    hps = dict(arch=args.arch, weights=args.weights, size=args.size, epochs=args.epochs, members=1, seed=seed, precision='fp32', batch_size=32)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'BIN_COUNTER_PROGRESS': '0', 'SM_CHANNEL_DATA': str(d/'bins'), 'SM_CHANNEL_SPLITS': str(d), 'SM_HPS': json.dumps(hps),
           'SM_MODEL_DIR': str(out/'model'), 'SM_OUTPUT_DATA_DIR': str(out), 'SM_CHECKPOINT_DIR': str(out/'work')}
    launcher = ['torch.distributed.run', '--standalone', '--nproc-per-node', str(processes), '-m'] if processes > 1 else []
    start = time.perf_counter()
    subprocess.run([sys.executable, '-m', *launcher, 'bin_counter.train'], env=env, check=True, stdout=subprocess.DEVNULL)
    return out, time.perf_counter() - start


def pooled(all_of):
    "Answers of several runs to the same photos as one, a photo of each run by itself and its group still whole"
    ids = tuple(f'{k} {i}' for k, p in enumerate(all_of) for i in p.ids)
    join = lambda name: np.concatenate([getattr(p, name) for p in all_of])
    return Predictions(ids, tuple(s for p in all_of for s in p.parts), join('labels'), tuple(g for p in all_of for g in p.groups), join('probs'), all_of[0].counts, join('answers'))


with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    records = draw_bins(args.n, d/'bins', seed=0, size=args.size)
    rows = split_bins(records, ratios=(.6, .1, .3)).rows
    write_splits(d/'splits.csv', rows)
    answers, speed, wall = {1: [], args.processes: []}, {1: [], args.processes: []}, {1: [], args.processes: []}
    trained = sum(r.part == 'train' for r in rows)
    for seed in range(args.seeds):
        for k in answers:
            out, seconds = train(d, k, seed)
            answers[k].append(read_predictions(out/'predictions.csv'))
            speed[k].append(trained/min(float(r['seconds']) for r in read_csv(out/'history.csv')))
            wall[k].append(seconds)
            print(f'{k} processes, seed {seed}: {seconds:.0f} s, {speed[k][-1]:.0f} photos a second', flush=True)
    both = {k: pooled(a) for k, a in answers.items()}
    difference = compare_predictions(both[1], both[args.processes], 'test')['figures']['accuracy']
    print(f'\n{machine()}\n{args.arch} ({Path(args.weights).name}), {args.size} px, {args.epochs} epochs, {trained} training photos, {args.seeds} seeds\n')
    def row(k):
        a = score_predictions(both[k].part('test'))['figures']['accuracy']
        return [k, f"{100*a['value']:.1f}% ({100*a['low']:.1f} to {100*a['high']:.1f})", ', '.join(f'{100*(p.part("test").answers == p.part("test").truth).mean():.1f}' for p in answers[k]),
                f'{max(speed[k]):.0f}', f'{min(wall[k]):.0f}']
    print(table(['processes', 'test accuracy', 'each seed', 'training photos a second', 'seconds in all'], [row(k) for k in both]))
    print(f"\nDifference: {100*difference['difference']:+.1f} points ({100*difference['low']:+.1f} to {100*difference['high']:+.1f})")
