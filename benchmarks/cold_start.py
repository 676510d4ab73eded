"""Cold starts of the two Lambdas under AWS's runtime interface emulator, whole and in parts.

    python benchmarks/cold_start.py [--package model.tar.gz] [--starts 7]

Each start is a new emulator with a new Python: from the request until the answer. The Lambda that counts is started from two
folders: the one that `build_bundle` packs, and, as the peer, the same libraries as pip leaves them, neither pruned nor compiled
(nothing may write to a Lambda's folder, so Python compiles at every start). The Lambda that asks gets its answer from a runtime
that knows it already: what is measured is the Lambda. The parts are timed inside of the started function, in the order in which the
handler needs them. Files are in the page cache; AWS loads them from its own cache, and its machines start first, so figures there
are larger. The libraries are those of a Lambda, for this machine's Python and processor; they are fetched from the package index.
"""
import argparse, base64, contextlib, json, os, platform, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from _shared import machine, table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--package', help='model.tar.gz; without it, an untrained mobilenet_v2')
parser.add_argument('--starts', type=int, default=7)
args = parser.parse_args()

from bin_counter import bundle
from bin_counter.core import ModelCard, make_answer
from bin_counter.synth import draw_bins
from bin_counter.up import find_emulator, free_port

EMULATOR = find_emulator() or sys.exit('the emulator or awslambdaric is not here: make test installs both, or set BIN_COUNTER_RIE')
HERE = f'{sys.version_info.major}.{sys.version_info.minor}'
if HERE not in bundle.KINDS['local']: bundle.WHEELS = ('numpy==2.4.6', *bundle.WHEELS[1:]) # the last for Python 3.11

# The steps of a cold start, one after the other, each timed; the answer of the handler is left out of what is sent back.
TIMED = '''
import time
begun = time.time()
steps, at = [], time.perf_counter()
def lap(name):
    global at
    now = time.perf_counter()
    steps.append((name, 1000*(now - at)))
    at = now
import os
os.environ.pop('_HANDLER', None)
from bin_counter import invoke; lap('import: handler')
import numpy; lap('import: numpy')
import cv2; lap('import: cv2')
from PIL import Image; lap('import: Pillow')
import onnxruntime; lap('import: onnxruntime')
package = invoke._package(invoke.Settings.from_env().model); lap('open the package')
def handler(event, context):
    global at
    at = time.perf_counter()
    first = invoke.local_handler(event, context); lap('first count')
    second = invoke.local_handler(event, context); lap('second count')
    assert first['statusCode'] == 200
    return dict(begun=begun, steps=steps)
'''


def lay_out(folder, package):
    "The folder of a Lambda as pip leaves it, and as it is packed"
    architecture = 'arm64' if platform.machine() in ('aarch64', 'arm64') else 'x86_64'
    raw, packed = folder/'raw', folder/'packed'
    raw.mkdir()
    bundle._put_model(package, raw)
    bundle._fetch_wheels(raw, architecture, HERE)
    bundle._put_modules(raw)
    (raw/'timed.py').write_text(TIMED)
    shutil.copytree(raw, packed, copy_function=os.link)
    bundle._prune(packed)
    bundle._compile(packed, HERE)
    return raw, packed


@contextlib.contextmanager
def runtime():
    "SageMaker's runtime with an answer ready"
    content = json.dumps(make_answer([.01, .02, .94, .02, .01])).encode()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *a): pass
        def do_POST(self):
            self.rfile.read(int(self.headers['content-length']))
            self.send_response(200)
            self.send_header('content-length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def start(task, handler, event, url=''):
    "One cold start: milliseconds until the first and the second answer, and what came back first"
    port = free_port()
    env = dict(PATH=f'{Path(sys.executable).parent}:/usr/bin:/bin', HOME=tempfile.gettempdir(), PYTHONPATH=str(task), LAMBDA_TASK_ROOT=str(task), PYTHONDONTWRITEBYTECODE='1', AWS_REGION='us-east-1', AWS_DEFAULT_REGION='us-east-1',
               AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_EC2_METADATA_DISABLED='true', AWS_LAMBDA_FUNCTION_NAME='bins', AWS_LAMBDA_FUNCTION_TIMEOUT='60', AWS_LAMBDA_FUNCTION_MEMORY_SIZE='1769', BIN_COUNTER_ENDPOINT='bins', AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=url)
    command = [EMULATOR, '--runtime-interface-emulator-address', f'127.0.0.1:{port}', '--runtime-api-address', f'127.0.0.1:{free_port()}', sys.executable, '-m', 'awslambdaric', handler]
    process = subprocess.Popen(command, env=env, cwd='/', stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    content, times, said = json.dumps(event).encode(), [], []
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                socket.create_connection(('127.0.0.1', port), .2).close()
                break
            time.sleep(.01)
        for _ in range(2):
            sent = time.time()
            with urllib.request.urlopen(urllib.request.Request(f'http://127.0.0.1:{port}/2015-03-31/functions/function/invocations', content), timeout=90) as r: said.append(json.loads(r.read()))
            times.append(1000*(time.time() - sent))
            said[-1].setdefault('sent', sent)
            if 'errorType' in said[-1]: sys.exit(f'{handler}: {said[-1]}')
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return *times, said[0]


def ms(values): return f'{statistics.median(values):.0f}', f'{min(values):.0f}'


with tempfile.TemporaryDirectory() as d, runtime() as url:
    d = Path(d)
    if not args.package:
        import torch
        from bin_counter.net import build_net, save_model
        from bin_counter.package import build_package
        torch.manual_seed(0)
        save_model(d/'run', build_net(ModelCard('mobilenet_v2')), ModelCard('mobilenet_v2'))
        build_package(d/'run', d/'model.tar.gz')
        args.package = d/'model.tar.gz'
    draw_bins(1, d/'bins', seed=0, size=480)
    photo = next((d/'bins/bin-images').iterdir()).read_bytes()
    event = dict(version='2.0', rawPath='/api/count', rawQueryString='', headers={'content-type': 'image/jpeg'}, isBase64Encoded=True, body=base64.b64encode(photo).decode(), requestContext=dict(http=dict(method='POST', path='/api/count'), requestId='r', stage='$default'))
    raw, packed = lay_out(d, args.package)
    ways = {'counts, as pip leaves its libraries': (raw, 'bin_counter.invoke.local_handler'), 'counts, as packed': (packed, 'bin_counter.invoke.local_handler'), 'asks an endpoint, as packed': (packed, 'bin_counter.invoke.endpoint_handler')}
    whole, parts = {w: [] for w in ways}, {raw: [], packed: []}
    for _ in range(args.starts): # in turn, so that a busy minute of the machine meets all of them
        for way, (task, handler) in ways.items(): whole[way].append(start(task, handler, event, url))
        for task in parts:
            said = start(task, 'timed.handler', event)[2]
            parts[task].append([('start the runtime', 1000*(said['begun'] - said['sent'])), *said['steps']])
    print(f'\n{machine()}\n{args.starts} starts each, milliseconds, median and best\n')
    print(table(['Lambda', 'cold: median', 'cold: best', 'warm: median', 'warm: best'], [[way, *ms([t[0] for t in runs]), *ms([t[1] for t in runs])] for way, runs in whole.items()]), '\n')
    names = [name for name, _ in parts[raw][0]]
    def column(task, k): return ms([run[k][1] for run in parts[task]])
    print(table(['part', 'as pip leaves it: median', 'best', 'as packed: median', 'best'], [[name, *column(raw, k), *column(packed, k)] for k, name in enumerate(names)]))
