"""The server against a plain one: requests a second, waiting times and memory, at 1, 8 and 32 callers.

    python benchmarks/serve.py [--seconds 10] [--callers 1 8 32]

The peer is what the public endpoints for this task do: Pillow opens and converts, torchvision resizes and normalises, eager
torch answers under `inference_mode`, one request at a time, behind Python's own HTTP server (a thread a connection, kept
alive, a lock around the work; Nagle's algorithm off and headers and body in one packet, as in ours). Both sides have the same
body with the same weights, the same number of threads for the network, and the same drawn photos. Each server is a process of
its own, and so are the callers, who ask again as soon as they are answered. Both servers run all the time; they are asked in turns.
"""
import argparse, json, os, signal, statistics, subprocess, sys, tempfile, threading, time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--seconds', type=float, default=10, help='of measuring, for each server and number of callers')
parser.add_argument('--callers', type=int, nargs='+', default=[1, 8, 32])
parser.add_argument('--arch', default='squeezenet1_1')
parser.add_argument('--photos', type=int, default=40)
parser.add_argument('--threads', type=int, default=os.cpu_count())
parser.add_argument('--role', choices=['measure', 'ours', 'plain', 'callers'], default='measure', help=argparse.SUPPRESS)
parser.add_argument('--run', type=Path, help=argparse.SUPPRESS)
parser.add_argument('--port', type=int, help=argparse.SUPPRESS)
args = parser.parse_args()


def ours():
    "Our server"
    from bin_counter.serve import serve
    serve(args.run/'model.tar.gz', port=0, threads=args.threads)


def plain():
    "The plain server"
    import io
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import torch
    from bin_counter.net import ServedNet, load_model
    from PIL import Image
    from torchvision import transforms
    torch.set_num_threads(args.threads)
    net, card = load_model(args.run)
    net, one = ServedNet(net, card).eval(), threading.Lock()
    to_tensor = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm, wbufsize = 'HTTP/1.1', True, -1
        def log_message(self, *args): pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers['Content-Length']))
            with one, torch.inference_mode():
                probs = net(to_tensor(Image.open(io.BytesIO(body)).convert('RGB'))[None])[0].tolist()
            answer = json.dumps(dict(count=1 + probs.index(max(probs)), probs=probs)).encode()
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128
    with Server(('127.0.0.1', 0), Handler) as server:
        print(json.dumps(dict(address=f'http://127.0.0.1:{server.server_port}')), flush=True)
        server.serve_forever()


def callers():
    "Callers, a thread and a kept connection each; prints every answered request's seconds"
    import http.client
    photos = [p.read_bytes() for p in sorted((args.run/'bins/bin-images').iterdir())]
    times, other, n = [], [], args.callers[0]
    start = time.perf_counter() + .5 + .02*n # everybody connects, and the first answers are not counted
    end = start + args.seconds

    def ask(i):
        c = http.client.HTTPConnection('127.0.0.1', args.port, timeout=60)
        while time.perf_counter() < end:
            i += 1
            began = time.perf_counter()
            c.request('POST', '/invocations', photos[i % len(photos)], {'Content-Type': 'image/jpeg'})
            r = c.getresponse()
            ok = json.loads(r.read())['count'] if r.status == 200 else other.append(r.status)
            if began >= start and ok: times.append(time.perf_counter() - began)
    threads = [threading.Thread(target=ask, args=(7*i,)) for i in range(n)]
    for t in threads: t.start()
    for t in threads: t.join()
    print(json.dumps(dict(times=times, other=other)))


def again(role, **more):
    "This file as another process"
    command = [sys.executable, __file__, '--role', role, '--run', str(args.run), '--threads', str(args.threads)]
    return subprocess.Popen(command + [str(x) for k, v in more.items() for x in (f'--{k}', v)], stdout=subprocess.PIPE, text=True)


def memory(process):
    "Resident MB now"
    return next(int(line.split()[1]) for line in open(f'/proc/{process.pid}/status') if line.startswith('VmRSS'))/1024


def watch(asking, process, most):
    "Keep the largest memory of a server while it is being asked"
    while asking.poll() is None:
        most[0] = max(most[0], memory(process))
        time.sleep(.2)


def start(role):
    "A server, and its port"
    process = again(role)
    port = int(json.loads(process.stdout.readline())['address'].rsplit(':', 1)[1])
    threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True).start() # nobody waits for a full pipe
    return process, port


def measure():
    "Everything"
    from _shared import machine, table
    import torch
    from bin_counter.core import ModelCard
    from bin_counter.net import build_net, save_model
    from bin_counter.package import build_package
    from bin_counter.synth import draw_bins
    torch.manual_seed(0)
    save_model(args.run, build_net(ModelCard(args.arch)), ModelCard(args.arch))
    build_package(args.run, args.run/'model.tar.gz')
    draw_bins(args.photos, args.run/'bins', seed=0, size=480)
    servers, rows, rate = {r: start(r) for r in ('plain', 'ours')}, [], {}
    try:
        for n in args.callers:
            for role, (process, port) in servers.items():
                asking, most = again('callers', port=port, callers=n, seconds=args.seconds), [0.]
                threading.Thread(target=watch, args=(asking, process, most), daemon=True).start()
                got = json.loads(asking.communicate()[0])
                ms = [1000*t for t in got['times']]
                cuts = statistics.quantiles(ms, n=100)
                rate[role] = len(ms)/args.seconds
                ratio = f"{rate['ours']/rate['plain']:.1f}" if role == 'ours' else ''
                rows.append([n, role, f'{rate[role]:.0f}', f'{cuts[49]:.1f}', f'{cuts[98]:.1f}', f'{most[0]:.0f}', len(got['other']), ratio])
    finally:
        for process, _ in servers.values(): process.send_signal(signal.SIGKILL)
    print(f'\n{machine()}; {args.threads} threads for the network; load of the machine {os.getloadavg()[0]:.1f}\n{args.arch}, {args.photos} JPEG files of 480 pixels, {args.seconds:g} s each\n')
    print(table(['callers', 'server', 'requests/s', 'p50 ms', 'p99 ms', 'resident MB at most', 'not answered', 'ours / plain'], rows))


if args.role == 'measure':
    with tempfile.TemporaryDirectory() as d:
        args.run = Path(d)
        measure()
else: dict(ours=ours, plain=plain, callers=callers)[args.role]()
