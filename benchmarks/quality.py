"""Named recipes over grouped folds: exact counts with an interval, and everything that stands beside them.

    python benchmarks/quality.py --data DIR --out DIR [--recipes classic best] [--arch mobilenet_v2] [--weights FILE]

Every photo is a test photo once. Its fold is a hash of its group, so photos of one bin stay together; of the other four fifths,
an eighth of the groups (again by hash) is for validation: epochs, temperature, intervals and thresholds come from it, never from
the fold. A recipe is a file of benchmarks/recipes/: a preset, what is changed in it, and why. Each training runs in a process of
its own, so that its memory can be measured; what is done is kept under --out, and a run that was stopped goes on where it was.
The table compares each recipe with the first one named, paired by photo.
"""
import argparse, json, resource, subprocess, sys, time
from pathlib import Path

from _shared import machine, table, unit

HERE = Path(__file__).resolve().parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--data', required=True, help='data folder: bin-images/, metadata/')
parser.add_argument('--out', required=True, help='folder for results, caches and checkpoints')
parser.add_argument('--recipes', nargs='+', default=['classic', 'best'], help='names of files in benchmarks/recipes/')
parser.add_argument('--arch', default='mobilenet_v2')
parser.add_argument('--weights', default='imagenet', help="'imagenet' or a file")
parser.add_argument('--counts', default='1-5')
parser.add_argument('--folds', type=int, default=5)
parser.add_argument('--only', type=int, nargs='+', help='folds to run, from 0; default: all')
parser.add_argument('--seed', type=int, default=0, help='of folds, weights, order and mixup')
parser.add_argument('--share', type=float, default=1., help='share of the training photos to use, for a learning curve')
parser.add_argument('--one', nargs=2, metavar=('RECIPE', 'FOLD'), help=argparse.SUPPRESS)
args = parser.parse_args()

from bin_counter.balance import balance_rows
from bin_counter.cache import Sample
from bin_counter.core import BinCounterError, Counts, bytes_hash, file_hash, read_json, read_manifest, write_csv, write_json
from bin_counter.data import index_bins
from bin_counter.splits import EXTRA

out, counts = Path(args.out), Counts.parse(args.counts)


def samples_of(fold):
    "Samples of one fold's training, and the photos that only other folds use"
    rows, unused = [], []
    for r in read_manifest(out/'manifest.csv'):
        inside, place = counts.index(r.label) is not None, int(unit(args.seed, f'fold {r.group}')*args.folds)
        part = 'test' if place == fold else 'valid' if unit(args.seed, f'inner {r.group}') < 1/8 else 'train'
        if part == 'train' and unit(args.seed, f'share {r.group}') >= args.share: part = None
        sample = lambda part: Sample(r.id, r.label, r.group, part, path=Path(args.data)/'bin-images'/f'{r.id}.jpg')
        if inside and part: rows.append(sample(part))
        elif part == 'train': rows.append(sample(EXTRA))
        else: unused.append(sample(EXTRA))
    return rows, unused


def recipe_of(name):
    "A recipe's file, and its settings with the weights in use"
    try: r = read_json(HERE/'recipes'/f'{name}.json')
    except BinCounterError: sys.exit(f'no recipe {name!r}: choose {", ".join(sorted(p.stem for p in (HERE/"recipes").glob("*.json")))}')
    return r, dict(arch=args.arch, weights=args.weights, counts=args.counts, seed=args.seed, **r['set'])


def first_stage(name, fold, recipe, settings, used, also):
    "Train the stage that goes before the recipe's own, on the same photos; returns its weights"
    from bin_counter.net import save_model
    from bin_counter.train import preset_config, train_net
    place, config = folder(name, fold)/'first', preset_config(recipe['preset'], **settings | recipe['first'])
    net, card, _ = train_net(used, config, out/'work', place/'history.csv', lambda line: print(f'first: {line}', flush=True), also=also)
    save_model(place, net, card)
    return str(place/'model.pth')


def run_one(name, fold):
    "Train one recipe on one fold, and write its predictions, card and figures"
    from bin_counter.train import preset_config, train
    recipe, settings = recipe_of(name)
    config = preset_config(recipe['preset'], **settings)
    rows, unused = samples_of(fold)
    balanced = balance_rows([r for r in rows if r.part != EXTRA], recipe['balance'], seed=args.seed, counts=counts) + [r for r in rows if r.part == EXTRA]
    if 'suspects' in recipe: balanced = doubted(balanced, recipe['suspects'])
    test = [r for r in rows if r.part == 'test']
    left = [] if config.others == 'use' else [r for r in rows if r.part == EXTRA]
    start = time.perf_counter()
    used = [r for r in balanced if r.repeats]
    also = [*test, *left, *unused, *(r for r in balanced if not r.repeats)]
    if 'first' in recipe: config = preset_config(recipe['preset'], **settings | dict(weights=first_stage(name, fold, recipe, settings, used, also)))
    card = train(used, config, folder(name, fold), work=out/'work', log=lambda line: print(line, flush=True), also=also, tidy=False)
    write_json(folder(name, fold)/'done.json', dict(key=key_of(name, fold), seconds=time.perf_counter() - start, mass=card.calibration['mass'], temperature=card.temperature,
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6, photos=sum(r.part in ('train', EXTRA) for r in used), machine=machine()))


def doubted(rows, how):
    "Training photos whose record another recipe doubts weigh less; it has seen none of them, but other folds' counters have seen this fold's test photos"
    from bin_counter.labels import down_weight, find_suspects, read_held_out
    return down_weight(rows, find_suspects(read_held_out([home(how['by'])/'oof.csv']), how['share']), how['weight'])


