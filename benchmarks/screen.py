"""Ideas tried on the preset `best`, one change at a time, so that anybody can try them again.

    python benchmarks/screen.py --data DIR --out DIR --weights FILE [--ideas base norm ...] [--seeds 0 1]

Of five grouped folds, the counters learn from folds 2 to 4 and are judged on fold 1; fold 0 is not touched. The figure is the log
loss on fold 1 at the best temperature, of the best epoch: what the preset itself chooses its epoch by. Each idea is trained with the seeds
of an ensemble's members, since a seed alone moves it by more than 0.01. What is done is kept under --out; a run that was stopped begins anew with the idea and seed
that it was at.
"""
import argparse, shutil, sys
from dataclasses import replace
from pathlib import Path

from _shared import machine, table, unit

import numpy as np
import torch
from torch import nn

from bin_counter.cache import Sample
from bin_counter.core import Counts, file_hash, read_csv, read_json, read_manifest, write_json
from bin_counter.data import index_bins
from bin_counter.net import save_model
from bin_counter.settings import preset_config
from bin_counter.splits import EXTRA
from bin_counter.synth import draw_bins
from bin_counter.train import _member_seed, train_net
from fastai.callback.core import Callback

NORM = nn.modules.batchnorm._BatchNorm


class TrainNorms(Callback):
    "Give the batch norms of folded weights the statistics of our photos, the network's answers unchanged, and let them train"
    order = 50 # before the running mean copies the network

    def before_fit(self):
        tail, seen = self.model, {}
        norms = [(conv, norm) for conv, norm in zip(*(list(tail.modules())[i:] for i in (0, 1))) if isinstance(norm, NORM)]
        hooks = [m.register_forward_pre_hook(lambda m, x: seen.setdefault(m, []).append(self.moments(x[0]))) for _, m in norms]
        tail.eval()
        with torch.no_grad():
            for i, (x, _) in zip(range(16), self.dls.train): tail(x)
            for h in hooks: h.remove()
            for conv, norm in norms: self.rescale(conv, norm, *torch.stack(seen[norm]).mean(0))
        tail._still = ()

    @staticmethod
    def moments(x):
        "Mean and mean square of each channel"
        x = x.double()
        return torch.stack([x.mean((0, 2, 3)), (x*x).mean((0, 2, 3))])

    @staticmethod
    def rescale(conv, norm, mean, square):
        "Filters that give a variance of one, and a norm that undoes it"
        sd = (square - mean**2).clamp_min(1e-6).sqrt().float()
        slope = norm.weight/torch.sqrt(norm.running_var + norm.eps)
        norm.bias.add_(slope*(mean.float() - norm.running_mean))
        conv.weight.div_(sd.view(-1, 1, 1, 1))
        norm.weight.copy_(slope*sd*(1 + norm.eps)**.5), norm.running_mean.copy_(mean.float()/sd), norm.running_var.fill_(1)


class Chain(nn.Module):
    "Logits of 'more than k, if at least k' (n, k) as log probabilities of the counts (n, k); the last logit is not used. CORN, Shi et al. 2021"
    def forward(self, z):
        more = nn.functional.logsigmoid(z[:, :-1]).cumsum(1)
        none = nn.functional.logsigmoid(-z[:, :-1])
        return torch.cat([none[:, :1], more[:, :-1] + none[:, 1:], more[:, -1:]], 1)


class ChainHead(nn.Module):
    "The head, answering through the chain; other counts are left out after it, not before"
    def __init__(self, head):
        super().__init__()
        self.head, self.chain = head, Chain()

    def forward(self, x):
        *before, linear = self.head
        for m in before: x = m(x)
        z = self.chain(nn.functional.linear(x, linear.weight, linear.bias))
        return z if self.training else z[:, linear.keep]


class UseChain(Callback):
    "Put the chain behind the head"
    order = 50
    def before_fit(self): self.model.stages[-1] = ChainHead(self.model.stages[-1])


class Answers(Callback):
    "Keep what the trained network says of its training photos"
    order = 80
    def __init__(self, path): self.path = path

    def after_fit(self):
        net, train, out = self.learn.weight_average.mean.module.eval(), self.dls.train, []
        *body, head = net.stages
        with torch.no_grad():
            for rows in np.array_split(train.rows, range(64, len(train.rows), 64)):
                z = 0
                for view in range(len(train.cache.array)):
                    x = torch.from_numpy(train.cache.array[view, rows]).float().permute(0, 3, 1, 2)
                    for s in body: x = s(x)
                    z = z + nn.functional.linear(head[:-1](x), head[-1].weight, head[-1].bias)
                out.append((z/len(train.cache.array)).softmax(1))
        np.save(self.path, torch.cat(out).numpy())


class Teacher(Callback):
    "Half of each target is what an earlier network of the same kind says (born-again networks, Furlanello et al. 2018)"
    order = 50
    def __init__(self, path): self.path = path
    def before_fit(self): self.dls.train.targets = (.5*self.dls.train.targets + .5*np.load(self.path)).astype(np.float32)


