"What holds for the project as a whole: import order, light imports, the shape of the notebooks, and the commands' help."
import ast, json, re, statistics, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').glob('[0-9]*.ipynb'))
TUTORIALS = sorted(p for p in (ROOT/'nbs/tutorials').glob('[a-z]*.ipynb'))
SHARED = {'core', 'photo', 'figure', 'page', 'splits', 'scene', 'model', 'net', 'watch', 'pairs', 'cache', 'hosts', 'settings', 'calibration', 'trials', # what a stage may import;
          'package', 'fetch', 'inference', 'prices', 'cloud'} # everything else is a stage, and the parts of the emulator are one
AWS = {'stack', 'plans', 'source', 'upload', 'client', 'champion', 'promote', 'ec2', 'endpoints', 'jobs', 'leftovers', 'pipeline', 'report', 'shards', 'drift', 'monitor', 'remote'} # what works on AWS stands on each other
RUNS = dict(champion={'evaluate'}, pipeline={'bundle'}, shards={'data'}) # a stage that runs inside of their container, or zip
FREE = {'cli', 'operate', 'sagemaker', 'rehearse'} # they call everything


def cells(path): return json.loads(path.read_text())['cells']
def source(cell): return ''.join(cell['source'])
def module_of(path): return next(m[1] for c in cells(path) if (m := re.search(r'^#\| default_exp (\w+)', source(c), re.M)))
def exported(path): return [c for c in cells(path) if c['cell_type'] == 'code' and re.search(r'^#\| ?exporti?\b', source(c), re.M)]


ORDER = [module_of(p) for p in NOTEBOOKS]


def imports(name):
    "Modules of ours that a module imports anywhere, and third-party ones that it imports at its top"
    tree = ast.parse((ROOT/f'bin_counter/{name}.py').read_text())
    ours, top = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1: ours.add(node.module)
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('bin_counter.'): ours.add(node.module.split('.')[1])
    for node in tree.body:
        if isinstance(node, ast.Import): top |= {a.name.split('.')[0] for a in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level: top.add(node.module.split('.')[0])
    return ours, top - set(sys.stdlib_module_names) - {'bin_counter'}


@pytest.mark.parametrize('name', ORDER)
def test_a_module_imports_only_earlier_ones_and_a_stage_no_stage(name):
    ours, _ = imports(name)
    assert all(ORDER.index(o) < ORDER.index(name) for o in ours)
    more = {'train'} if name == 'tune' else {o for o in ours if o.startswith('emulat')} if name.startswith('emulat') else AWS | RUNS.get(name, set()) if name in AWS else set() # a search is many trainings
    if name not in FREE: assert ours <= SHARED | more


TRAINING = {'numpy', 'torch', 'fastai', 'fastcore'}
THIRD_PARTY = dict(evaluate={'numpy'}, calibration={'numpy'}, hosts=TRAINING, cli={'fastcore'}, net={'torch', 'torchvision'}, watch=TRAINING - {'numpy'}, cache=TRAINING, train=TRAINING) # all others: the standard library

@pytest.mark.parametrize('name', ORDER)
def test_third_party_at_import(name):
    assert imports(name)[1] <= THIRD_PARTY.get(name, set())


def test_every_pin_admits_the_oldest_python():
    "Debian's 3.11 is 3.11.2, and a pin that wants 3.11.5 ends a newcomer's first command"
    from importlib.metadata import distributions
    specifiers = pytest.importorskip('packaging.specifiers', reason='packaging comes with pytest')
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini')
    pinned = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().splitlines() if '==' in l and not l.startswith('#'))
    key = lambda name: re.sub('[-_.]+', '-', name).lower()
    pinned = {key(k): v for k, v in pinned.items()}
    here = [d for d in distributions() if pinned.get(key(d.metadata['Name'])) == d.version]
    if not here: pytest.skip('none of the pinned versions is installed')
    oldest = f"{cfg['DEFAULT']['min_python']}.0"
    assert [f"{d.metadata['Name']} {d.version} wants {r}" for d in here if (r := d.metadata['Requires-Python']) and not specifiers.SpecifierSet(r).contains(oldest)] == []


def run(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd='/').stdout


