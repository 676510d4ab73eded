"Requests that are wrong in every way, the code that a package carries, and AWS's Ray Serve image around it."
import asyncio, base64, importlib.util, io, json, os, subprocess, sys, tarfile, textwrap, types

import numpy as np
import pytest
import torch

from bin_counter.core import BinCounterError, Counts, ModelCard, PackageError, PhotoError, Preprocess, unpack_tar
from bin_counter.inference import (BODY_LIMIT, CountRequest, RequestError, choose_accept, error_body, error_status, input_fn, log_line, model_fn, output_fn,
                                   predict_fn, predict_many, respond, safe_id)
from bin_counter.net import build_net, save_model
from bin_counter.package import CODE, Package, build_package, count_after, count_photo, find_photos, serving_files


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "An untrained counter that knows pairs, saved, packed, and unpacked as SageMaker would"
    out = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    known = dict(pairs=dict(weights=[1., .5, .2, .1], prior=[1/19]*19, mass=.9, pairs=50))
    card = ModelCard('squeezenet1_1', Counts.parse('1-6+'), Preprocess(64), dict(pool='meanmax'), temperature=1.7, calibration=known)
    save_model(out, build_net(card), card)
    build_package(out, out/'model.tar.gz')
    with tarfile.open(out/'model.tar.gz') as t: unpack_tar(t, out/'model')
    return out


@pytest.fixture(scope='module')
def package(run): return model_fn(run/'model.tar.gz')


@pytest.fixture(scope='module')
def photos(bins): return [p.read_bytes() for p in find_photos([bins])[:12]]


def b64(data): return base64.b64encode(data).decode()
def as_json(**fields): return json.dumps(fields).encode()


@pytest.mark.parametrize('body, kind, attributes, status, why', [
    (b'x', 'text/html', '', 415, 'content type must be'),
    (b'x', '', '', 415, 'content type must be'),
    (b'x', 'image/webp', '', 415, 'content type must be'),
    (b'x'*(BODY_LIMIT + 1), 'image/jpeg', '', 413, 'larger than'),
    (b'', 'application/json', '', 400, 'not valid JSON'),
    (b'{', 'application/json', '', 400, 'not valid JSON'),
    (b'\xff\xfe{', 'application/json', '', 400, 'not valid JSON'),
    (b'[]', 'application/json', '', 400, 'must be an object'),
    (b'null', 'application/json', '', 400, 'must be an object'),
    (b'[' * 1_000_000, 'application/json', '', 400, 'not valid JSON'),
    (b'{"a":' * 300_000, 'application/json', '', 400, 'not valid JSON'),
    (b'{"recorded": ' + b'9'*6000 + b'}', 'application/json', '', 400, 'not valid JSON'),
    (b'{"image": "", "image": ""}', 'application/json', '', 400, 'a key twice'),
    (b'{"image": "", "recorded": Infinity}', 'application/json', '', 400, 'Infinity is not JSON'),
    (as_json(image='', surprise=1), 'application/json', '', 400, 'unknown key "surprise"'),
    (as_json(image='', **{'line\nbreak': 1}), 'application/json', '', 400, 'unknown key'),
    (as_json(), 'application/json', '', 400, 'either as image'),
    (as_json(image='', url=''), 'application/json', '', 400, 'either as image'),
    (as_json(image=1), 'application/json', '', 400, 'image must be a string'),
    (as_json(image='a b'), 'application/json', '', 400, 'not base64'),
    (as_json(image='abc'), 'application/json', '', 400, 'not base64'),
    (as_json(image='\u00e9'), 'application/json', '', 400, 'not base64'),
    (as_json(image='data:image/jpeg;base64,AAAA'), 'application/json', '', 400, 'without a data: prefix'),
    (as_json(image='', recorded=True), 'application/json', '', 400, 'recorded must be'),
    (as_json(image='', recorded='4'), 'application/json', '', 400, 'recorded must be'),
    (as_json(image='', recorded=4.0), 'application/json', '', 400, 'recorded must be'),
    (as_json(image='', recorded=-1), 'application/json', '', 400, 'recorded must be'),
    (as_json(image='', recorded=1_000_001), 'application/json', '', 400, 'recorded must be'),
    (as_json(image='', explain=1), 'application/json', '', 400, 'explain must be'),
    (as_json(image='', explain=None), 'application/json', '', 400, 'explain must be'),
    (as_json(image='', before=''), 'application/json', '', 400, 'go together'),
    (as_json(image='', before_count=3), 'application/json', '', 400, 'go together'),
    (as_json(image='', before='', before_count=1.5), 'application/json', '', 400, 'before_count must be'),
    (as_json(image='', before=7, before_count=1), 'application/json', '', 400, 'before must be a string'),
    (as_json(image='', id=7), 'application/json', '', 400, 'id must be'),
    (as_json(image='', id='a\nb'), 'application/json', '', 400, 'id must be'),
    (as_json(image='', id='x'*129), 'application/json', '', 400, 'id must be'),
    (as_json(url='https://example.com/a.jpg'), 'application/json', '', 400, 'switched off'),
    (b'x', 'image/jpeg', 'recorded', 400, "attribute 'recorded'"),
    (b'x', 'image/jpeg', 'recorded=-1', 400, "attribute 'recorded'"),
    (b'x', 'image/jpeg', 'recorded=\u0664', 400, "attribute 'recorded'"),
    (b'x', 'image/jpeg', 'recorded=9999999', 400, 'recorded must be'),
    (b'x', 'image/jpeg', 'explain=maybe', 400, "attribute 'explain'"),
    (b'x', 'image/jpeg', 'recorded=1,recorded=2', 400, 'given twice'),
    (b'x', 'image/jpeg', 'shelf=7', 400, "attribute 'shelf'"),
    (as_json(image='', recorded=1), 'application/json', 'recorded=1', 400, 'in the body and in the attributes'),
])
def test_a_wrong_request_is_refused_in_one_line(body, kind, attributes, status, why):
    with pytest.raises(RequestError, match=why) as e: input_fn(body, kind, attributes)
    assert e.value.status == status and '\n' not in str(e.value) and len(str(e.value)) < 200


