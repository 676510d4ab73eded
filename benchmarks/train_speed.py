"""Ten epochs on a frozen body: cached features against the plain loop of a typical notebook.

    python benchmarks/train_speed.py [--n 600] [--epochs 10] [--arch resnet18]

Same drawn bins, same body with the same weights, one linear layer, Adam, flips, batch 64, both in one run. The peer is what
the public notebooks for this task do: torchvision's ImageFolder and transforms, a DataLoader with two workers (most notebooks
leave it at none, which is slower), `requires_grad = False` on the body, `model.train()`, and a validation pass after each
epoch. Ours is `bin_counter.train.train_net` with the preset `classic`, its one pass over the photos for the cache included.
"""
import argparse, tempfile, time
from pathlib import Path

from _shared import machine, table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--n', type=int, default=600, help='drawn bins')
parser.add_argument('--epochs', type=int, default=10)
parser.add_argument('--arch', default='resnet18', help='a torchvision architecture with a last layer named fc')
args = parser.parse_args()

import torch
from bin_counter.balance import split_bins
from bin_counter.net import torchvision
from bin_counter.splits import write_channels, write_splits
from bin_counter.synth import draw_bins
from bin_counter.train import preset_config, read_samples, train_net
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def plain(folder, weights, epochs):
    "The loop of a typical notebook; returns seconds"
    norm = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    common = [transforms.Resize((224, 224)), transforms.ToTensor(), norm]
    train = ImageFolder(folder/'train', transforms.Compose([transforms.RandomHorizontalFlip(), *common]))
    valid = ImageFolder(folder/'valid', transforms.Compose(common))
    start = time.perf_counter()
    model = torchvision.models.get_model(args.arch)
    model.load_state_dict(torch.load(weights, weights_only=True))
    for p in model.parameters(): p.requires_grad = False
    model.fc = torch.nn.Linear(model.fc.in_features, 5)
    loaders = DataLoader(train, 64, shuffle=True, num_workers=2), DataLoader(valid, 64, num_workers=2)
    optimizer, loss_func = torch.optim.Adam(model.fc.parameters(), 1e-3), torch.nn.CrossEntropyLoss()
    for epoch in range(epochs):
        model.train()
        for x, y in loaders[0]:
            optimizer.zero_grad()
            loss_func(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad(): right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loaders[1])
        print(f'plain   epoch {epoch + 1}: {time.perf_counter() - start:6.1f} s, {right} of {len(valid)} right', flush=True)
    return time.perf_counter() - start


def cached(splits, data, weights, epochs, work):
    "Ours; returns seconds"
    start = time.perf_counter()
    config = preset_config('classic', arch=args.arch, weights=str(weights), epochs=epochs)
    train_net(read_samples(splits, data), config, work, log=lambda line: print('cached ', line, flush=True))
    return time.perf_counter() - start


with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    records = draw_bins(args.n, d/'bins', seed=0)
    rows = split_bins(records, ratios=(.8, .2, 0)).rows
    write_splits(d/'splits.csv', rows)
    write_channels(rows, d/'bins', d/'channels')
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(args.arch).state_dict(), d/'weights.pth')
    ours = cached(d/'splits.csv', d/'bins', d/'weights.pth', args.epochs, d/'work')
    peer = plain(d/'channels', d/'weights.pth', args.epochs)
    trained = sum(r.part == 'train' for r in rows)
    print(f'\n{machine()}\n{args.arch}, frozen body, {args.epochs} epochs, {trained} training and {len(rows) - trained} validation photos at 224 px\n')
    print(table(['loop', 'seconds', 'training photos a second', 'ratio'],
                [['plain (ImageFolder, DataLoader, torchvision)', f'{peer:.1f}', f'{trained*args.epochs/peer:.0f}', '1.0'],
                 ['cached features', f'{ours:.1f}', f'{trained*args.epochs/ours:.0f}', f'{peer/ours:.1f}']]))
