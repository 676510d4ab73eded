"""Saved outputs belong to the code above them. This notices where they do not.

    python tools/outputs.py run NOTEBOOK...    # run from top to bottom, save the outputs, clean, stamp
    python tools/outputs.py stamp NOTEBOOK...  # only stamp: right after "restart and run all" in Jupyter
    python tools/outputs.py check [NOTEBOOK...]  # exit with 1 and one line for each notebook whose outputs are older than its code

The stamp is one line in the notebook's metadata, `outputs_of`: a short hash of the source of each code cell, in order. It is
written by the run that makes the outputs, and nbdev_clean keeps it (`allowed_metadata_keys` in settings.ini). Where a code cell
was changed, added, removed or moved since, the hashes differ, and the first one that does is the cell from which outputs are stale.

Outputs themselves are not compared, so seconds, sizes and the last digits of a loss may differ from machine to machine, and the
check takes no time. What it cannot see is a change in another chapter; `nbdev_test` runs all cells and their assertions for that.
It is one line, not one for each cell, so that two branches that both changed a notebook conflict there and it is run again.
"""
import argparse, hashlib, json, os, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEY = 'outputs_of'


def notebooks(root=ROOT): return [p for p in sorted((root/'nbs').rglob('*.ipynb')) if not re.search(r'(^|/)[._]', p.relative_to(root).as_posix())]
def code_cells(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).strip()]


def digest(cell):
    "Six hex digits of a cell's code; white space at the ends of lines does not count"
    text = '\n'.join(line.rstrip() for line in ''.join(cell['source']).strip().splitlines())
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def stamp_of(nb): return ' '.join(map(digest, code_cells(nb)))


def staleness(nb):
    "'' if the outputs are those of the code, else what is wrong"
    cells, now, then = code_cells(nb), stamp_of(nb), nb['metadata'].get(KEY)
    if not cells or now == then: return ''
    if then is None: return 'nobody stamped its outputs'
    at = next((i for i, (a, b) in enumerate(zip(now.split(), then.split())) if a != b), None)
    if at is None: return f'{abs(len(now.split()) - len(then.split()))} code cells at its end were added or removed after the outputs were made'
    return f'outputs are older than the code from cell {cells[at]["id"]} on: {"".join(cells[at]["source"]).strip().splitlines()[0][:70]!r}'


def read(path): return json.loads(path.read_text(encoding='utf-8'))


def stamp(path):
    "Say that the outputs are those of the code"
    from execnb.nbio import read_nb, write_nb
    nb = read_nb(path)
    nb.metadata[KEY] = stamp_of(nb)
    write_nb(nb, path)


def _skipped(flags):
    "Cells that nbdev_test would not run either keep the outputs they have"
    marks = re.compile(rf'^#\| *(eval: *false|{"|".join(flags)})\b', re.M | re.I)
    return lambda cell: cell.cell_type != 'code' or bool(marks.search(cell.source))


def run(path):
    "Run a notebook in its folder, save its outputs, clean and stamp it"
    from execnb.shell import CaptureShell
    from nbdev.clean import nbdev_clean
    from nbdev.config import get_config
    os.environ.setdefault('BIN_COUNTER_PROGRESS', '0')
    path, here = path.resolve(), Path.cwd()
    os.chdir(path.parent)
    shell = CaptureShell(path=str(path.parent))
    try: shell.execute(str(path), str(path), exc_stop=True, preproc=_skipped(get_config().tst_flags.split()))
    except Exception as e: shell.exc = e
    finally: os.chdir(here)
    failed = next((o for c in read(path)['cells'] for o in c.get('outputs', []) if o['output_type'] == 'error'), None)
    if failed or shell.exc: raise SystemExit(f'{path.name} failed: {failed["ename"]}: {failed["evalue"]}' if failed else f'{path.name} failed: {shell.exc!r}')
    stamp(path)
    nbdev_clean.__wrapped__(fname=str(path))


def check(paths):
    "One line for each notebook whose outputs are stale"
    found = [f'{p.relative_to(ROOT) if p.is_relative_to(ROOT) else p}: {why}' for p in paths if (why := staleness(read(p)))]
    return '\n'.join([*found, f'run them again: python tools/outputs.py run {" ".join(f.split(":")[0] for f in found)}']) if found else ''


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=['run', 'stamp', 'check'])
    parser.add_argument('notebooks', nargs='*', type=Path)
    args = parser.parse_args()
    if args.what == 'check': sys.exit(check(args.notebooks or notebooks()) or 0)
    if not args.notebooks: parser.error('which notebooks?')
    for path in args.notebooks: dict(run=run, stamp=stamp)[args.what](path)


if __name__ == '__main__': main()
