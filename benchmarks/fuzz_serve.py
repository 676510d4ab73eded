"""Ten thousand hostile requests: no answer of 5xx but 503, no crash, no memory that is not given back.

    python benchmarks/fuzz_serve.py [--requests 10000] [--seed 0]

Sixteen callers send good photos among photos that are cut, damaged, huge when unpacked or no photos at all; JSON that is broken,
deep or of the wrong types; lengths that lie; heads without end; bodies that come byte by byte; and they hang up in the middle.
Request number i is drawn from `random.Random(f'{seed}-{i}')`, so that any one of them can be sent again: --only KIND, --first I.
A good photo must get the package's own count. Memory is compared after a warm-up of 2,000 requests and at the end.
"""
import argparse, base64, collections, itertools, json, random, signal, socket, struct, subprocess, sys, tempfile, threading, time, zlib
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--requests', type=int, default=10_000)
parser.add_argument('--warm', type=int, default=2_000)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--first', type=int, default=0, help='number of the first request')
parser.add_argument('--only', help='one kind of request')
parser.add_argument('--callers', type=int, default=16)
args = parser.parse_args()

SERVE = 'import sys; from bin_counter.serve import Limits, serve; serve(sys.argv[1], port=0, limits=Limits(upload=2., head=2.))'
ALLOWED = {200, 400, 404, 405, 406, 408, 413, 415, 503, 0} # 0: hung up on, where the request was not HTTP or never ended


def head(r, length, kind='image/jpeg', method='POST', path='/invocations', **more):
    "A request's head"
    fields = {'Host': 'x', 'Content-Type': kind, 'Content-Length': length, 'Connection': 'close', **more}
    return f'{method} {path} HTTP/1.1\r\n'.encode() + ''.join(f'{k}: {v}\r\n' for k, v in fields.items() if v is not None).encode('latin-1') + b'\r\n'


def whole(r, body, kind='image/jpeg', **more): return head(r, len(body), kind, **more) + body


def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png(width, height, pixels):
    "A PNG that announces a size, and holds what it holds"
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


LARGE = png(8000, 8000, zlib.compress(bytes(24001), 9)[:-4] + zlib.compress(bytes(10**6), 9)) # announces 64 megapixels, holds rubbish
REAL_BOMB = png(7900, 7900, zlib.compress(bytes(7900*23701), 9)) # 187 MB of nothing in 180 KB, and valid


def cut(r, photo): return photo[:r.randrange(len(photo))]


def flipped(r, photo):
    "Some bytes changed, mostly beyond the head"
    out = bytearray(photo)
    for _ in range(r.choice((1, 3, 30))): out[r.randrange(r.choice((2, 600, len(out))))] = r.randrange(256)
    return bytes(out)


def resized(r, photo):
    "The size in a JPEG's head replaced"
    i = photo.find(b'\xff\xc0')
    return photo[:i + 5] + struct.pack('>HH', r.choice((0, 1, 65500, r.randrange(65536))), r.choice((0, 1, 65500, r.randrange(65536)))) + photo[i + 9:]


def announced(r, photo): return png(r.choice((1, 100, 60000, 2**31 - 1)), r.choice((1, 100, 60000, 2**31 - 1)), zlib.compress(r.randbytes(50)))


def value(r, photo):
    "Any JSON value"
    return r.choice((None, True, 0, -1, 3, 1e308, 10**30, 'x', '', [], {}, [[]], base64.b64encode(photo).decode(), 'A'*r.randrange(99), '\x00', '\ud800'))


def wrong_types(r, photo):
    keys = ['image', 'url', 'recorded', 'explain', 'before', 'before_count', 'id', 'key', '__proto__', 'x'*r.randrange(1, 99)]
    return json.dumps({k: value(r, photo) for k in r.sample(keys, r.randrange(6))}).encode()


def broken_json(r, photo):
    text = json.dumps(dict(image=base64.b64encode(photo).decode(), recorded=3)).encode()
    return r.choice((cut(r, text), flipped(r, text), b'['*r.randrange(1, 200_000), b'{"a":'*r.randrange(1, 50_000), b'\xff\xfe' + text, b'{"recorded": ' + b'9'*r.randrange(1, 9999) + b'}', r.randbytes(300)))