@pytest.mark.parametrize('url', [7, None, ['https://example.com/a.jpg']])
def test_a_url_is_a_string(url):
    with pytest.raises(RequestError, match='url must be a string'): input_fn(as_json(url=url), hosts=['example.com'])


def test_a_url_goes_through_the_careful_function(package, photos, monkeypatch):
    "With the operator's hosts and the limit of a body; what it refuses is the caller's mistake"
    from bin_counter import fetch
    asked = []

    def fetch_url(url, hosts, max_bytes):
        asked.append((url, hosts, max_bytes))
        if 'bad' in url: raise fetch.FetchError('this host is not on the list: ask for it')
        return photos[0]
    monkeypatch.setattr(fetch, 'fetch_url', fetch_url)
    reply = respond(package, as_json(url='https://shop.example/a.jpg', recorded=2), {'content-type': 'application/json'}, ['shop.example'], log=lambda *a, **k: None)
    assert json.loads(reply.body) == count_photo(package, photos[0], 2) and asked == [('https://shop.example/a.jpg', ['shop.example'], BODY_LIMIT)]
    assert respond(package, as_json(url='https://bad.example/a.jpg'), {'content-type': 'application/json'}, ['shop.example'], log=lambda *a, **k: None).status == 400


@pytest.mark.parametrize('kind, photo', [('image/jpeg', b'{"image": "AAAA"}'), ('IMAGE/PNG', b'{"image": "AAAA"}'), ('image/png; q=1', b'{"image": "AAAA"}'), (' application/json ; charset=utf-8', b'\0\0\0')])
def test_content_types_as_they_are_sent(kind, photo):
    assert input_fn(b'{"image": "AAAA"}', kind).photo == photo


@pytest.mark.parametrize('accept, want', [
    ('', 'application/json'), ('*/*', 'application/json'), ('text/csv', 'text/csv'), ('text/*', 'text/csv'), ('TEXT/CSV; header=absent', 'text/csv'),
    ('application/json;q=0.1, text/csv;q=0.9', 'text/csv'), ('text/csv;q=0, */*;q=0.1', 'application/json'), ('text/html,application/xhtml+xml,*/*;q=0.8', 'application/json'),
    ('image/png', None), ('text/csv;q=0', None), ('text/csv;q=banana', None), ('nonsense', None)])
