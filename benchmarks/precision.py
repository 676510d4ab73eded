"""Memory order and precision: the upper part of a network in training, and its frozen front, in every combination.

    python benchmarks/precision.py [--arch mobilenet_v2] [--batch 64] [--seconds 3]

Random weights and random photos: what is computed does not matter for its speed. The tail is the last 42% of the blocks with the
head, trained forward and backward; the front is the rest, forward only. All in one run, the first combination is 1.
"""
import argparse, time

from _shared import machine, table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--arch', default='mobilenet_v2', help='a torchvision architecture')
parser.add_argument('--batch', type=int, default=64)
parser.add_argument('--seconds', type=float, default=3, help='measure each combination for so long')
args = parser.parse_args()

import torch
from bin_counter.core import ModelCard
from bin_counter.net import build_net

torch.manual_seed(0)
net = build_net(ModelCard(args.arch))
front, tail = net.split(len(net.body) - round(.42*len(net.body)), still=True)
photos = torch.randn(args.batch, 3, 224, 224)
with torch.no_grad(): features = front(photos)
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def rate(f):
    "Photos a second of a function that takes a batch"
    f()
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds: n += f() or args.batch
    return n/(time.perf_counter() - start)


def train_step(x):
    def step():
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16): z = tail(x)
        z.float().logsumexp(1).sum().backward()
        tail.zero_grad()
    return step


def forward(x):
    def run():
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=bf16): front(x)
    return run


rows, first = [], None
for bf16 in (False, True):
    for name, form in FORMATS.items():
        for module in (tail, front): module.to(memory_format=form)
        x, p = features.contiguous(memory_format=form), photos.contiguous(memory_format=form)
        tail.train(), front.eval()
        speeds = rate(train_step(x)), rate(forward(p))
        first = first or speeds
        rows.append(['bfloat16' if bf16 else 'float32', name, *(f'{v:.0f} ({v/f:.1f})' for v, f in zip(speeds, first))])
print(machine(), f'{args.arch}, batch {args.batch}', sep='\n', end='\n\n')
print(table(['precision', 'memory order', 'tail trained, photos/s (ratio)', 'front, photos/s (ratio)'], rows))
