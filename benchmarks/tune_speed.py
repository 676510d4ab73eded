"""A search of eight trials on a frozen body: all of it against one plain epoch of full fine-tuning.

    python benchmarks/tune_speed.py [--n 600] [--trials 8] [--epochs 10] [--arch resnet18]

Same drawn bins, same body with the same weights, both in one run. The peer is one epoch of what a tuner would run many times
for every trial of a typical notebook: torchvision's ImageFolder and transforms, a DataLoader with two workers, forward and
backward through the whole network, and a validation pass. Ours is `bin_counter.tune.tune` with the preset `classic`, which trains the head alone: the one pass
over the photos that fills the cache, every trial with all its epochs, the database, the tables and the figures included.
"""
import argparse, tempfile, time
from pathlib import Path

from _shared import machine, table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--n', type=int, default=600, help='drawn bins')
parser.add_argument('--trials', type=int, default=8)
parser.add_argument('--epochs', type=int, default=10, help='epochs of each trial')
parser.add_argument('--arch', default='resnet18', help='a torchvision architecture with a last layer named fc')
args = parser.parse_args()

import torch
from bin_counter.balance import split_bins
from bin_counter.cache import read_samples
from bin_counter.net import torchvision
from bin_counter.splits import write_channels, write_splits
from bin_counter.synth import draw_bins
from bin_counter.tune import tune
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def plain_epoch(folder, weights):
    "One epoch of full fine-tuning, and a validation pass; returns seconds"
    norm = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    common = [transforms.Resize((224, 224)), transforms.ToTensor(), norm]
    train = ImageFolder(folder/'train', transforms.Compose([transforms.RandomHorizontalFlip(), *common]))
    valid = ImageFolder(folder/'valid', transforms.Compose(common))
    start = time.perf_counter()
    model = torchvision.models.get_model(args.arch)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.fc = torch.nn.Linear(model.fc.in_features, 5)
    optimizer, loss_func = torch.optim.Adam(model.parameters(), 1e-4), torch.nn.CrossEntropyLoss()
    model.train()
    for x, y in DataLoader(train, 64, shuffle=True, num_workers=2):
        optimizer.zero_grad()
        loss_func(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad(): right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(valid, 64, num_workers=2))
    seconds = time.perf_counter() - start
    print(f'plain epoch: {seconds:.1f} s, {right} of {len(valid)} right', flush=True)
    return seconds


def search(splits, data, weights, out):
    "All trials; returns seconds and the number of epochs in them"
    start = time.perf_counter()
    settings = dict(preset='classic', arch=args.arch, weights=str(weights), epochs=args.epochs) # its body is frozen
    rows = tune(read_samples(splits, data), out, ['lr=1e-4..1e-2', 'batch_size=32|64|128', 'dropout=0..0.5'], settings, trials=args.trials)
    return time.perf_counter() - start, sum(r.epochs for r in rows)


with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    records = draw_bins(args.n, d/'bins', seed=0)
    rows = split_bins(records, ratios=(.8, .2, 0)).rows
    write_splits(d/'splits.csv', rows)
    write_channels(rows, d/'bins', d/'channels')
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(args.arch).state_dict(), d/'weights.pth')
    ours, epochs = search(d/'splits.csv', d/'bins', d/'weights.pth', d/'tuned')
    peer = plain_epoch(d/'channels', d/'weights.pth')
    trained = sum(r.part == 'train' for r in rows)
    print(f'\n{machine()}\n{args.arch}, {trained} training and {len(rows) - trained} validation photos at 224 px\n')
    print(table(['what', 'epochs', 'seconds', 'ratio'],
                [['one plain epoch of full fine-tuning (ImageFolder, DataLoader, torchvision)', 1, f'{peer:.1f}', '1.0'],
                 [f'a search of {args.trials} trials, frozen body', epochs, f'{ours:.1f}', f'{ours/peer:.2f}']]))