def test_accept(accept, want):
    if want: assert choose_accept(accept) == want
    else:
        with pytest.raises(RequestError) as e: choose_accept(accept)
        assert e.value.status == 406


def test_a_batch_answers_as_one_by_one(package, photos):
    "Records, maps, earlier photos and bad photos in one batch, each as if it had come alone"
    requests = [CountRequest(p, recorded=i if i % 2 else None, explain=i % 3 == 0, id=str(i)) for i, p in enumerate(photos)]
    requests[3:3] = [CountRequest(b'nonsense'), CountRequest(photos[0], before=photos[1], before_count=2), CountRequest(photos[0], before=b'', before_count=2)]
    many = predict_many(requests, package)
    assert len(many) == len(requests) and isinstance(many[3], PhotoError) and 'earlier photo: the file is empty' in str(many[5])
    for r, got in zip(requests, many):
        if isinstance(got, BinCounterError): continue
        want = predict_fn(r, package)
        np.testing.assert_allclose(list(got.pop('probs').values()), list(want.pop('probs').values()), atol=2e-6)
        for k in ('trust', 'expected_count', 'p_mismatch', 'heat', 'before'): got.pop(k, None), want.pop(k, None)
        assert got == want
    assert predict_many([], package) == []


def test_the_answer_is_the_packages_own(package, photos):
    assert predict_fn(input_fn(photos[0], 'image/jpeg', 'recorded=2'), package) == count_photo(package, photos[0], 2)
    body = as_json(image=b64(photos[0]), before=b64(photos[1]), before_count=3, recorded=1)
    assert predict_fn(input_fn(body), package) == count_after(package, photos[0], photos[1], 3, 1)


def test_the_folder_and_the_archive_are_one_package(run, package, photos):
    assert predict_fn(CountRequest(photos[0]), model_fn(run/'model')) == predict_fn(CountRequest(photos[0]), package)


@pytest.mark.parametrize('change, why', [
    (lambda d: (d/'model.onnx').write_bytes(b'another'), 'do not belong together'),
    (lambda d: (d/'model.pth').write_bytes(b'another'), 'do not belong together'),
    (lambda d: (d/'card.json').unlink(), 'holds no card.json'),
    (lambda d: (d/'model.onnx').unlink(), 'holds no model.onnx'),
    (lambda d: (d/'card.json').write_text('{'), 'not valid JSON'),
])
def test_a_folder_is_checked_as_an_archive_is(change, why, run, tmp_path):
    folder = tmp_path/'model'
    with tarfile.open(run/'model.tar.gz') as t: unpack_tar(t, folder)
    change(folder)
    with pytest.raises(PackageError, match=why): model_fn(folder)


def test_a_folder_without_the_weights_answers_under_the_same_name(run, package, tmp_path):
    "The weights take half of the room and only training needs them"
    for n in ('card.json', 'model.onnx'): (tmp_path/n).write_bytes((run/'model'/n).read_bytes())
    assert model_fn(tmp_path).model == package.model


@pytest.mark.parametrize('id, field', [('00100', '00100'), ('', ''), ('a,b', '"a,b"'), ('say "x"', '"say ""x"""')])
def test_a_csv_line_stays_one_line(id, field, package, photos):
    line, kind = output_fn(predict_fn(CountRequest(photos[0], id=id), package), 'text/csv')
    text = line.decode()
    assert kind == 'text/csv' and text.startswith(field + ',') and text.count('\n') == 1 and text.endswith('\n')
    assert len(text.rsplit('"', 1)[-1].lstrip(',').split(',')) >= 7


@pytest.mark.parametrize('given, kept', [('abc-1.2:3/4+5=_', True), ('', False), (None, False), ('a b', False), ('a\r\nset-cookie: x', False), ('x'*129, False), ('\u00e9', False)])
def test_only_a_harmless_request_id_is_kept(given, kept):
    assert (safe_id(given) == given) is kept and 1 <= len(safe_id(given)) <= 128


def test_errors_have_statuses_and_one_line():
    assert [error_status(e) for e in (RequestError('x', 413), PhotoError('x'), PackageError('x'), ValueError('x'))] == [413, 400, 400, 500]
    assert 'secret' not in error_body(ValueError('secret'), 'r').decode()
    assert json.loads(error_body(PhotoError('two\nlines'), 'r')) == dict(error='two lines', request_id='r')


