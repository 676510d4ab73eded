"""Fetching and indexing bins, against a real S3 server (moto) behind a proxy that misbehaves on purpose."""
import errno, http.client, io, json, os, random, signal, subprocess, sys, threading, time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bin_counter import data
from bin_counter.core import BinRecord, DataError, read_csv, read_manifest, write_csv
from bin_counter.data import MetadataError, fetch_bins, group_bins, group_sizes, index_bins, parse_ids, read_file_list, read_metadata

REPO = Path(__file__).resolve().parent.parent
ABID = Path(os.environ.get('BIN_COUNTER_ABID') or REPO.parent/'shared'/'abid')
QUICK = dict(backoff=0.005, workers=4)


# ---------------------------------------------------------------- drawn bins

def jpeg(seed):
    "A small noisy photo, different for each seed"
    from PIL import Image
    im = Image.frombytes('RGB', (40, 30), random.Random(seed).randbytes(40*30*3))
    b = io.BytesIO()
    im.save(b, 'JPEG', quality=80)
    return b.getvalue()

def metadata(label, asins=None):
    "A metadata file whose quantities sum to the label"
    asins = asins or [f'B{label:09d}']
    quantities = [label - len(asins) + 1] + [1]*(len(asins) - 1) if label else [0]*len(asins)
    return json.dumps(dict(BIN_FCSKU_DATA={a: dict(asin=a, quantity=q) for a, q in zip(asins, quantities)}, EXPECTED_QUANTITY=label)).encode()

def a_bin(id, label, asins=None):
    "Key and content of a bin's two objects"
    return {f'bin-images/{id}.jpg': jpeg(id), f'metadata/{id}.json': metadata(label, asins or [f'P{id}'])}

def many_bins(n, labels=(1, 2, 3, 4, 5)):
    "Bins 00001 and on, with labels in turn"
    return {k: v for i in range(1, n + 1) for k, v in a_bin(f'{i:05d}', labels[i % len(labels)]).items()}

def put_folder(root, objects):
    for key, content in objects.items():
        (root/key).parent.mkdir(parents=True, exist_ok=True)
        (root/key).write_bytes(content)
    return root

def tree(root):
    "Every file under a folder, with its content"
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(Path(root).rglob('*')) if p.is_file()}

def ids_in(out): return [r.id for r in read_manifest(out/'manifest.csv')]
def skipped_in(out): return {r['id']: r['reason'] for r in read_csv(out/'skipped.csv', ['id', 'reason'])}


# ---------------------------------------------------------------- a server, and a proxy that spoils what it says

class Faults:
    "Which request is spoiled, and how; counts what passes"
    def __init__(self, plan=lambda n, path: None, latency=0):
        self.plan, self.latency = plan, latency
        self.requests, self.spoiled, self.signed, self.now, self.most, self.lock = [], Counter(), 0, 0, 0, threading.Lock()

    @contextmanager
    def request(self, path, headers):
        with self.lock:
            self.requests.append(path)
            self.signed += 'Authorization' in headers
            self.now += 1
            self.most = max(self.most, self.now)
            fault = self.plan(len(self.requests), path)
            if fault: self.spoiled[fault] += 1
        try: yield fault
        finally:
            with self.lock: self.now -= 1

    def photos(self): return [p for p in self.requests if '/bin-images/' in p]

def seeded(rate, kinds, seed=0):
    "A plan that spoils a share of all requests, the same ones for one order of requests"
    rng = random.Random(seed)
    return lambda n, path: rng.choice(kinds) if rng.random() < rate else None

