"""What a count is good for: finding wrong records, and counting with an earlier photo, over the folds of quality.py.

    python benchmarks/uses.py --quality DIR --recipe best [--false-alarms 0.05]

Reads the predictions that `quality.py --out DIR` left for each fold, trains nothing, and takes seconds. Thresholds, the use of the
earlier photo, and what is rare among records come from each fold's validation and training photos; every figure is of its test photos.
"""
import argparse
from pathlib import Path

from _shared import table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--quality', required=True, help='the --out folder of quality.py')
parser.add_argument('--recipe', default='best')
parser.add_argument('--false-alarms', type=float, default=.05, help='share of right records that may raise an alarm')
parser.add_argument('--counts', default='1-5')
args = parser.parse_args()

import numpy as np
from bin_counter.audit import audit_power, format_power
from bin_counter.core import Counts, read_manifest
from bin_counter.evaluate import read_predictions
from bin_counter.pairs import difference_prior, find_pairs, fit_pairs, pair_power

counts, root = Counts.parse(args.counts), Path(args.quality)
folds = sorted(p.parent for p in (root/args.recipe).glob('fold*/done.json'))
records = read_manifest(root/'manifest.csv')
audit, pairs = [], []
for fold in folds:
    p = read_predictions(fold/'predictions.csv')
    valid, test = p.part('valid'), p.part('test')
    held = set(p.groups)
    seen = [r for r in records if r.group not in held]
    mismatch = 1 - valid.probs[np.arange(len(valid)), valid.truth]
    audit.append((test, np.quantile(mismatch, 1 - args.false_alarms), [r.label for r in seen if counts.index(r.label) is not None]))
    prior = difference_prior([seen[a].label - seen[b].label for b, a in find_pairs([r.id for r in seen], [r.group for r in seen])])
    (vb, va), (tb, ta) = (map(list, zip(*find_pairs(q.ids, q.groups))) for q in (valid, test))
    known = fit_pairs(valid.probs[va], valid.probs[vb], valid.labels[vb], valid.truth[va], prior, counts)
    pairs.append((known, pair_power(test.probs[ta], test.probs[tb], test.labels[tb], test.truth[ta], known, counts), [test.groups[i] for i in ta]))

print(f'{args.quality}, recipe {args.recipe}: {len(folds)} folds\n\nWrong records')
test = [t for t, _, _ in audit]
print(format_power(audit_power(np.concatenate([t.probs for t in test]), np.concatenate([t.labels for t in test]), [g for t in test for g in t.groups],
                               np.concatenate([[at]*len(t) for t, at, _ in audit]), audit[0][2], counts)))


def share(hits, groups, draws=2000):
    "A share in percent with its 95% bootstrap interval over groups"
    names, where = np.unique(groups, return_inverse=True)
    n, k = np.bincount(where), np.bincount(where, hits)
    picks = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
    low, high = np.quantile(k[picks].sum(1)/n[picks].sum(1), [.025, .975])
    return f'{100*hits.mean():.1f} ({100*low:.1f}-{100*high:.1f})'


groups = [g for *_, gs in pairs for g in gs]
whole = {name: {k: np.concatenate([power[name][k] for _, power, _ in pairs]) for k in ('exact', 'off')} for name in ('photo', 'count', 'both')}
print(f'\nPairs: {len(groups):,} test photos whose bin has a photo before')
words = dict(photo='the photo alone', count='the earlier count alone, no photo', both='photo, earlier photo and earlier count')
print(table(['answer from', 'exact % (95%)', 'within one %', 'RMSE'], [[words[n], share(w['exact'].astype(float), groups), share((abs(w['off']) <= 1).astype(float), groups), f"{np.sqrt((w['off']**2).mean()):.3f}"] for n, w in whole.items()]))
print('weights of each fold:', *[known['weights'] for known, _, _ in pairs], sep='\n  ')
