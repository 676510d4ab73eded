"""Exact counts over the number of training photos, ours from quality.py beside what others published.

    python benchmarks/learning_curve.py --quality DIR --recipe one --out learning_curve.svg

Run quality.py first with --share 1 and smaller shares; this only reads what it left. The published points are from splits that do
not keep the photos of a bin together, so part of what they report is leak; ours are not.
"""
import argparse, math
from pathlib import Path

from _shared import table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--quality', required=True, help='the --out folder of quality.py')
parser.add_argument('--recipe', default='one')
parser.add_argument('--out', help='figure to write: .svg or .png')
args = parser.parse_args()

from bin_counter.core import read_json
from bin_counter.figure import BLUE, GREY, INK, ORANGE, bare_axes, save_figure

# training photos, exact %, who; the capstones say 6 to 10 thousand (counts 1 to 5), drawn at 8; the others are of counts 0 to 5
PUBLIC = [*((8_000, a, 'capstones of a nanodegree') for a in (33.4, 33.6, 33.2, 33.8)), (50_000, 43.5, 'dmartizzi, ResNet-50'), (150_000, 53.8, 'CS229, ResNet-34'),
          (324_000, 56.2, 'CS229, ResNet-34'), (324_735, 55.67, 'silverbottlep, ResNet-34 from scratch'), (326_000, 56.7, 'ozantezcan, ResNet-34')]


def line(n): return -23.9 + 14.7*math.log10(n)


found = []
for path in sorted(Path(args.quality).glob('quality*.json')):
    result = read_json(path)['results'].get(args.recipe)
    if not result: continue
    suffix = path.stem.removeprefix('quality')
    photos = [read_json(p)['photos'] for p in sorted(Path(args.quality).glob(f'{args.recipe}{suffix}/fold*/done.json'))]
    found.append((sum(photos)/len(photos), result['scores']['figures']['accuracy'], result['scores']['figures']['rmse']['value'], len(result['folds'])))
found.sort(key=lambda f: f[0])
print(table(['training photos', 'exact % (95%)', 'RMSE', 'folds', 'line through the published points'],
            [[f'{n:,.0f}', f"{100*a['value']:.1f} ({100*a['low']:.1f}-{100*a['high']:.1f})", f'{r:.3f}', k, f'{line(n):.1f}'] for n, a, r, k in found]))
if args.out:
    fig, ax = bare_axes('training photos', 'exact counts, %', 5.6, 3.4)
    ends = [400, 400_000]
    ax.plot(ends, [line(n) for n in ends], '--', color=GREY, lw=1, label='line through the published points')
    ax.scatter([n for n, *_ in PUBLIC], [a for _, a, _ in PUBLIC], 18, color=ORANGE, label='published, splits with leaks')
    n, a = [f[0] for f in found], [f[1] for f in found]
    ax.errorbar(n, [100*x['value'] for x in a], [[100*(x['value'] - x['low']) for x in a], [100*(x['high'] - x['value']) for x in a]], color=BLUE, marker='o', ms=4, capsize=2, label=f'bin_counter, {args.recipe}, grouped folds')
    ax.axhline(25.4, color=GREY, lw=.8)
    ax.annotate('always 3', (ends[1], 25.4), color=INK, ha='right', va='bottom', fontsize=8)
    ax.set_xscale('log')
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    save_figure(args.out, fig)
    print(f'\nwrote {args.out}')