def test_a_log_line_is_one_json_object_whatever_it_is_given():
    out = io.StringIO()
    log_line('info', 'x', ['milliseconds', 'trust', 'batch'], stream=out, text='a\nb', photo=b'\xff\xd8'*999, milliseconds=float('inf'), trust=.5, nothing=None,
             thing=object, url='see https://b.example/k?X-Amz-Signature=s3cret&x=1#f for it', long='x'*9999)
    line = json.loads(out.getvalue())
    assert out.getvalue().count('\n') == 1 and line['photo'] == '1998 bytes' and line['milliseconds'] is None and 'nothing' not in line
    assert 's3cret' not in out.getvalue() and 'https://b.example/k' in line['url'] and len(line['long']) == 500
    assert [m['Name'] for m in line['_aws']['CloudWatchMetrics'][0]['Metrics']] == ['trust'], 'a metric is a number'


def test_a_closed_log_does_not_stop_the_work():
    closed = io.StringIO()
    closed.close()
    assert log_line('info', 'x', stream=closed)['message'] == 'x'


def test_a_photo_is_in_no_repr(): assert 'JFIF' not in repr(CountRequest(b'JFIF', before=b'JFIF', before_count=1))


def test_what_goes_wrong_inside_is_a_500_that_says_nothing_about_it(package, photos, monkeypatch):
    lines = []
    monkeypatch.setattr(Package, 'probs', lambda self, x: 1/0)
    reply = respond(package, photos[0], {'Content-Type': 'image/jpeg'}, log=lambda *a, **k: lines.append((a, k)))
    assert reply.status == 500 and 'Zero' not in reply.body.decode() and 'Zero' in lines[0][1]['error']


# --- the code that travels in the package

def test_an_old_package_without_code_still_opens(run, tmp_path):
    with tarfile.open(run/'model.tar.gz') as t: old = {m.name: t.extractfile(m).read() for m in t if not m.name.startswith(('code/', 'deploy', 'config'))}
    with tarfile.open(tmp_path/'m.tar.gz', 'w:gz') as t:
        for name, content in old.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    assert sorted(old) == ['card.json', 'model.onnx', 'model.pth'] and Package.open(tmp_path/'m.tar.gz').card.arch == 'squeezenet1_1'


ALONE = '''
import sys, json
from pathlib import Path

class Only:
    "Lets in the standard library, what a serving image has, and nothing of this checkout"
    allowed = {'numpy', 'cv2', 'onnxruntime', 'PIL', 'inference', 'bin_counter'} | set(sys.stdlib_module_names)
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] not in self.allowed and not name.startswith('_'): raise ImportError(f'{name} is not in a serving image')

sys.meta_path.insert(0, Only())
model, photo = Path(sys.argv[1]), Path(sys.argv[2])
sys.path = [str(model/'code')] + [p for p in sys.path if not (Path(p or '.')/'bin_counter').exists()]
from inference import input_fn, model_fn, output_fn, predict_fn
import bin_counter
answer, kind = output_fn(predict_fn(input_fn(photo.read_bytes(), 'image/jpeg', 'recorded=2,explain=1'), model_fn(model)), 'application/json')
theirs = sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'torchvision', 'fastai', 'boto3', 'sagemaker', 'fastcore', 'fastapi', 'tqdm'})
print(json.dumps(dict(answer=json.loads(answer), where=str(Path(bin_counter.__file__).parent), theirs=theirs)))
'''


