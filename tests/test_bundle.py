"Zips for Lambda: what is in them, that they run with nothing else in reach, and that a rebuild gives the same bytes."
import json, os, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest

from bin_counter import bundle
from bin_counter.bundle import BundleError, build_bundle
from bin_counter.core import ConfigError, PackageError
from bin_counter.package import Package, count_photo, find_photos

ROOT = Path(__file__).parents[1]
HERE = f'{sys.version_info.major}.{sys.version_info.minor}'


def listing(folder): return {p.relative_to(folder).as_posix(): bundle.file_hash(p) for p in folder.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def task(package, tmp_path_factory):
    "A Lambda that counts, built twice for a Python that is here: its folder, its Python, and the hashes of all files of both builds"
    python = next((v for v in (HERE, *reversed(bundle.KINDS['local'])) if v in bundle.KINDS['local'] and bundle._interpreter(v)), None)
    wheels, kinds = bundle.WHEELS, bundle.KINDS
    if python is None: # this Python is older than those of such a Lambda: its own NumPy then, and everything else as it is
        python, wheels, kinds = HERE, ('numpy==2.4.6', *bundle.WHEELS[1:]), {**bundle.KINDS, 'local': (HERE,)}
    out, seen, fetch = tmp_path_factory.mktemp('task'), [], bundle._fetch_wheels

    def once(folder, *args): # 100 MB are fetched for the first build alone
        if not (out/'wheels').exists(): fetch(out/'wheels', *args)
        shutil.copytree(out/'wheels', folder, copy_function=os.link, dirs_exist_ok=True)

    def keep(folder, path): # packing takes most of the time, and is tested on the small one
        seen.append(listing(folder))
        if len(seen) == 1: shutil.copytree(folder, out/'task', copy_function=os.link)
        Path(path).write_bytes(b'zip')
    with pytest.MonkeyPatch.context() as m:
        for name, value in dict(WHEELS=wheels, KINDS=kinds, _fetch_wheels=once, _zip=keep).items(): m.setattr(bundle, name, value)
        import platform
        architecture = 'arm64' if platform.machine() in ('aarch64', 'arm64') else 'x86_64'
        if sys.platform != 'linux': pytest.skip('the libraries of a Lambda run on Linux only')
        try: made = [build_bundle('local', out/f'{n}.zip', package, architecture, python) for n in range(2)]
        except BundleError as e:
            if 'out of reach' in str(e): pytest.skip(str(e))
            raise
    return out/'task', bundle._interpreter(python), seen, made[0]


RUN = '''
import base64, json, sys
sys.path = [sys.argv[1], *(p for p in sys.path if 'site-packages' not in p)]
from bin_counter.invoke import local_handler
answers = [local_handler(dict(image=base64.b64encode(open(p, 'rb').read()).decode(), recorded=3, explain=True)) for p in sys.argv[2:]]
places = {n: getattr(m, '__file__', None) for n, m in sys.modules.items() if '.' not in n}
print(json.dumps([answers, sorted(n for n, f in places.items() if f and f.startswith(sys.argv[1]))]))
'''


def test_it_counts_with_nothing_but_its_own_folder(task, package, bins, tmp_path):
    "The promise of all that was left out: isolated from every other library and from a writable disk, it answers as the package does"
    from PIL import Image
    folder, python, _, _ = task
    jpeg = find_photos([bins])[0]
    Image.open(jpeg).save(tmp_path/'photo.png')
    out = subprocess.run([python, '-B', '-S', '-I', '-c', RUN, str(folder), str(jpeg), str(tmp_path/'photo.png')], capture_output=True, text=True, cwd='/', env=dict(LAMBDA_TASK_ROOT=str(folder), PATH='/usr/bin:/bin'))
    assert out.returncode == 0, out.stderr
    answers, modules = json.loads(out.stdout.splitlines()[-1])
    assert modules == ['PIL', 'bin_counter', 'cv2', 'numpy', 'onnxruntime']
    for answer, photo in zip(answers, (jpeg, tmp_path/'photo.png')):
        want = count_photo(Package.load(package), photo.read_bytes(), recorded=3)
        assert 'heat' in answer and answer['count'] == want['count'] and answer['probs'] == pytest.approx(want['probs'], abs=1e-4)


def test_a_rebuild_gives_the_same_files(task):
    _, _, (first, second), made = task
    assert first == second and made.compiled and made.unzipped <= bundle.MOST
    assert not [n for n in first if bundle.NOT_NEEDED.search(n)] and {'model/card.json', 'model/model.onnx'} <= set(first) and 'model/model.pth' not in first


def test_every_module_is_compiled_and_the_compiled_one_is_what_runs(task):
    "Python must take the compiled files although their sources are newer than any time in the zip"
    folder, python, (names, _), _ = task
    sources = {n for n in names if n.endswith('.py')}
    assert all(any(c.startswith(f'{Path(n).parent.as_posix()}/__pycache__/{Path(n).stem}.cpython-') for c in names) for n in sources)
    out = subprocess.run([python, '-B', '-S', '-I', '-v', '-c', f'import sys; sys.path.insert(0, {str(folder)!r}); import numpy, PIL.Image, onnxruntime, bin_counter.invoke'], capture_output=True, text=True, cwd='/').stderr
    ran = [l for l in out.splitlines() if l.startswith(f"# code object from '{folder}/")]
    assert len(ran) > 100 and all(l.endswith(".pyc'") for l in ran)


def test_licences_travel_along(task):
    _, _, (names, _), _ = task
    for library in ('numpy', 'onnxruntime', 'opencv_python_headless', 'pillow'):
        assert [n for n in names if n.lower().startswith(library) and 'licen' in n.lower()] or [n for n in names if n.startswith(f'{library}/') and 'LICENSE' in n], library


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "The zip that asks an endpoint, unpacked"
    out = tmp_path_factory.mktemp('small')
    made = build_bundle('endpoint', out/'endpoint.zip', python=HERE if HERE in bundle.KINDS['endpoint'] else '3.13')
    zipfile.ZipFile(made.path).extractall(out/'task')
    return made, out/'task'


def test_the_one_that_asks_is_tiny_and_whole(small):
    made, folder = small
    assert made.zipped < 200_000 and not made.needs_s3 and made.handler == 'bin_counter.invoke.endpoint_handler'
    code = ('import json, sys; sys.path = [sys.argv[1], *(p for p in sys.path if "site-packages" not in p)]\nfrom bin_counter.invoke import endpoint_handler\n'
            'import bin_counter.fetch, bin_counter.photo\n'
            'print(json.dumps(endpoint_handler(dict(version="2.0", rawPath="/api/health", rawQueryString="", headers={}, requestContext=dict(http=dict(method="GET", path="/api/health"))))))')
    out = subprocess.run([sys.executable, '-B', '-S', '-I', '-c', code, str(folder)], capture_output=True, text=True, cwd='/')
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout)['statusCode'] == 200