class Proxy(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def send(self, status, headers, body, claim=None):
        self.send_response(status)
        for k, v in headers:
            if k.lower() not in ('content-length', 'connection', 'transfer-encoding', 'date', 'server'): self.send_header(k, v)
        self.send_header('Content-Length', str(claim or len(body)))
        if claim: self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        faults = self.server.faults
        with faults.request(self.path, self.headers) as fault:
            time.sleep(faults.latency)
            if fault == 'drop':
                self.close_connection = True
                return self.connection.close()
            if fault in ('500', '503'):
                code = {'500': 'InternalError', '503': 'SlowDown'}[fault]
                return self.send(int(fault), [], f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>spoiled</Message></Error>'.encode())
            up = http.client.HTTPConnection(*self.server.upstream, timeout=20)
            up.request('GET', self.path, headers={k: v for k, v in self.headers.items() if k.lower() != 'connection'})
            answer = up.getresponse()
            body = answer.read()
            up.close()
            if fault == 'truncate':
                self.close_connection = True
                return self.send(answer.status, answer.getheaders(), body[:len(body)//2], claim=len(body))
            self.send(answer.status, answer.getheaders(), body)

class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, request, client_address): pass # we drop connections on purpose

@pytest.fixture(scope='module')
def moto():
    "Host and port of an S3 server on loopback"
    import logging
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    logging.getLogger('werkzeug').setLevel(logging.ERROR)
    server.start()
    yield server.get_host_and_port()
    server.stop()

@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    "No credentials anywhere, and no way out but loopback"
    for k in [k for k in os.environ if k.startswith('AWS_') or k.lower().endswith('_proxy')]: monkeypatch.delenv(k)
    monkeypatch.setenv('HOME', str(tmp_path_factory.mktemp('home')))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    monkeypatch.setenv('HTTPS_PROXY', 'http://127.0.0.1:9')
    monkeypatch.setenv('BIN_COUNTER_PROGRESS', '0')

@pytest.fixture
def proxy(moto):
    "A proxy in front of the server; set `.faults`"
    server = QuietServer(('127.0.0.1', 0), Proxy)
    server.upstream, server.faults, server.url = moto, Faults(), f'http://127.0.0.1:{server.server_address[1]}'
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

@pytest.fixture(scope='module')
def bucket(moto):
    "Gives the s3:// address of a bucket with these objects; tests only read them, so equal ones are shared"
    import boto3
    s3 = boto3.client('s3', endpoint_url='http://{}:{}'.format(*moto), region_name='us-east-1', aws_access_key_id='a', aws_secret_access_key='b')
    made = {}
    def make(objects, prefix='', public=True):
        which = (hash(frozenset(objects.items())), prefix, public)
        if which in made: return made[which]
        name = f'bins-{len(made)}'
        s3.create_bucket(Bucket=name)
        allow = dict(Effect='Allow', Principal='*', Action=['s3:GetObject', 's3:ListBucket'], Resource=[f'arn:aws:s3:::{name}', f'arn:aws:s3:::{name}/*'])
        if public: s3.put_bucket_policy(Bucket=name, Policy=json.dumps(dict(Version='2012-10-17', Statement=[allow])))
        for key, content in objects.items(): s3.put_object(Bucket=name, Key=prefix + key, Body=content)
        return made.setdefault(which, f's3://{name}')
    return make


# ---------------------------------------------------------------- selections

def test_everything_of_a_small_bucket_arrives_unchanged_and_unsigned(proxy, bucket, tmp_path):
    objects = many_bins(12)
    report = fetch_bins(bucket(objects), tmp_path, endpoint_url=proxy.url, **QUICK)
    assert {k: v for k, v in tree(tmp_path).items() if '/' in k} == objects
    assert (report.fetched, report.already, report.skipped, report.photos) == (12, 0, 0, 12)
    assert proxy.faults.signed == 0 and len(proxy.faults.requests) == 1 + 2*12

def test_the_environment_may_name_the_endpoint(proxy, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv('AWS_ENDPOINT_URL', proxy.url)
    assert fetch_bins(bucket(many_bins(2)), tmp_path, **QUICK).fetched == 2
    assert len(proxy.faults.photos()) == 2

def test_credentials_sign_when_asked(proxy, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'a')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'b')
    private = bucket(many_bins(2), public=False)
    fetch_bins(private, tmp_path, anonymous=False, endpoint_url=proxy.url, **QUICK)
    assert proxy.faults.signed == len(proxy.faults.requests) > 0
    with pytest.raises(DataError, match=r'access to .* denied'): fetch_bins(private, tmp_path/'o', endpoint_url=proxy.url, **QUICK)

def test_a_prefix_in_a_bucket(proxy, bucket, tmp_path):
    url = bucket(many_bins(3), prefix='warehouse/a/')
    assert fetch_bins(f'{url}/warehouse/a/', tmp_path, endpoint_url=proxy.url, **QUICK).fetched == 3

def test_padded_and_unpadded_ids_are_different_photos(proxy, bucket, tmp_path):
    objects = a_bin('01044', 3) | a_bin('1044', 5) | a_bin('00044', 1)
    listing = tmp_path/'list.json'
    listing.write_text(json.dumps({'3': ['data/metadata/01044.json'], '5': ['data/metadata/1044.json']}))
    fetch_bins(bucket(objects), tmp_path/'o', file_list=listing, endpoint_url=proxy.url, **QUICK)
    assert {r.id: r.label for r in read_manifest(tmp_path/'o/manifest.csv')} == {'01044': 3, '1044': 5}
    assert (tmp_path/'o/bin-images/1044.jpg').read_bytes() == objects['bin-images/1044.jpg'] != objects['bin-images/01044.jpg']

@pytest.mark.parametrize('ids, want', [('2-4', ['00002', '00003', '00004']), ('00005, 2-3', ['00002', '00003', '00005']), (['00007'], ['00007'])])
def test_by_ids(ids, want, proxy, bucket, tmp_path):
    fetch_bins(bucket(many_bins(8)), tmp_path, ids=ids, endpoint_url=proxy.url, **QUICK)
    assert ids_in(tmp_path) == want

def test_counts_leave_out_other_labels_before_their_photos_are_fetched(proxy, bucket, tmp_path):
    report = fetch_bins(bucket(many_bins(10)), tmp_path, ids='1-10', counts='2-4', endpoint_url=proxy.url, **QUICK)
    assert {r.label for r in read_manifest(tmp_path/'manifest.csv')} == {2, 3, 4}
    assert (report.fetched, report.reasons, len(proxy.faults.photos())) == (6, {'other count': 4}, 6)

def test_per_count_draws_where_ids_have_no_gaps(proxy, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'ABID_LAST_ID', 40)
    url = bucket(many_bins(40))
    fetch_bins(url, tmp_path/'a', per_count=2, seed=1, endpoint_url=proxy.url, **QUICK)
    assert not any('list-type' in p for p in proxy.faults.requests)
    fetch_bins(url, tmp_path/'b', per_count=2, seed=1, endpoint_url=proxy.url, workers=3)
    fetch_bins(url, tmp_path/'c', per_count=2, seed=2, endpoint_url=proxy.url, **QUICK)
    assert Counter(r.label for r in read_manifest(tmp_path/'a/manifest.csv')) == dict.fromkeys(range(1, 6), 2)
    assert ids_in(tmp_path/'a') == ids_in(tmp_path/'b') != ids_in(tmp_path/'c')

def test_per_count_lists_where_draws_miss_and_says_what_lacks(proxy, bucket, tmp_path):
    report = fetch_bins(bucket(many_bins(8, labels=(1, 2, 2, 7))), tmp_path, per_count=3, counts='1-3', endpoint_url=proxy.url, **QUICK)
    assert Counter(r.label for r in read_manifest(tmp_path/'manifest.csv')) == {1: 2, 2: 3}
    assert report.short == {'1': 1, '3': 3} and 'does not have 1 more of count 1, 3 more of count 3' in str(report)

def test_per_count_replaces_a_damaged_bin_and_is_the_same_after_an_interruption(tmp_path):
    objects = many_bins(40)
    for i in range(1, 41, 3): objects[f'bin-images/{i:05d}.jpg'] = b'\xff\xd8\xff damaged'
    source = put_folder(tmp_path/'s', objects)
    fetch_bins(source, tmp_path/'clean', per_count=3)
    assert Counter(r.label for r in read_manifest(tmp_path/'clean/manifest.csv')) == dict.fromkeys(range(1, 6), 3)
    chosen = ids_in(tmp_path/'clean')
    for seed in range(5):
        out = tmp_path/f'part{seed}'
        fetch_bins(source, out, ids=random.Random(seed).sample(chosen, 6))
        fetch_bins(source, out, per_count=3)
        assert ids_in(out) == chosen

def test_an_open_top_class_takes_every_larger_count(tmp_path):
    source = put_folder(tmp_path/'s', many_bins(20, labels=(1, 2, 9, 30)))
    fetch_bins(source, tmp_path/'o', per_count=4, counts='1-3+')
    assert Counter(min(r.label, 3) for r in read_manifest(tmp_path/'o/manifest.csv')) == {1: 4, 2: 4, 3: 4}

def test_per_count_of_a_file_list_asks_only_for_what_it_takes(proxy, bucket, tmp_path):
    listing = tmp_path/'list.json'
    listing.write_text(json.dumps({str(c): [f'data/metadata/{i:05d}.json' for i in range(1, 21) if (1, 2, 3, 4, 5)[i % 5] == c] for c in range(1, 6)}))
    fetch_bins(bucket(many_bins(40)), tmp_path/'o', file_list=listing, per_count=2, endpoint_url=proxy.url, **QUICK)
    assert Counter(r.label for r in read_manifest(tmp_path/'o/manifest.csv')) == dict.fromkeys(range(1, 6), 2)
    assert max(ids_in(tmp_path/'o')) <= '00020' and len(proxy.faults.requests) == 2*10

def test_a_large_bucket_is_never_taken_whole_by_accident(proxy, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'LIST_LIMIT', 5)
    with pytest.raises(DataError, match='choose some, with --per-count N'): fetch_bins(bucket(many_bins(6)), tmp_path, endpoint_url=proxy.url)


# ---------------------------------------------------------------- faults

@pytest.mark.parametrize('kinds', [['500'], ['503'], ['truncate'], ['drop'], ['500', '503', 'truncate', 'drop']], ids='+'.join)
def test_a_spoiled_answer_is_asked_for_again_until_all_is_identical(kinds, proxy, bucket, tmp_path):
    objects = many_bins(20)
    proxy.faults = Faults(seeded(0.25, kinds))
    report = fetch_bins(bucket(objects), tmp_path, retries=12, endpoint_url=proxy.url, **QUICK)
    assert {k: v for k, v in tree(tmp_path).items() if '/' in k} == objects and report.fetched == 20
    assert set(proxy.faults.spoiled) == set(kinds) and sum(proxy.faults.spoiled.values()) == len(proxy.faults.requests) - 41 > 5

def test_retries_are_counted_and_a_bin_that_keeps_failing_is_listed(proxy, bucket, tmp_path):
    proxy.faults = Faults(lambda n, path: '503' if path.endswith('bin-images/00003.jpg') else None)
    report = fetch_bins(bucket(many_bins(6)), tmp_path, retries=3, endpoint_url=proxy.url, **QUICK)
    assert sum(p.endswith('00003.jpg') for p in proxy.faults.requests) == 1 + 3
    assert report.fetched == 5 and list(skipped_in(tmp_path)) == ['00003'] and 'SlowDown' in skipped_in(tmp_path)['00003']
    assert not (tmp_path/'metadata/00003.json').exists()
    proxy.faults = Faults()
    assert fetch_bins(bucket(many_bins(6)), tmp_path, endpoint_url=proxy.url, **QUICK).fetched == 1
    assert skipped_in(tmp_path) == {}

def test_an_object_that_no_photo_can_have_is_not_read(proxy, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'MAX_BYTES', 5_000)
    url = bucket({**many_bins(3), 'bin-images/00002.jpg': bytes(6_000)})
    assert fetch_bins(url, tmp_path, ids='1-3', endpoint_url=proxy.url, **QUICK).reasons == {'not delivered': 1}
    assert skipped_in(tmp_path) == {'00002': 'not delivered: 6000 bytes is more than a photo has'}

def test_a_list_whose_labels_are_wrong_does_not_stop_the_draw(tmp_path):
    source = put_folder(tmp_path/'s', a_bin('00001', 9) | a_bin('00002', 2) | a_bin('00003', 1))
    (tmp_path/'f.json').write_text('{"1": ["00001.json", "00002.json", "00003.json"]}')
    report = fetch_bins(source, tmp_path/'o', file_list=tmp_path/'f.json', per_count=1, counts='1-2')
    labels = {r.label for r in read_manifest(tmp_path/'o/manifest.csv')}
    assert 1 in labels and report.short == ({} if 2 in labels else {'2': 1})

def test_a_source_that_is_down_ends_the_fetch_early_and_loses_nothing(proxy, bucket, tmp_path):
    url = bucket(many_bins(40))
    proxy.faults = Faults(lambda n, path: '500' if n > 24 else None)
    with pytest.raises(DataError, match='keeps failing .* run the same command again later') as e:
        fetch_bins(url, tmp_path, ids='1-40', retries=1, backoff=0.001, workers=2, endpoint_url=proxy.url)
    assert '\n' not in str(e.value) and len(proxy.faults.requests) < 50
    for kw in (dict(), dict(per_count=1)): # listing, and reading labels for a draw
        proxy.faults = Faults(lambda n, path: '503')
        with pytest.raises(DataError, match='run the same command again later'):
            fetch_bins(url, tmp_path/'o', retries=1, backoff=0.001, workers=2, endpoint_url=proxy.url, **kw)
        assert len(proxy.faults.requests) < 20
    kept = len(list((tmp_path/'bin-images').iterdir()))
    proxy.faults = Faults()
    report = fetch_bins(url, tmp_path, ids='1-40', endpoint_url=proxy.url, **QUICK)
    assert kept > 6 and (report.already, report.fetched) == (kept, 40 - kept)

def test_what_is_missing_or_damaged_at_the_source_is_skipped_and_listed(proxy, bucket, tmp_path):
    objects = many_bins(9)
    del objects['bin-images/00001.jpg'], objects['metadata/00002.json']
    objects['bin-images/00003.jpg'] = objects['bin-images/00003.jpg'][:-30]
    objects['bin-images/00004.jpg'] = b'<html>not a photo</html>'
    objects['metadata/00005.json'] = b'{"EXPECTED_QUANTITY": 3}'
    objects['metadata/00006.json'] = b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": -1}'
    report = fetch_bins(bucket(objects), tmp_path, ids='1-10', endpoint_url=proxy.url, **QUICK)
    assert {k: v.partition(':')[0] for k, v in skipped_in(tmp_path).items()} == {
        '00001': 'photo missing', '00002': 'metadata missing', '00003': 'photo unusable', '00004': 'photo unusable',
        '00005': 'metadata unusable', '00006': 'metadata unusable', '00010': 'metadata missing'}
    assert report.reasons == {'metadata missing': 2, 'metadata unusable': 2, 'photo missing': 1, 'photo unusable': 2}
    assert ids_in(tmp_path) == ['00007', '00008', '00009'] and f'7 skipped ({", ".join(f"{n} {k}" for k, n in report.reasons.items())}' in str(report)

def test_a_file_list_gives_the_label_where_metadata_is_missing(proxy, bucket, tmp_path):
    objects = a_bin('00001', 3) | a_bin('00002', 4)
    del objects['metadata/00002.json']
    (tmp_path/'list.json').write_text('{"3": ["x/00001.json"], "4": ["x/00002.json"]}')
    fetch_bins(bucket(objects), tmp_path/'o', file_list=tmp_path/'list.json', endpoint_url=proxy.url, **QUICK)
    assert [(r.id, r.label, r.asins, r.quantity_sum) for r in read_manifest(tmp_path/'o/manifest.csv')] == [('00001', 3, ('P00001',), 3), ('00002', 4, (), None)]

def test_a_second_run_asks_for_nothing(proxy, bucket, tmp_path):
    url = bucket(many_bins(10))
    for kw in (dict(ids='1-10'), dict(per_count=2)):
        first = fetch_bins(url, tmp_path, endpoint_url=proxy.url, **kw, **QUICK)
        before, proxy.faults = tree(tmp_path), Faults()
        report = fetch_bins(url, tmp_path, endpoint_url=proxy.url, **kw, **QUICK)
        assert (proxy.faults.requests, report.fetched, report.already, report.photos) == ([], 0, 10, first.photos)
        assert tree(tmp_path) == before

def test_a_damaged_file_on_disk_is_replaced_and_nothing_else_is_asked_for(proxy, bucket, tmp_path):
    objects = many_bins(5)
    url = bucket(objects)
    fetch_bins(url, tmp_path, ids='1-5', endpoint_url=proxy.url, **QUICK)
    photo = bytearray(objects['bin-images/00002.jpg'])
    photo[len(photo)//2:] = bytes(len(photo) - len(photo)//2)
    (tmp_path/'bin-images/00002.jpg').write_bytes(photo)
    (tmp_path/'metadata/00004.json').write_text('{')
    proxy.faults = Faults()
    fetch_bins(url, tmp_path, ids='1-5', endpoint_url=proxy.url, **QUICK)
    assert sorted(p.rpartition('/')[2] for p in proxy.faults.requests) == ['00002.jpg', '00004.json']
    assert {k: v for k, v in tree(tmp_path).items() if '/' in k} == objects

def test_no_more_requests_are_under_way_than_workers(proxy, bucket, tmp_path):
    url = bucket(many_bins(40))
    proxy.faults = Faults(latency=0.01)
    fetch_bins(url, tmp_path, ids='1-40', workers=5, endpoint_url=proxy.url)
    assert 2 <= proxy.faults.most <= 5

def test_killed_at_any_moment_the_next_run_ends_like_an_undisturbed_one(proxy, bucket, tmp_path):
    url = bucket(many_bins(40))
    fetch_bins(url, tmp_path/'clean', ids='1-40', endpoint_url=proxy.url, **QUICK)
    out = tmp_path/'killed'
    code = f"from bin_counter.data import fetch_bins; fetch_bins({url!r}, {str(out)!r}, ids='1-40', workers=4, endpoint_url={proxy.url!r})"
    for photos in (6, 15): # killed twice, the second time with files that are there
        proxy.faults = Faults(latency=0.05) # slow enough to be caught by a machine that is busy
        child = subprocess.Popen([sys.executable, '-c', code], cwd=REPO, env={**os.environ, 'PYTHONPATH': str(REPO)})
        deadline = time.monotonic() + 20
        while len(proxy.faults.photos()) < photos and time.monotonic() < deadline: time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL and not (out/'manifest.csv').exists()
    clean, left = tree(tmp_path/'clean'), tree(out)
    whole = {k: v for k, v in left.items() if not k.endswith('.part')}
    assert 25 < len(whole) < len(clean) and whole.items() <= clean.items()
    (out/'bin-images/.00040.jpg.x1y2.part').write_bytes(b'half') # what a kill in the middle of a write leaves
    proxy.faults = Faults()
    report = fetch_bins(url, out, ids='1-40', endpoint_url=proxy.url, **QUICK)
    assert tree(out) == clean and report.already >= 12
    assert len(proxy.faults.photos()) == report.fetched == 40 - report.already

@pytest.mark.parametrize('call, code, says', [('replace', errno.ENOSPC, 'the disk is full'), ('fsync', errno.ENOSPC, 'the disk is full'),
                                              ('replace', errno.EDQUOT, 'quota'), ('fsync', errno.EROFS, 'read-only')])
def test_a_full_or_read_only_disk_gives_one_line_and_no_half_file(call, code, says, proxy, bucket, tmp_path, monkeypatch):
    objects, url, real, calls = many_bins(12), bucket(many_bins(12)), getattr(os, call), []
    def fails(*args, **kw):
        calls.append(args)
        if len(calls) > 9: raise OSError(code, os.strerror(code))
        return real(*args, **kw)
    monkeypatch.setattr(os, call, fails)
    with pytest.raises(DataError, match=says) as e: fetch_bins(url, tmp_path, ids='1-12', endpoint_url=proxy.url, **QUICK)
    assert '\n' not in str(e.value)
    left = tree(tmp_path)
    assert len(left) == 9 and left.items() <= objects.items()
    assert {Path(k).stem for k in left if k.endswith('.jpg')} < {Path(k).stem for k in left if k.endswith('.json')} # metadata comes first
    monkeypatch.setattr(os, call, real)
    fetch_bins(url, tmp_path, ids='1-12', endpoint_url=proxy.url, **QUICK)
    assert {k: v for k, v in tree(tmp_path).items() if '/' in k} == objects

def test_failures_that_concern_the_whole_fetch_are_one_line(proxy, bucket, tmp_path):
    (tmp_path/'file').write_text('x')
    cases = [(dict(source='s3://no-such-bucket-here', ids='1-40', endpoint_url=proxy.url), 'no such bucket'),
             (dict(source='s3://no-such-bucket-here', per_count=1, endpoint_url=proxy.url), 'no such bucket'),
             (dict(source='s3://no-such-bucket-here', endpoint_url=proxy.url), 'no such bucket'),
             (dict(source='s3://aft-vbi-pds', ids='1-40', endpoint_url='http://127.0.0.1:9', retries=2), 'cannot be reached'),
             (dict(source='s3://aft-vbi-pds', ids='1-40', retries=1), 'cannot be reached'), # HTTPS_PROXY leads nowhere
             (dict(source='s3://aft-vbi-pds', ids='1', anonymous=False, retries=1), 'credentials'),
             (dict(source='s3://aft-vbi-pds', ids='1', endpoint_url='not an address'), 'no S3 client'),
             (dict(source='s3://Bad_Bucket!', ids='1', endpoint_url=proxy.url), 'bucket name'),
             (dict(source='s3://', ids='1'), 'no bucket is named'),
             (dict(source='gs://bins', ids='1'), 'write the source as s3://bucket'),
             (dict(source=tmp_path/'nowhere'), 'no such folder'),
             (dict(source=tmp_path), 'photos must lie in bin-images/<id>.jpg'),
             (dict(source='s3://b', ids='1', out=tmp_path/'file'/'o'), 'is a file, not a folder')]
    for kw, says in cases:
        with pytest.raises(DataError, match=says) as e: fetch_bins(**{**dict(out=tmp_path/'o', backoff=0.001, workers=4), **kw})
        assert '\n' not in str(e.value), kw


# ---------------------------------------------------------------- folders and the index

def test_a_source_folder_is_copied_and_left_alone(tmp_path):
    source = put_folder(tmp_path/'s', many_bins(6))
    before = tree(source)
    report = fetch_bins(source, tmp_path/'o')
    assert tree(source) == before and {k: v for k, v in tree(tmp_path/'o').items() if '/' in k} == before
    assert report.fetched == 6 and not os.path.samefile(source/'bin-images/00001.jpg', tmp_path/'o/bin-images/00001.jpg')

def test_the_index_changes_nothing_where_it_looks(tmp_path):
    source = put_folder(tmp_path/'s', many_bins(5))
    (source/'bin-images/.00009.jpg.x.part').write_bytes(b'half')
    (source/'metadata/00042.json').write_bytes(metadata(1))
    (source/'bin-images/00006.JPG').write_bytes(jpeg(6))
    (source/os.fsdecode(b'bin-images/\xff.jpg')).write_bytes(jpeg(7))
    before = tree(source)
    records, skipped = index_bins(source, tmp_path/'o')
    assert tree(source) == before and len(records) == 5
    assert {r['id']: r['reason'].partition(':')[0] for r in skipped} == {'00042': 'photo missing', '00006.JPG': 'other name', '\\udcff.jpg': 'other name'}
    assert read_manifest(tmp_path/'o/manifest.csv') == records and set(skipped_in(tmp_path/'o')) == {r['id'] for r in skipped}

def test_a_known_photo_is_not_decoded_again_and_a_changed_one_is(tmp_path, monkeypatch):
    source = put_folder(tmp_path/'s', many_bins(5))
    first, _ = index_bins(source, tmp_path/'o')
    decoded = []
    def check(content, name, decode=False):
        decoded.append(name)
        return real(content, name, decode)
    real = data.check_photo
    monkeypatch.setattr(data, 'check_photo', check)
    assert index_bins(source, tmp_path/'o')[0] == first and decoded == []
    changed = source/'bin-images/00003.jpg'
    stamp, size = changed.stat().st_mtime_ns, changed.stat().st_size
    changed.write_bytes(changed.read_bytes()[:-12] + b'\0'*12) # same size, same time, no end marker
    os.utime(changed, ns=(stamp, stamp))
    records, skipped = index_bins(source, tmp_path/'o')
    assert changed.stat().st_size == size and decoded == ['photo 00003'] and [r['id'] for r in skipped] == ['00003'] and len(records) == 4

def test_labels_and_groups_of_photos_without_metadata_survive_from_folder_to_folder(tmp_path):
    objects = a_bin('00001', 3, ['A']) | a_bin('00002', 4, ['A', 'B']) | a_bin('00003', 2) | a_bin('00004', 5) | a_bin('00005', 1)
    for i in ('00003', '00004', '00005'): del objects[f'metadata/{i}.json']
    source = put_folder(tmp_path/'s', objects)
    write_csv(source/'manifest.csv', [dict(id='00003', label=2, group='00002', other='x')], ['id', 'label', 'group', 'other'])
    (source/'file_list.json').write_text('{"5": ["data/metadata/00004.json"], "9": ["data/metadata/00003.json"]}')
    want = [('00001', 3, '00001'), ('00002', 4, '00001'), ('00003', 2, '00001'), ('00004', 5, '00004')]
    fetch_bins(source, tmp_path/'o', ids=['00003']) # alone at first: its group must not be forgotten
    fetch_bins(source, tmp_path/'o')
    for found, skipped in (index_bins(source), index_bins(tmp_path/'o')):
        assert [(r.id, r.label, r.group) for r in found] == want
    assert [(r['id'], r['reason'].partition(':')[0]) for r in index_bins(source)[1]] == [('00005', 'no label')]

def test_metadata_outranks_manifest_and_list(tmp_path):
    source = put_folder(tmp_path/'s', a_bin('00001', 3))
    write_csv(source/'manifest.csv', [dict(id='00001', label=8)], ['id', 'label'])
    (source/'file_list.json').write_text('{"7": ["00001.json"]}')
    assert index_bins(source)[0][0].label == 3

@pytest.mark.parametrize('seed', range(5))
def test_groups_are_the_connected_components(seed):
    rng = random.Random(seed)
    records = [BinRecord(f'{i:05d}', 1, asins=tuple(f'A{rng.randrange(60)}' for _ in range(rng.randrange(3)))) for i in range(80)]
    rng.shuffle(records)
    known = {r.id: rng.choice(records).id for r in rng.sample(records, 10)}
    known |= {g: g for g in known.values()}
    def linked(a, b): return set(a.asins) & set(b.asins) or (a.id in known and known[a.id] == known.get(b.id)) 
    def reach(r):
        seen, todo = {r.id}, [r]
        while todo:
            a = todo.pop()
            new = [b for b in records if b.id not in seen and linked(a, b)]
            seen |= {b.id for b in new}
            todo += new
        return min(seen)
    assert {r.id: r.group for r in group_bins(records, known)} == {r.id: reach(r) for r in records}


# ---------------------------------------------------------------- input from outside

@pytest.mark.parametrize('content, says', [
    (b'', 'not JSON'), (b'\xff\xfe\x00', 'not JSON'), (b'[' * 100_000, 'not JSON'), (b'[]', 'no object BIN_FCSKU_DATA'), (b'null', 'no object'),
    (b'{"BIN_FCSKU_DATA": [], "EXPECTED_QUANTITY": 1}', 'no object'), (b'{"BIN_FCSKU_DATA": {}}', 'no EXPECTED_QUANTITY'),
    *[(b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": %s}' % v, 'a whole number of 0 or more') for v in (b'null', b'-1', b'2.0', b'true', b'"3"', b'NaN', b'[1]')],
    (b'{"BIN_FCSKU_DATA": {"A": 3}, "EXPECTED_QUANTITY": 1}', 'product A is not an object'),
    (b'{"BIN_FCSKU_DATA": {"A": {}}, "EXPECTED_QUANTITY": 1}', 'quantity of A is null'),
    (b'{"BIN_FCSKU_DATA": {"A": {"quantity": -2}}, "EXPECTED_QUANTITY": 1}', 'quantity of A is -2'),
    (b'{"BIN_FCSKU_DATA": {"A B": {"quantity": 1}}, "EXPECTED_QUANTITY": 1}', 'not one word'),
    (b'{"BIN_FCSKU_DATA": {"\\ud800": {"quantity": 1}}, "EXPECTED_QUANTITY": 1}', 'not one word')])
def test_unusable_metadata_says_why(content, says):
    with pytest.raises(MetadataError, match=says) as e: read_metadata(content, '00007')
    assert '\n' not in str(e.value) and 'photo 00007' in str(e.value)

def test_an_empty_bin_and_a_disagreeing_one_are_usable():
    assert read_metadata(b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 0}') == (0, (), 0)
    assert read_metadata(b'{"BIN_FCSKU_DATA": {"B": {"quantity": 1}, "A": {"quantity": 1}}, "EXPECTED_QUANTITY": 3}') == (3, ('A', 'B'), 2)

@pytest.mark.parametrize('ids, want', [('7', ['7']), ('7-7', ['00007']), ('3-1', None), ('0-3', ['00000', '00001', '00002', '00003']), ('1-99999999', None), ('a/b', None),
                                       ('..', None), ('.hidden', None), ('1,,2, 1', ['1', '2']), ([7], None), (['00007', '7'], ['00007', '7']), (['../x'], None)])
def test_ids(ids, want):
    if want is None:
        with pytest.raises(DataError): parse_ids(ids)
    else: assert parse_ids(ids) == want

@pytest.mark.parametrize('text, says', [('{"one": ["1.json"]}', 'not a count'), ('{"1": "1.json"}', 'not a count'), ('[]', 'holds a list'),
                                        ('{"1": ["a/1.json"], "2": ["b/1.json"]}', 'under 1 and under 2'), ('{"1": ["x/..json"]}', 'cannot name a photo')])
def test_a_file_list_that_is_none(text, says, tmp_path):
    (tmp_path/'f.json').write_text(text)
    with pytest.raises(DataError, match=says): read_file_list(tmp_path/'f.json')


# ---------------------------------------------------------------- the real photos, where they are

@pytest.mark.skipif(not (ABID/'bin-images').is_dir(), reason=f'no real ABID photos in {ABID}: set BIN_COUNTER_ABID to a folder that holds them')
def test_the_real_photos(tmp_path):
    records, skipped = index_bins(ABID, tmp_path)
    theirs = {r['id']: r for r in read_csv(ABID/'manifest.csv')}
    assert len(records) + len(skipped) == len(theirs) == 9149 and skipped == []
    assert all(r.label == int(theirs[r.id]['label']) and (r.width, r.height) == (int(theirs[r.id]['width']), int(theirs[r.id]['height'])) for r in records)
    assert [r.id for r in records if r.quantity_sum not in (None, r.label)] == ['02081', '02082']
    assert sum(r.quantity_sum is None for r in records) == 664
    def parts(group_of):
        out = {}
        for r in records: out.setdefault(group_of(r), set()).add(r.id)
        return set(map(frozenset, out.values()))
    assert parts(lambda r: r.group) == parts(lambda r: theirs[r.id]['group']) and len(parts(lambda r: r.group)) == 4812
    assert max(group_sizes(records)) == 21
    assert index_bins(ABID, tmp_path)[0] == records, 'from what the first pass wrote down'