def good_json(r, photo): return json.dumps(dict(image=base64.b64encode(photo).decode(), recorded=r.randrange(9), explain=r.random() < .3, id=str(r.randrange(999)))).encode()


def strange(r, photo):
    "Methods, addresses, headers"
    return whole(r, photo, r.choice(('text/plain', 'image/jpeg', 'IMAGE/JPEG;x', '', 'x'*5000)), method=r.choice(('GET', 'PUT', 'POST', 'OPTIONS', 'BREW')), path=r.choice(('/', '/ping', '/invocations', '/%00', '/../etc/passwd', '/' + 'a'*3000)),
                 Accept=r.choice(('', '*/*', 'text/csv', 'image/webp', ';;,q=', 'a'*4000)), **{'X-Amzn-SageMaker-Custom-Attributes': r.choice(('recorded=1', 'recorded=', '\xe9', ',,,', 'a'*3000)), 'X-Request-Id': r.choice(('ok', '\xff', 'x'*999))})


def lying(r, photo):
    body = photo[:r.randrange(len(photo))]
    return r.choice((head(r, len(body) + r.randrange(1, 10**4)) + body, head(r, max(0, len(body) - r.randrange(1, 999))) + body, head(r, 10**r.randrange(7, 25)) + body, head(r, -1) + body, head(r, 'x') + body,
                     head(r, None, **{'Transfer-Encoding': 'chunked'}) + r.choice((b'5\r\nabcde\r\n', b'zz\r\n', b'ffffffffffff\r\nabc', b'0\r\n\r\n'))))