def test_all_that_the_handlers_import_is_in_the_list():
    "Modules of ours that those in the zip import at their top, or inside of what a handler calls"
    import ast
    lacking = set()
    for name in bundle.MODULES:
        tree = ast.parse((ROOT/f'bin_counter/{name}.py').read_text())
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module: lacking.add(node.module)
    assert lacking <= set(bundle.MODULES)


def test_the_same_zip_from_another_process_and_folder(small, tmp_path):
    made, _ = small
    code = f'from bin_counter.bundle import build_bundle; print(build_bundle("endpoint", "x.zip", python={made.runtime[6:]!r}).sha256)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '7', 'TZ': 'Asia/Tokyo'}).stdout
    assert out.strip() == made.sha256
    with zipfile.ZipFile(made.path) as z: assert [i.filename for i in z.infolist()] == sorted(z.namelist()) and {i.date_time for i in z.infolist()} == {(1980, 1, 1, 0, 0, 0)} and {i.external_attr >> 16 for i in z.infolist()} == {0o644}


@pytest.mark.parametrize('kw, why', [(dict(kind='edge'), 'choose endpoint or local'), (dict(kind='local'), 'needs a counter'), (dict(kind='endpoint', package='x'), 'leave the package out'), (dict(kind='endpoint', architecture='sparc'), 'choose x86_64 or arm64'), (dict(kind='local', package='x', python='3.11'), 'not on 3.11'), (dict(kind='endpoint', python='2.7'), 'not on 2.7')])
def test_a_bundle_that_cannot_be_is_refused_at_once(kw, why, tmp_path):
    with pytest.raises(ConfigError, match=why): build_bundle(out=tmp_path/'x.zip', **kw)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_or_damaged_is_found_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, '_pip', lambda *a: 1/0)
    (tmp_path/'m.tar.gz').write_bytes(b'no archive')
    for path in (tmp_path/'m.tar.gz', tmp_path/'none.tar.gz'):
        with pytest.raises(PackageError): build_bundle('local', tmp_path/'x.zip', path)
    assert not (tmp_path/'x.zip').exists()


@pytest.mark.parametrize('env, why', [(dict(PIP_INDEX_URL='http://127.0.0.1:9/simple'), 'the package index is out of reach'), (dict(PIP_INDEX_URL='file:///nowhere'), 'has no numpy==')])
def test_an_index_that_does_not_have_it(env, why, package, tmp_path, monkeypatch):
    for k, v in dict(PIP_NO_CACHE_DIR='1', PIP_CONFIG_FILE='/dev/null', PIP_RETRIES='1', PIP_DEFAULT_TIMEOUT='3', PIP_FIND_LINKS='', PIP_EXTRA_INDEX_URL='', **env).items(): monkeypatch.setenv(k, v)
    with pytest.raises(BundleError, match=why) as e: build_bundle('local', tmp_path/'x.zip', package)
    assert '\n' not in str(e.value) and not (tmp_path/'x.zip').exists()


def test_without_that_python_it_is_built_uncompiled_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, '_interpreter', lambda v: None)
    made = build_bundle('endpoint', tmp_path/'x.zip')
    assert not made.compiled and 'not compiled ahead' in str(made) and not [n for n in zipfile.ZipFile(made.path).namelist() if n.endswith('.pyc')]


def test_a_name_on_the_path_that_is_no_python(tmp_path, monkeypatch):
    "A shim that only says how to get one, or another version under the name"
    for text in ('echo "python3.99: not installed" >&2; exit 127', 'echo "3.8 /usr/bin/python"'):
        (tmp_path/'python3.99').write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path/'python3.99').chmod(0o755)
        monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
        assert bundle._interpreter('3.99') is None


def test_versions_are_those_that_are_tested_together():
    "What a Lambda runs and what the tests run differ only where the chapter says so"
    pins = dict(l.strip().split('==') for l in (ROOT/'constraints.txt').read_text().splitlines() if '==' in l and not l.startswith('#'))
    wheels = dict(w.split('==') for w in (*bundle.WHEELS, bundle.OPENCV['arm64']))
    assert {n: v for n, v in wheels.items() if n != 'numpy'} == {n: pins[n] for n in wheels if n != 'numpy'}