def inner_split(data, out):
    "Photos of folds 2 to 4 to train on, of fold 1 to be judged by, and photos to leave alone"
    if not (out/'manifest.csv').exists(): index_bins(data, out)
    counts, used, left = Counts.parse('1-5'), [], []
    for r in read_manifest(out/'manifest.csv'):
        inside, fold = counts.index(r.label) is not None, int(unit(0, f'fold {r.group}')*5)
        sample = lambda part: Sample(r.id, r.label, r.group, part, path=Path(data)/'bin-images'/f'{r.id}.jpg')
        if fold > 0 and inside: used.append(sample('valid' if fold == 1 else 'train'))
        elif fold > 1: used.append(sample(EXTRA))
        elif fold == 1: left.append(sample(EXTRA))
    return used, left


def drawn_weights(config, out):
    "Weights of a network that has learned to count drawn bins"
    place = out/'drawn'
    if not (place/'model.pth').exists():
        records = draw_bins(6000, place, look='hard')
        samples = [Sample(r.id, r.label, r.group, 'valid' if i >= 5600 else 'train', path=place/'bin-images'/f'{r.id}.jpg') for i, r in enumerate(records)]
        net, card, _ = train_net(samples, replace(config, epochs=4, augment='none', seed=0), place, place/'history.csv', cache=out/'cache')
        save_model(place, net, card)
    return str(place/'model.pth')


def run(idea, m, config, samples, left, out):
    "Train one idea with the seed of the `m`-th member; returns the best epoch's line of the history"
    config, place = replace(config, seed=_member_seed(0, m)), out/f'{idea}{m}'
    answers = out/'base0-answers.npy'
    cbs = dict(base=[Answers(answers)] if m == 0 else [], norm=[TrainNorms()], chain=[UseChain()], teacher=[Teacher(answers)]).get(idea, [])
    config = replace(config, **SETTINGS.get(idea, {}))
    if idea == 'drawn': config = replace(config, weights=drawn_weights(config, out))
    if not (place/'done').exists():
        shutil.rmtree(place, ignore_errors=True) # half a run: its checkpoint knows nothing of what an idea changed
        print(f'== {idea}, seed {m}', flush=True)
        train_net(samples, config, place, place/'history.csv', lambda line: print(line, flush=True), cbs, left, cache=out/'cache')
        (place/'done').touch()
    return min(read_csv(place/'history.csv'), key=lambda r: float(r['calibrated_loss']))


IDEAS = dict(base='the preset, one network', norm='batch norms with statistics of these photos, trained', chain="a chain of 'more than k?' (CORN) as the head",
             teacher='half of each target from the answers of base, seed 0', drawn='first four epochs on 6,000 drawn bins (look hard)',
             small='160 pixels instead of 224', deeper='four more blocks trained', small_deeper='160 pixels, four more blocks trained')
SETTINGS = dict(small=dict(size=160), deeper=dict(trained='12'), small_deeper=dict(size=160, trained='12'))


def check_folder(args):
    "Refuse a folder whose results are of other photos or weights"
    made = dict(data=str(Path(args.data).resolve()), arch=args.arch, weights=file_hash(args.weights) if Path(args.weights).is_file() else args.weights)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out/'made_with.json'
    if path.exists() and read_json(path) != made: sys.exit(f'{args.out} holds results of other photos, weights or another architecture: choose another --out')
    write_json(path, made)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='data folder: bin-images/, metadata/')
    parser.add_argument('--out', required=True, type=Path, help='folder for caches, checkpoints and histories')
    parser.add_argument('--arch', default='mobilenet_v2')
    parser.add_argument('--weights', default='imagenet', help="'imagenet' or a file; the idea norm needs weights whose batch norms are folded")
    parser.add_argument('--ideas', nargs='+', default=list(IDEAS), choices=list(IDEAS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1], help='numbers of the members')
    args = parser.parse_args()
    if 'teacher' in args.ideas and ('base' not in args.ideas or 0 not in args.seeds): sys.exit('the idea teacher learns from base with seed 0: name both')
    check_folder(args)
    config = preset_config('best', arch=args.arch, weights=args.weights, members=1)
    samples, left = inner_split(args.data, args.out)
    rows = []
    for idea in [i for i in IDEAS if i in args.ideas]: # a teacher after its base
        best = [run(idea, m, config, samples, left, args.out) for m in args.seeds]
        show = lambda key, form: ', '.join(format(float(r[key]), form) for r in best)
        rows.append([IDEAS[idea], show('calibrated_loss', '.3f'), ', '.join(str(int(r['epoch']) + 1) for r in best), show('train_loss', '.2f')])
    print(f'\n{machine()}\n{len(samples):,} photos, seeds {args.seeds}\n')
    print(table(['idea', 'log loss, each seed', 'best epoch', 'training loss there'], rows))


if __name__ == '__main__': main()
