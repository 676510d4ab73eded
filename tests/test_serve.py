"A live server: wrong requests, load from another process, kill -9, SIGTERM, callers that lie or never finish, and a fuzzer that reads its description."
import base64, http.client, json, os, re, select, shutil, signal, socket, subprocess, sys, threading, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bin_counter.core import ConfigError, Counts, ModelCard, Preprocess
from bin_counter.inference import BODY_LIMIT
from bin_counter.net import build_net, save_model
from bin_counter.package import Package, build_package, count_photo, find_photos
from bin_counter.serve import GREY, Limits, make_app, serve, serving

ROOT = Path(__file__).parents[1]
QUIET = lambda *args, **fields: None
SERVE = '''
import json, sys
from bin_counter.serve import Limits, serve
serve(sys.argv[1], port=int(sys.argv[2]), limits=Limits(**json.loads(sys.argv[3])), threads=1)
print(json.dumps(dict(modules=sorted({m.split('.')[0] for m in sys.modules}))))
'''


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    "An untrained counter"
    out = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    card = ModelCard('squeezenet1_1', Counts(), Preprocess(96))
    save_model(out, build_net(card), card)
    build_package(out, out/'model.tar.gz')
    return out/'model.tar.gz'


@pytest.fixture(scope='module')
def package(archive): return Package.open(archive)


@pytest.fixture(scope='module')
def photos(bins): return [p.read_bytes() for p in find_photos([bins])[:16]]