KINDS = dict( # how often, and how; the last item: one of `whole`, `slow`, `gone`
    good=(20, lambda r, p: whole(r, p)), good_json=(8, lambda r, p: whole(r, good_json(r, p), 'application/json', Accept=r.choice(('*/*', 'text/csv')))), cut=(10, lambda r, p: whole(r, cut(r, p))),
    flipped=(12, lambda r, p: whole(r, flipped(r, p))), resized=(5, lambda r, p: whole(r, resized(r, p))), announced=(5, lambda r, p: whole(r, announced(r, p), 'image/png')),
    large=(1, lambda r, p: whole(r, LARGE, 'image/png')), bomb=(.25, lambda r, p: whole(r, REAL_BOMB, 'image/png')), noise=(4, lambda r, p: whole(r, r.choice((b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n')) + r.randbytes(r.randrange(3000)))),
    wrong_types=(10, lambda r, p: whole(r, wrong_types(r, p), 'application/json')), broken_json=(8, lambda r, p: whole(r, broken_json(r, p), 'application/json')), strange=(6, strange), lying=(5, lying),
    too_large=(.25, lambda r, p: whole(r, p + bytes(7_000_000))), no_http=(2, lambda r, p: r.choice((r.randbytes(200), b'GET / HTTP/9.9\r\n\r\n', b'\x16\x03\x01', b'\r\n'*99))),
    endless=(.25, lambda r, p: b'GET /ping HTTP/1.1\r\n' + b''.join(b'X-%d: ' % i + b'a'*900 + b'\r\n' for i in range(400))), slow=(2, lambda r, p: whole(r, p)), gone=(3, lambda r, p: whole(r, p)))


def converse(port, kind, data, r):
    "Send, and the status that came back"
    with socket.create_connection(('127.0.0.1', port), timeout=30) as s:
        try:
            if kind == 'gone': return s.sendall(cut(r, data)) or 0, b''
            if kind == 'slow':
                some = r.randrange(len(data))
                s.sendall(data[:some])
                for i in range(some, min(some + r.choice((20, 99)), len(data))):
                    s.sendall(data[i:i + 1])
                    time.sleep(.05)
            else: s.sendall(data)
        except OSError: pass # refused while sending: the answer is still there to be read
        out = b''
        try:
            while part := s.recv(65536): out += part
        except OSError: pass
    return int(out[9:12] or 0), out.partition(b'\r\n\r\n')[2]


def memory(process, what='VmRSS'): return next(int(line.split()[1]) for line in open(f'/proc/{process.pid}/status') if line.startswith(what))/1024


with tempfile.TemporaryDirectory() as d:
    from _shared import machine, table
    import torch
    from bin_counter.core import ModelCard
    from bin_counter.net import build_net, save_model
    from bin_counter.package import Package, build_package, count_photo, find_photos
    from bin_counter.synth import draw_bins
    d = Path(d)
    torch.manual_seed(0)
    save_model(d, build_net(ModelCard('squeezenet1_1')), ModelCard('squeezenet1_1'))
    build_package(d, d/'model.tar.gz')
    draw_bins(40, d/'bins', seed=0, size=300)
    photos = [p.read_bytes() for p in find_photos([d/'bins'])]
    want = [count_photo(Package.load(d/'model.tar.gz'), p)['count'] for p in photos]
    log, remarks = open(d/'log', 'w'), open(d/'remarks', 'w') # decoders write remarks of their own to standard error
    server = subprocess.Popen([sys.executable, '-c', SERVE, d/'model.tar.gz'], stdout=log, stderr=remarks)
    while not (text := (d/'log').read_text()): time.sleep(.1)
    port = int(json.loads(text.splitlines()[0])['address'].rsplit(':', 1)[1])
    seen, bad, numbers, lock = collections.Counter(), [], itertools.count(args.first), threading.Lock()

    def caller(until):
        while True:
            with lock: i = next(numbers)
            if i >= until: return
            r = random.Random(f'{args.seed}-{i}')
            kind = args.only or r.choices(list(KINDS), [w for w, _ in KINDS.values()])[0]
            n = r.randrange(len(photos))
            try: status, body = converse(port, kind, KINDS[kind][1](r, photos[n]), r)
            except OSError as e: status, body = repr(e), b''
            with lock: seen[kind, status] += 1
            if status not in ALLOWED: bad.append((i, kind, status, body[:200]))
            if kind == 'good' and status == 200 and json.loads(body)['count'] != want[n]: bad.append((i, kind, 'wrong count', body[:200]))

    def many(until):
        "All requests up to a number, and what memory the server has a moment later"
        threads = [threading.Thread(target=caller, args=(until,)) for _ in range(args.callers)]
        for t in threads: t.start()
        for t in threads: t.join()
        time.sleep(6) # an idle server gives back what it no longer needs
        if server.poll() is not None: sys.exit(f'the server ended with {server.returncode}: {(d/"log").read_text()[-2000:]} {(d/"remarks").read_text()[-2000:]}')
        return memory(server)
    start = time.perf_counter()
    try:
        levels = [many(args.first + args.warm), many(args.first + args.requests)] if args.requests > args.warm else [many(args.first + args.requests)]*2
        peak = memory(server, 'VmHWM')
        alive = converse(port, 'good', head(None, 0, method='GET', path='/ping'), None)[0]
    finally: server.send_signal(signal.SIGTERM)
    server.wait(40)
    inside = collections.Counter(json.loads(line).get('status') for line in (d/'log').read_text().splitlines())
    statuses = sorted({str(s) for _, s in seen})
    print(f'\n{machine()}; seed {args.seed}, {args.requests:,} requests from {args.callers} callers in {time.perf_counter() - start:.0f} s\n')
    print(table(['kind', *statuses], [[k, *(seen.get((k, int(s) if s.isdigit() else s), '') for s in statuses)] for k in KINDS if any(key == k for key, _ in seen)]))
    growth = 100*(levels[1]/levels[0] - 1)
    print(f'\nresident: {levels[0]:.0f} MB after warm-up, {levels[1]:.0f} MB at the end ({growth:+.1f}%), {peak:.0f} MB at most; /ping at the end: {alive}; lines with status 500 in the log: {inside[500]}')
    said = collections.Counter(' '.join(line.split()[:4]) for line in (d/'remarks').read_text().splitlines())
    print(f'remarks of the decoders on standard error: {sum(said.values())}, such as {said.most_common(5)}')
    for b in bad[:10]: print('BAD', *b)
    sys.exit(bool(bad) or growth > 10 or alive != 200 or inside[500] > 0)