def home(name): return out/(name if args.share == 1 else f'{name}-{args.share:g}')


def folder(name, fold): return home(name)/f'fold{fold}'


def key_of(name, fold):
    "Changes whenever a result would"
    from bin_counter.train import data_hash, preset_config
    recipe, settings = recipe_of(name)
    weights = file_hash(args.weights) if Path(args.weights).is_file() else args.weights
    doubt = [recipe['suspects'], file_hash(home(recipe['suspects']['by'])/'oof.csv')] if 'suspects' in recipe else []
    first = [recipe['first']] if 'first' in recipe else []
    return bytes_hash(repr((*doubt, *first, recipe['balance'], preset_config(recipe['preset'], **{**settings, 'weights': args.weights}), weights, data_hash(samples_of(fold)[0]))).encode())


def is_done(name, fold):
    path = folder(name, fold)/'done.json'
    return path.exists() and read_json(path)['key'] == key_of(name, fold)


def pooled(name, folds):
    "Test predictions of all folds as one table, with the masses of their intervals"
    import numpy as np
    from bin_counter.evaluate import Predictions, read_predictions
    parts = [read_predictions(folder(name, f)/'predictions.csv').part('test') for f in folds]
    join = lambda get: tuple(x for p in parts for x in get(p))
    return Predictions(join(lambda p: p.ids), join(lambda p: p.parts), np.concatenate([p.labels for p in parts]), join(lambda p: p.groups),
                       np.concatenate([p.probs for p in parts]), counts, np.concatenate([p.answers for p in parts])), parts


def percent(f): return f"{100*f['value']:.1f} ({100*f['low']:.1f}-{100*f['high']:.1f})"


def row_of(name, folds, first):
    "One line of the table, and the figures behind it"
    from bin_counter.evaluate import compare_predictions, interval_figures, score_predictions
    p, parts = pooled(name, folds)
    scores, done = score_predictions(p), [read_json(folder(name, f)/'done.json') for f in folds]
    spans = [interval_figures(q, d['mass'], draws=0) for q, d in zip(parts, done)]
    cover = sum(s['coverage']['value']*len(q) for s, q in zip(spans, parts))/len(p)
    width = sum(s['width']*len(q) for s, q in zip(spans, parts))/len(p)
    f = scores['figures']
    seconds, memory = sum(d['seconds'] for d in done)/len(done), max(d['memory'] for d in done)
    diff = '' if first is None or first[0] == name else compare_predictions(first[1], p, part='test')['figures']
    show = '' if not diff else f"{100*diff['accuracy']['difference']:+.1f} ({100*diff['accuracy']['low']:+.1f} to {100*diff['accuracy']['high']:+.1f})"
    line = [name, percent(f['accuracy']), percent(f['within_one']), f"{f['mae']['value']:.3f}", f"{f['rmse']['value']:.3f} ({f['rmse']['low']:.3f}-{f['rmse']['high']:.3f})",
            f"{f['kappa']['value']:.3f}", f"{100*f['ece']['value']:.1f}", f'{100*cover:.1f}', f'{width:.2f}', f'{seconds:.0f}', f'{memory:.1f}', show]
    write_csv(home(name)/'oof.csv', [dict(id=i, part='test', label=int(l), group=g, count=counts.values[a], **{f'p{n}': f'{v:.6f}' for n, v in zip(counts.names, q)})
                                   for i, l, g, a, q in zip(p.ids, p.labels, p.groups, p.answers, p.probs)],
              ['id', 'part', 'label', 'group', 'count', *(f'p{n}' for n in counts.names)])
    return line, p, dict(recipe=name, folds=list(folds), scores=scores, coverage=cover, width=width, seconds=seconds, memory=memory, photos=len(p), first=diff)


def main():
    out.mkdir(parents=True, exist_ok=True)
    if not (out/'manifest.csv').exists(): index_bins(args.data, out)
    for name in args.recipes: recipe_of(name)
    folds = args.only or range(args.folds)
    for fold in folds:
        for name in args.recipes:
            if is_done(name, fold): continue
            print(f'== {name}, fold {fold}', flush=True)
            argv = [a for a in sys.argv[1:]]
            if subprocess.run([sys.executable, __file__, *argv, '--one', name, str(fold)]).returncode: sys.exit(f'{name}, fold {fold} failed: mend it and run again, what is done is kept')
    lines, all_, first = [], {}, None
    for name in args.recipes:
        line, p, figures = row_of(name, folds, first)
        first = first or (name, p)
        lines.append(line)
        all_[name] = figures
    base = all_[args.recipes[0]]['scores']['baselines']
    print(f'\n{machine()}\n{args.data}: {len(first[1]):,} photos of counts {args.counts}, {len(folds)} of {args.folds} grouped folds, seed {args.seed}; {args.arch}\n')
    text = table(['recipe', 'exact % (95%)', 'within one %', 'MAE', 'RMSE', 'QWK', 'ECE %', '90% intervals hold %', 'counts wide', 's a fold', 'GB', f'exact against {args.recipes[0]}'], lines)
    print(text)
    print('\ntrivial answers: ' + json.dumps(base))
    kind = '' if args.share == 1 else f'-{args.share:g}'
    write_json(out/f'quality{kind}.json', dict(arguments={k: v for k, v in vars(args).items() if k != 'one'}, machine=machine(), results=all_))
    (out/f'quality{kind}.md').write_text(text + '\n')


if args.one: run_one(args.one[0], int(args.one[1]))
else: main()