def test_import_is_light():
    "The package itself loads nothing but itself, and the light stages nothing heavy"
    assert run('import sys; before = set(sys.modules); import bin_counter; print(sorted(set(sys.modules) - before))').strip() == "['bin_counter']"
    heavy = run('import sys, bin_counter, bin_counter.core, bin_counter.data, bin_counter.synth, bin_counter.figure, bin_counter.balance, bin_counter.package, bin_counter.inference, bin_counter.serve, bin_counter.invoke, bin_counter.cloud\n'
                'print([m for m in ("torch", "numpy", "PIL", "cv2", "boto3", "fastai", "matplotlib", "onnxruntime", "fastapi", "uvicorn") if m in sys.modules])')
    assert heavy.strip() == '[]'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_can_be_read(path):
    "Titles, sizes and proportions that keep a chapter readable"
    all_cells, out = cells(path), exported(path)
    lengths = [len(source(c).splitlines()) for c in out]
    code = [len([l for l in source(c).splitlines() if l.strip() and not l.startswith('#|')]) for c in out]
    prose = [c for c in all_cells if c['cell_type'] == 'markdown']
    assert re.match(r'# .+\n\n> .+', source(all_cells[0])), 'a title, then one line that is the whole point'
    assert path.stat().st_size <= 150_000
    assert 25 <= len(all_cells) <= 130
    assert max(lengths) <= 40 and statistics.median(code) <= 12
    assert len(prose) >= len(out)
    assert len({c['id'] for c in all_cells}) == len(all_cells)


@pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_can_be_read(path):
    "A title and its point, prose between the cells, a way to the figures of real bins; it exports nothing"
    all_cells = cells(path)
    code = [c for c in all_cells if c['cell_type'] == 'code' and not source(c).startswith('#| hide')]
    lengths = [len(source(c).splitlines()) for c in code]
    prose = '\n'.join(source(c) for c in all_cells if c['cell_type'] == 'markdown')
    assert re.match(r'# .+\n\n> .+', source(all_cells[0]))
    assert path.stat().st_size <= 150_000 and 20 <= len(all_cells) <= 65
    assert max(lengths) <= 20 and statistics.median(lengths) <= 6
    assert not exported(path) and 'default_exp' not in path.read_text()
    assert 'model_card.ipynb' in prose and re.search('^ *(assert|test_eq|test_close)', '\n'.join(map(source, code)), re.M)


@pytest.mark.parametrize('path', NOTEBOOKS + TUTORIALS, ids=lambda p: p.stem)
def test_outputs_are_clean(path):
    "No stacked progress bars, no warnings, no tracebacks, no paths of somebody's home, no large picture"
    for c in cells(path):
        for o in c.get('outputs', []):
            text = ''.join(o.get('text', [])) + ''.join(''.join(v) for k, v in o.get('data', {}).items() if k.startswith('text'))
            assert o['output_type'] != 'error'
            assert not re.search(r'\r|it/s\]|/root/|/home/|(?<![\w.])/(?:work|builds?|mnt)/|site-packages|Traceback \(most|/tmp/tmp|\w*Warning:', text), text[:300]
            for kind, data in o.get('data', {}).items():
                if kind.startswith('image'): assert len(''.join(data)) <= 70_000, kind # 50 KB in base64


def parameters(node):
    a = node.args
    return [p for p in [*a.posonlyargs, *a.args, *a.kwonlyargs] if p.arg not in ('self', 'cls')]


@pytest.mark.parametrize('name', ORDER)
def test_public_functions_are_documented(name):
    "A docstring in one line, and a comment on every parameter where there are two or more"
    text = (ROOT/f'bin_counter/{name}.py').read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    public = set(next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__'), []))
    bad = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public: continue
        if any(isinstance(d, ast.Name) and d.id == 'patch' for d in node.decorator_list): continue
        if not ast.get_docstring(node): bad.append(f'{node.name}: no docstring')
        if isinstance(node, ast.FunctionDef) and len(parameters(node)) > 1:
            bad += [f'{node.name}({p.arg}): no comment' for p in parameters(node) if '#' not in lines[p.lineno - 1] and 'Param(' not in lines[p.lineno - 1]]
    assert not bad, '\n'.join(bad)


def scripts():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini')
    return [s.split('=')[0] for s in cfg['DEFAULT']['console_scripts'].split()]


@pytest.mark.parametrize('name', scripts())
def test_every_command_has_help(name):
    "The installed script answers --help, with hyphened options only"
    script = Path(sys.executable).with_name(name)
    if not script.exists(): pytest.skip(f'{name} is not installed beside this Python: run make test')
    out = subprocess.run([script, '--help'], capture_output=True, text=True)
    assert out.returncode == 0 and 'usage: ' + name in out.stdout
    assert not re.search(r'--\w+_\w+', out.stdout)


def test_nothing_of_the_dataset_is_committed():
    "Photos of bins in the tree could only be the dataset's, whose licence forbids it; weights stay out as well"
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode: pytest.skip('not a git checkout')
    assert not [f for f in tracked.stdout.splitlines() if f.lower().endswith(('.jpg', '.jpeg', '.pth', '.onnx', '.tar.gz', '.npy'))]
