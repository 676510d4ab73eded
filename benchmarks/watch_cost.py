"""What the checks of a run cost: the same epochs with and without `RunWatch`.

    python benchmarks/watch_cost.py [--arch resnet18] [--size 128] [--repeats 3]

Two trainings of the preset `best` on made-up features of the right shape: a head alone, whose steps are the shortest there are,
and the upper 42% of the body. Runs with and without the checks take turns; the median is taken, in processor
time of this process, so that other programs on the machine do not decide the result. The head trains 4,096 photos an epoch
(the common subset of ABID has about as many), the upper part 512.
"""
import argparse, statistics, tempfile, time
from pathlib import Path

from _shared import machine, table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--arch', default='resnet18')
parser.add_argument('--size', type=int, default=128, help='side of the photos, pixels')
parser.add_argument('--repeats', type=int, default=3, help='runs of each kind with the upper part; the head has five times as many')
args = parser.parse_args()

import numpy as np
import torch
from bin_counter.cache import Cache, CacheLoader
from bin_counter.core import Counts, ModelCard, Preprocess
from bin_counter.net import pretrained_net
from bin_counter.train import _cut, make_learner, preset_config, soft_targets
from bin_counter.watch import RunWatch


def learner(trained, n):
    "A learner on features that nobody computed"
    config = preset_config('best', trained=trained, arch=args.arch, size=args.size, precision='fp32')
    torch.manual_seed(0)
    net, card = pretrained_net(ModelCard(args.arch, Counts(), Preprocess(args.size), net=dict(pool=config.pool, dropout=config.dropout)), 'none')
    front, tail = net.split(_cut(net, config))
    with torch.no_grad(): shape = front.eval()(torch.zeros(1, 3, args.size, args.size)).shape
    rng = np.random.default_rng(0)
    cache = Cache(rng.random((1, n, *shape[2:], shape[1]), np.float32).astype(np.float16), {})
    loaders = [CacheLoader(cache, np.arange(k), soft_targets(rng.integers(5, size=k), 5, .3), card.preprocess, t, 'flip', bs=64) for k, t in ((n, True), (64, False))]
    return make_learner(tail, *loaders, config)


def seconds(learn, epochs, cbs):
    "Processor time of an epoch, validation on one batch included"
    start = time.process_time()
    with learn.no_logging(): learn.fit(epochs, 1e-4, cbs=cbs)
    return (time.process_time() - start)/epochs


rows = []
with tempfile.TemporaryDirectory() as d:
    for what, trained, n, epochs, repeats in (('head alone', 'head', 4096, 5, 5*args.repeats), ('upper 42%', 'upper', 512, 1, args.repeats)):
        learn = learner(trained, n)
        seconds(learn, 1, [])
        times = {False: [], True: []}
        for i in range(2*repeats):
            watched = i % 2 == 0
            times[watched].append(seconds(learn, epochs, [RunWatch(Path(d)/'checks.json', log=lambda line: None)] if watched else []))
        plain, watched = (statistics.median(times[k]) for k in (False, True))
        steps = n//64
        rows.append([what, steps, f'{1000*plain/steps:.2f}', f'{1000*watched/steps:.2f}', f'{100*(watched/plain - 1):.1f}%'])
print(f'{machine()}\n{args.arch}, {args.size} px, batches of 64\n')
print(table(['trained', 'steps an epoch', 'ms a step', 'with checks', 'more'], rows))