def test_the_code_in_the_package_answers_alone(run, package, bins, tmp_path):
    "In a process that can import numpy, OpenCV, ONNX Runtime and Pillow, and not the bin_counter of this checkout"
    photo = find_photos([bins])[0]
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    out = subprocess.run([sys.executable, '-c', ALONE, run/'model', photo], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert out.returncode == 0, out.stderr[-2000:]
    got = json.loads(out.stdout)
    assert got['where'] == str(run/'model/code/bin_counter') and got['theirs'] == []
    assert got['answer'] == predict_fn(CountRequest(photo.read_bytes(), 2, True), package)


def test_the_code_in_the_package_is_this_code():
    files = serving_files()
    assert {n for n in files if n.startswith('code/bin_counter/')} == {f'code/bin_counter/{m}.py' for m in CODE}
    for name, content in files.items():
        if name.endswith('.py'): compile(content, name, 'exec')
    assert b'onnxruntime' in files['code/requirements.txt']


class Replica:
    "What Ray makes of a decorated class, as far as a test needs it"
    def __init__(self, cls): self.cls = cls
    def bind(self, *args): return lambda: self.cls(*args)


@pytest.fixture
def deployment(run, monkeypatch):
    "`deployment.py` of the unpacked package, imported as Ray imports it, with a stand-in for `ray.serve`"
    ray = types.ModuleType('ray')
    ray.serve = types.SimpleNamespace(deployment=Replica)
    monkeypatch.setitem(sys.modules, 'ray', ray)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    spec = importlib.util.spec_from_file_location('deployment', run/'model/deployment.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ray_serves_the_same_answers(deployment, package, photos):
    "The adapter itself; Ray is a stand-in here, the test below uses the real one"
    from starlette.requests import Request
    replica = deployment.app()

    def post(body, **headers):
        async def receive(): return dict(type='http.request', body=body, more_body=False)
        scope = dict(type='http', method='POST', path='/', headers=[(k.replace('_', '-').encode(), v.encode()) for k, v in headers.items()])
        return asyncio.run(replica(Request(scope, receive)))
    good = post(as_json(image=b64(photos[0]), recorded=2), content_type='application/json')
    assert good.status_code == 200 and json.loads(good.body) == count_photo(package, photos[0], 2)
    assert post(b'x', content_type='image/jpeg').status_code == 400 and post(b'x', content_type='text/plain').status_code == 415
    assert post(photos[0], content_type='image/jpeg', accept='text/csv').headers['content-type'].startswith('text/csv')


def test_rays_configuration_names_what_is_there(run):
    yaml = pytest.importorskip('yaml')
    app, = yaml.safe_load((run/'model/config.yaml').read_text())['applications']
    module, name = app['import_path'].split(':')
    text = (run/f'model/{module}.py').read_text()
    assert app['route_prefix'] == '/' and f'\n{name} = ' in text and f"class {app['deployments'][0]['name']}:" in text


@pytest.mark.skipif(os.environ.get('BIN_COUNTER_SLOW') != '1', reason='starts a Ray cluster, about a minute: set BIN_COUNTER_SLOW=1')
def test_a_real_ray_serves_the_package(run, package, photos, tmp_path):
    "`serve run config.yaml` in the unpacked package, as AWS's image does it, with a Ray of one's own"
    python = os.environ.get('BIN_COUNTER_RAY_PYTHON', sys.executable)
    if subprocess.run([python, '-c', 'import ray.serve'], capture_output=True).returncode: pytest.skip("no Ray here: pip install 'ray[serve]' somewhere and set BIN_COUNTER_RAY_PYTHON")
    script = textwrap.dedent('''
        import json, sys, urllib.request, yaml
        import ray
        from ray import serve
        ray.init(num_cpus=2, include_dashboard=False, _node_ip_address='127.0.0.1', log_to_driver=False, object_store_memory=100_000_000)
        serve.start(http_options=dict(host='127.0.0.1', port=int(sys.argv[1])))
        app, = yaml.safe_load(open('config.yaml'))['applications']
        module, name = app['import_path'].split(':')
        serve.run(getattr(__import__(module), name), name=app['name'], route_prefix=app['route_prefix'])
        request = urllib.request.Request(f'http://127.0.0.1:{sys.argv[1]}/', open(sys.argv[2], 'rb').read(), {'Content-Type': 'application/json', 'Accept': 'application/json'})
        open(sys.argv[3], 'wb').write(urllib.request.urlopen(request, timeout=60).read())
        serve.shutdown(), ray.shutdown()
    ''')
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    (tmp_path/'body.json').write_bytes(as_json(image=b64(photos[0]), recorded=2))
    env = {**os.environ, 'PYTHONPATH': str(run/'model'), 'RAY_USAGE_STATS_ENABLED': '0'}
    out = subprocess.run([python, '-c', script, str(port), tmp_path/'body.json', tmp_path/'answer.json'], capture_output=True, text=True, cwd=run/'model', env=env, timeout=300)
    assert out.returncode == 0, out.stderr[-3000:]
    assert json.loads((tmp_path/'answer.json').read_bytes()) == count_photo(package, photos[0], 2)