class Live:
    "A server in a process of its own; its log is read as it is written"
    def __init__(self, archive, port=0, **limits):
        env = {k: v for k, v in os.environ.items() if k != 'SAGEMAKER_BIND_TO_PORT'}
        self.process = subprocess.Popen([sys.executable, '-c', SERVE, archive, str(port), json.dumps(limits)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        first = self.process.stdout.readline()
        assert first, self.process.stderr.read()
        self.log = [json.loads(first)]
        self.port = int(self.log[0]['address'].rsplit(':', 1)[1])
        self.reader = threading.Thread(target=lambda: self.log.extend(json.loads(line) for line in self.process.stdout), daemon=True)
        self.reader.start()

    def ask(self, method='POST', path='/invocations', body=b'', timeout=20, **headers):
        "One request on a connection of its own: status, headers, body"
        c = http.client.HTTPConnection('127.0.0.1', self.port, timeout=timeout)
        try:
            c.request(method, path, body, {k.replace('_', '-'): v for k, v in headers.items()})
            r = c.getresponse()
            return r.status, r.headers, r.read()
        finally: c.close()

    def raw(self, data, timeout=10):
        "Send bytes as they are, and read until the server hangs up or is silent"
        with socket.create_connection(('127.0.0.1', self.port), timeout=timeout) as s:
            s.sendall(data)
            out = b''
            try:
                while chunk := s.recv(65536): out += chunk
            except (TimeoutError, ConnectionResetError): pass
            return out

    def end(self, sig=signal.SIGTERM):
        "Stop it; its exit status, once the log is whole"
        if self.process.poll() is None: self.process.send_signal(sig)
        code = self.process.wait(35)
        self.reader.join(5)
        return code


@pytest.fixture(scope='module')
def live(archive):
    server = Live(archive, head=1., upload=1.5)
    yield server
    server.end(signal.SIGKILL)


def photo_request(photo, **headers):
    "A photo as raw HTTP"
    lines = ''.join(f'{k}: {v}\r\n' for k, v in {'Host': 'x', 'Content-Type': 'image/jpeg', 'Content-Length': len(photo), **headers}.items())
    return f'POST /invocations HTTP/1.1\r\n{lines}\r\n'.encode() + photo


# --- answers and refusals

def test_answers_are_the_ones_of_bin_count(live, archive, bins):
    "The command and the server, photo by photo"
    photos = find_photos([bins])[:6]
    code = 'import sys; from bin_counter.cli import bin_count; sys.argv[0] = "bin_count"; bin_count()'
    out = subprocess.run([sys.executable, '-c', code, '--package', archive, '--recorded', '3', '--json', *photos], capture_output=True, text=True, check=True)
    for photo, line in zip(photos, out.stdout.splitlines(), strict=True):
        want = json.loads(line)
        status, _, body = live.ask(body=photo.read_bytes(), Content_Type='image/jpeg', X_Amzn_SageMaker_Custom_Attributes='recorded=3')
        got = json.loads(body)
        assert status == 200 and {k: want[k] for k in ('count', 'interval', 'review', 'alarm', 'model')} == {k: got[k] for k in ('count', 'interval', 'review', 'alarm', 'model')}
        assert got['probs'] == pytest.approx(want['probs'], abs=2e-6)


def test_a_large_photo_is_counted_in_a_queue_of_its_own(live, package, photos):
    "20 megapixels in a few kilobytes, twice at once, and a small photo that overtakes them"
    import cv2, numpy as np
    large = cv2.imencode('.png', np.full((4000, 5000, 3), 90, np.uint8))[1].tobytes()
    answers, order = [], []

    def ask(name, photo):
        answers.append((name, *live.ask(body=photo, Content_Type='image/png')))
        order.append(name)
    threads = [threading.Thread(target=ask, args=('large', large)) for _ in range(2)]
    for t in threads: t.start()
    time.sleep(.05)
    ask('small', photos[0])
    for t in threads: t.join()
    assert all(status == 200 for _, status, _, _ in answers) and order[-1] == 'large'
    got = [json.loads(body)['probs'] for name, _, _, body in answers if name == 'large']
    assert got[0] == pytest.approx(count_photo(package, large)['probs'], abs=2e-6) and len(got) == 2


@pytest.mark.parametrize('method, path, body, headers, status, why', [
    ('GET', '/', b'', {}, 404, 'No such address'),
    ('GET', '/docs', b'', {}, 404, 'No such address'),
    ('GET', '/invocations', b'', {}, 405, 'No such method'),
    ('POST', '/ping', b'', {}, 405, 'No such method'),
    ('POST', '/invocations', b'', {}, 415, 'content type'),
    ('POST', '/invocations', b'x', dict(Content_Type='text/plain'), 415, 'content type'),
    ('POST', '/invocations', b'x', dict(Content_Type='multipart/form-data; boundary=x'), 415, 'content type'),
    ('POST', '/invocations', b'', dict(Content_Type='image/jpeg'), 400, 'the file is empty'),
    ('POST', '/invocations', b'GIF89a', dict(Content_Type='image/png'), 400, 'not a JPEG or PNG'),
    ('POST', '/invocations', b'{', dict(Content_Type='application/json'), 400, 'not valid JSON'),
    ('POST', '/invocations', b'{"image": ""}', dict(Content_Type='application/json'), 400, 'the file is empty'),
    ('POST', '/invocations', b'x', dict(Content_Type='image/jpeg', X_Amzn_SageMaker_Custom_Attributes='recorded=x'), 400, 'cannot be read'),
    ('POST', '/invocations', b'x', dict(Content_Type='image/jpeg', Accept='image/webp'), 406, 'ask for one of them'),
    ('POST', '/invocations', b'x'*(BODY_LIMIT + 1), dict(Content_Type='image/jpeg'), 413, 'larger than'),
])
def test_a_wrong_request_gets_one_line_of_json(live, method, path, body, headers, status, why):
    got, head, text = live.ask(method, path, body, **headers, X_Request_Id='r-42')
    error = json.loads(text)
    assert got == status and head['content-type'] == 'application/json' and head['x-request-id'] == 'r-42'
    assert sorted(error) == ['error', 'request_id'] and why in error['error'] and '\n' not in error['error'] and error['request_id'] == 'r-42'
    if status == 405: assert head['allow'] in ('POST', 'GET')


def test_a_strange_request_id_is_replaced(live):
    _, head, _ = live.ask('GET', '/nowhere', X_Request_Id='<script>')
    assert re.fullmatch('[0-9a-f]{32}', head['x-request-id'])


def test_ping_and_the_advice_to_batch_transform(live):
    assert live.ask('GET', '/ping')[0] == 200
    advice = json.loads(live.ask('GET', '/execution-parameters')[2])
    assert advice == dict(MaxConcurrentTransforms=8, BatchStrategy='SINGLE_RECORD', MaxPayloadInMB=6)


# --- callers that lie or never finish

@pytest.mark.parametrize('data, first', [
    (photo_request(b'', **{'Content-Length': 10**9}), b'HTTP/1.1 413'),
    (photo_request(b'', **{'Content-Length': 10**9, 'Expect': '100-continue'}), b'HTTP/1.1 413'),
    (photo_request(b'', **{'Content-Length': 10**18}), b'HTTP/1.1 413'),
    (photo_request(b'', **{'Content-Length': -5}), b'HTTP/1.1 400'),
    (photo_request(b'abc', **{'Content-Length': 50}), b'HTTP/1.1 408'),
    (photo_request(b'abcdef', **{'Content-Length': 3, 'Connection': 'close'}), b'HTTP/1.1 400'),
    (b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n', b'HTTP/1.1 400'),
    (b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab', b'HTTP/1.1 408'),
    (b'nonsense\r\n\r\n', b'HTTP/1.1 400'),
    (b'\x16\x03\x01\x02\x00', b'HTTP/1.1 400'),
], ids=['a gigabyte announced', 'a gigabyte announced politely', 'an exabyte announced', 'negative', 'more announced than sent', 'less announced than sent', 'broken chunks', 'half a chunk', 'no HTTP', 'TLS'])
def test_a_liar_gets_a_status_and_is_hung_up_on(live, data, first):
    start = time.monotonic()
    assert live.raw(data).startswith(first) and time.monotonic() - start < 6
    assert live.ask('GET', '/ping')[0] == 200


def test_a_body_without_a_length_is_counted_as_it_comes(live):
    "Chunks that go on beyond the limit; the refusal comes although the caller is still sending"
    with socket.create_connection(('127.0.0.1', live.port), timeout=10) as s:
        s.sendall(b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n')
        chunk = b'100000\r\n' + b'\xff'*2**20 + b'\r\n'
        for _ in range(7): s.sendall(chunk)
        assert s.recv(4096).startswith(b'HTTP/1.1 413')


def test_a_slow_head_is_cut_and_a_kept_connection_is_not(live, photos):
    "The first caller sends a byte now and then; the second is silent between two requests, as load balancers are"
    kept = http.client.HTTPConnection('127.0.0.1', live.port, timeout=10)
    kept.request('GET', '/ping')
    assert kept.getresponse().read()
    start = time.monotonic()
    with socket.create_connection(('127.0.0.1', live.port), timeout=10) as s:
        with pytest.raises(OSError):
            for byte in b'POST /invocations HTTP/1.1\r\nX-Slow: ' + b'a'*200:
                s.sendall(bytes([byte]))
                time.sleep(.1)
                assert time.monotonic() - start < 8, 'still connected'
    kept.request('POST', '/invocations', photos[0], {'Content-Type': 'image/jpeg'})
    assert kept.getresponse().status == 200
    kept.close()


def test_a_head_without_end_is_cut(live):
    "A caller that sends headers for ever does not fill the memory"
    with socket.create_connection(('127.0.0.1', live.port), timeout=10) as s:
        s.sendall(b'GET /ping HTTP/1.1\r\n')
        with pytest.raises(OSError):
            for i in range(2000): s.sendall(f'X-{i}: {"a"*1000}\r\n'.encode())
    assert live.ask('GET', '/ping')[0] == 200


def test_slow_bodies_do_not_hold_up_the_others(live, photos):
    "Twenty callers that stop in the middle, and one that wants an answer meanwhile"
    slow = [socket.create_connection(('127.0.0.1', live.port), timeout=10) for _ in range(20)]
    for s in slow: s.sendall(photo_request(b'\xff'*100, **{'Content-Length': 5000}))
    assert live.ask(body=photos[0], Content_Type='image/jpeg')[0] == 200
    assert not select.select(slow, [], [], 0)[0], 'answered before any of them was given up'
    assert all(s.recv(100).startswith(b'HTTP/1.1 408') for s in slow)
    for s in slow: s.close()


# --- room, time, health

def test_a_full_server_says_so_at_once(archive, photos):
    with serving(archive, replace(Limits(), waiting=2), log=QUIET) as url:
        port = int(url.rsplit(':', 1)[1])
        slow = [socket.create_connection(('127.0.0.1', port)) for _ in range(2)]
        for s in slow: s.sendall(photo_request(b'x', **{'Content-Length': 100}))
        time.sleep(.3)
        c = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
        c.request('POST', '/invocations', photos[0], {'Content-Type': 'image/jpeg'})
        r = c.getresponse()
        assert r.status == 503 and r.headers['retry-after'] == '1' and 'try again' in json.loads(r.read())['error']
        c.close()
        for s in slow: s.close()
        time.sleep(.3)
        c.request('POST', '/invocations', photos[0], {'Content-Type': 'image/jpeg'})
        assert c.getresponse().status == 200, 'callers that went away leave their place'
        c.close()


def test_bodies_have_a_common_bound(archive, photos):
    with serving(archive, replace(Limits(), body=50_000, bodies=60_000), log=QUIET) as url:
        port = int(url.rsplit(':', 1)[1])
        with socket.create_connection(('127.0.0.1', port), timeout=5) as one, socket.create_connection(('127.0.0.1', port), timeout=5) as two:
            one.sendall(photo_request(b'x'*45_000, **{'Content-Length': 49_000}))
            time.sleep(.3)
            two.sendall(photo_request(b'x'*45_000, **{'Content-Length': 49_000}))
            assert two.recv(4096).startswith(b'HTTP/1.1 503')


class Ill(Package):
    "A counter whose network can fall ill"
    illness = ''

    def probs(self, x):
        if self.illness == 'stuck': time.sleep(1.2)
        if self.illness == 'failing': raise RuntimeError('out of memory')
        return super().probs(x)


@pytest.mark.parametrize('illness, why', [('stuck', 'in time'), ('failing', 'does not answer')])
def test_an_ill_network_is_a_503_and_shows_in_ping(illness, why, package, photos):
    "And when it is well again, so is the server"
    ill, log = Ill(package.card, package.sha256, package.session), []
    with serving(ill, replace(Limits(), deadline=.4, fresh=.01), log=lambda *a, **k: log.append((a[1], k))) as url:
        def ask(method, path, body=None):
            c = http.client.HTTPConnection(url[7:], timeout=10)
            try:
                c.request(method, path, body, {'Content-Type': 'image/jpeg'})
                r = c.getresponse()
                return r.status, r.read().decode()
            finally: c.close()
        assert ask('GET', '/ping')[0] == 200
        ill.illness = illness
        status, body = ask('POST', '/invocations', photos[0])
        assert status == 503 and why in body and 'memory' not in body
        if illness == 'failing':
            assert ask('GET', '/ping')[0] == 503 and any('out of memory' in k.get('error', '') for _, k in log)
        ill.illness = ''
        time.sleep(1.3)
        assert ask('GET', '/ping')[0] == 200 and ask('POST', '/invocations', photos[0])[0] == 200


# --- load, kill, stop

CLIENT = '''
import collections, http.client, json, sys, threading, time
port, seconds, threads, folder, want = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4], json.load(open(sys.argv[5]))
photos = {n: open(f'{folder}/{n}.jpg', 'rb').read() for n in want}
seen, until = collections.Counter(), time.monotonic() + seconds

def right(got, want):
    "Is this the package's own answer? A batch may move the sixth decimal"
    return got['count'] == want['count'] and all(abs(got['probs'][k] - p) < 5e-6 for k, p in want['probs'].items()) and got['model'] == want['model']

def ask(i):
    names, c = sorted(want), None
    while time.monotonic() < until:
        n = names[i % len(names)]
        i += 1
        try:
            c = c or http.client.HTTPConnection('127.0.0.1', port, timeout=10)
            c.request('POST', '/invocations', photos[n], {'Content-Type': 'image/jpeg', 'X-Request-Id': n})
            r = c.getresponse()
            body = json.loads(r.read())
            kind = str(r.status) if r.status != 200 else 'right' if right(body, want[n]) else 'wrong'
            if r.headers.get('connection') == 'close': c = c.close()
        except (OSError, http.client.HTTPException):
            kind, c = 'no connection', None
            time.sleep(.02)
        seen[kind] += 1

all_threads = [threading.Thread(target=ask, args=(i,)) for i in range(threads)]
[t.start() for t in all_threads]
[t.join() for t in all_threads]
print(json.dumps(seen))
'''


@pytest.fixture(scope='module')
def crowd(package, bins, tmp_path_factory):
    "Start callers in a process of their own; they compare every answer with the package's"
    wanted = {p.stem: count_photo(package, p.read_bytes()) for p in find_photos([bins])[:16]}
    file = tmp_path_factory.mktemp('want')/'want.json'
    file.write_text(json.dumps(wanted))

    def start(port, seconds, threads=12):
        return subprocess.Popen([sys.executable, '-c', CLIENT, str(port), str(seconds), str(threads), bins/'bin-images', file], stdout=subprocess.PIPE, text=True)
    return start


def test_every_answer_under_load_is_the_packages_own(live, crowd):
    "Batches form, and nobody gets another's answer"
    callers = crowd(live.port, 3)
    seen = Counter(json.loads(callers.communicate(timeout=60)[0]))
    assert set(seen) == {'right'} and seen['right'] > 20
    time.sleep(.2)
    assert max(line.get('batch', 0) for line in live.log) > 1


def test_killed_under_load_and_started_again(archive, crowd):
    "Callers see broken connections, never a wrong answer, and come back to the same port"
    first = Live(archive)
    callers = crowd(first.port, 6)
    time.sleep(1.5)
    assert first.end(signal.SIGKILL) == -9
    second = Live(archive, first.port)
    try: seen = Counter(json.loads(callers.communicate(timeout=60)[0]))
    finally: second.end(signal.SIGKILL)
    answered = [sum(line.get('status') == 200 for line in server.log) for server in (first, second)]
    assert min(answered) > 5 and seen['no connection'] > 0 and set(seen) <= {'right', 'no connection', '503'}


def test_sigterm_finishes_what_was_begun_and_refuses_the_rest(archive, photos, crowd):
    server = Live(archive)
    begun = []
    for p in photos: # heads and half of the bodies are in when the signal comes
        s = socket.create_connection(('127.0.0.1', server.port), timeout=20)
        s.sendall(photo_request(p)[:-500])
        begun.append(s)
    time.sleep(.5)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(.3)
    status, head, body = server.ask(body=photos[0], Content_Type='image/jpeg')
    assert status == 503 and head['retry-after'] == '1' and 'stopping' in json.loads(body)['error'] and server.ask('GET', '/ping')[0] == 503
    start = time.monotonic()
    for s, p in zip(begun, photos):
        s.sendall(p[-500:])
        assert s.recv(65536).startswith(b'HTTP/1.1 200')
    assert server.process.wait(20) == 0 and time.monotonic() - start < 15
    server.end()
    assert server.log[-2]['message'] == 'stopped'
    assert not {'torch', 'torchvision', 'fastai', 'sagemaker', 'boto3'} & set(server.log[-1]['modules']), 'a server is light'


def test_a_second_signal_ends_it_at_once(archive, photos):
    server = Live(archive)
    with socket.create_connection(('127.0.0.1', server.port)) as s:
        s.sendall(photo_request(photos[0])[:-500])
        time.sleep(.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(.5)
        start = time.monotonic()
        server.end(signal.SIGINT)
        assert time.monotonic() - start < 6


# --- the log, the port, the description, the container

def test_the_log_is_json_without_photos(live, photos):
    live.ask(body=photos[0], Content_Type='image/jpeg', X_Request_Id='in-the-log')
    live.ask(body=json.dumps(dict(image=base64.b64encode(photos[0]).decode(), id='x')).encode(), Content_Type='application/json')
    time.sleep(.2)
    line = next(line for line in live.log if line.get('request_id') == 'in-the-log')
    assert line['status'] == 200 and line['bytes'] == len(photos[0]) and line['_aws']['CloudWatchMetrics'][0]['Namespace'] == 'bin_counter'
    text = json.dumps(live.log)
    assert base64.b64encode(photos[0]).decode()[40:80] not in text and 'JFIF' not in text and max(len(json.dumps(line)) for line in live.log) < 2500


def test_sagemakers_port_counts_and_a_taken_one_is_a_line(archive, live, monkeypatch):
    monkeypatch.setenv('SAGEMAKER_BIND_TO_PORT', str(live.port))
    with pytest.raises(ConfigError, match=f'cannot listen on 127.0.0.1:{live.port} .*choose another port'): serve(archive, port=0)
    monkeypatch.setenv('SAGEMAKER_BIND_TO_PORT', 'http')
    with pytest.raises(ConfigError, match='is not a number'): serve(archive, port=0)


def test_a_fuzzer_that_reads_the_description_finds_nothing(live, tmp_path):
    "schemathesis makes up requests from /openapi.json, and looks for answers that it does not announce"
    st = shutil.which('st', path=str(Path(sys.executable).parent)) or shutil.which('st')
    if not st: pytest.skip('schemathesis is not installed: pip install schemathesis')
    before = len(live.log)
    out = subprocess.run([st, 'run', f'http://127.0.0.1:{live.port}/openapi.json', '--seed', '7', '--max-examples', '12', '--phases', 'examples,coverage,fuzzing', '--checks', 'all',
                          '--exclude-checks', 'positive_data_acceptance', '--suppress-health-check', 'all', '--warnings', 'off', '--no-color', '--generation-database', 'none'],
                         capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-1000:]
    tested = re.search(r'(\d+) generated', out.stdout)
    assert tested and int(tested[1]) > 30
    statuses = {line.get('status') for line in live.log[before:]}
    assert {200, 400, 415} <= statuses, 'it got beyond the first check'


def test_the_example_of_the_description_works(package):
    app = make_app(package, log=QUIET)
    example = app.openapi()['paths']['/invocations']['post']['requestBody']['content']['application/json']['example']
    assert example['image'] == GREY and count_photo(package, base64.b64decode(GREY))['count'] in package.card.counts.values


def instructions(text):
    "Dockerfile instructions, continuation lines joined, comments dropped"
    joined = re.sub(r'\\\n', ' ', re.sub(r'(?m)^\s*#.*\n', '', text))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_the_container_recipe():
    "It was never built by this test, which needs no Docker: it is parsed, and held to what was promised"
    text = (ROOT/'infra/Dockerfile').read_text()
    steps = instructions(text)
    known = {'FROM', 'ARG', 'ENV', 'RUN', 'COPY', 'USER', 'WORKDIR', 'EXPOSE', 'HEALTHCHECK', 'ENTRYPOINT', 'CMD', 'LABEL', 'STOPSIGNAL'}
    assert {s[0] for s in steps} <= known
    bases = [s[1].split()[0] for s in steps if s[0] == 'FROM']
    assert all(re.fullmatch(r'python:3\.\d+\.\d+-slim-\w+', b) for b in bases), 'slim, and pinned to a patch release'
    given = dict(s[1].split('=', 1) for s in steps if s[0] == 'ARG')
    user = re.sub(r'\$\{(\w+)\}', lambda m: given[m[1]], [s[1] for s in steps if s[0] == 'USER'][-1])
    assert user not in ('root', '0') and any(f' {user}' in s[1] and 'useradd' in s[1] for s in steps), 'a user who exists, and is not root unless asked for'
    assert any('[serve]' in s[1] and '--no-cache-dir' in s[1] for s in steps if s[0] == 'RUN')
    entry, cmd = (json.loads(next(s[1] for s in steps if s[0] == k)) for k in ('ENTRYPOINT', 'CMD'))
    assert cmd == ['serve'], 'as SageMaker calls it: docker run image serve'
    assert entry[0] == 'python', 'exec form: the signal reaches Python, not a shell'
    assert any(s[0] == 'HEALTHCHECK' and '/ping' in s[1] for s in steps)
    copied = [part for s in steps if s[0] == 'COPY' and '--from' not in s[1] for part in s[1].split()[:-1]]
    assert copied and all((ROOT/part).exists() for part in copied if not part.startswith('--')), copied
