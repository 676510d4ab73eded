"The script that a machine of EC2 runs, run here: folders for S3, a server for the metadata, and a machine that is always switched off."
import http.server, io, os, shutil, subprocess, sys, tarfile, threading, time
from pathlib import Path

import pytest

from bin_counter.ec2 import TRAIN_PINS, user_data
from bin_counter.plans import Project
from bin_counter.source import source_archive

SLOW = os.environ.get('BIN_COUNTER_SLOW') == '1'
PROJECT = Project('bins', account='123456789012')
DATA, SOURCE = PROJECT.uri('data', '0'*16), PROJECT.uri('code', '0'*16, 'sourcedir.tar.gz')
pytestmark = pytest.mark.skipif(not (shutil.which('bash') and shutil.which('curl')), reason='the script needs bash and curl')

FAKES = {
    'aws': '''#!{python}
import os, shutil, sys
from pathlib import Path
root, args = Path(os.environ['FAKE_S3']), [a for a in sys.argv[3:] if not a.startswith('--')]
place = lambda a: root/a[5:] if a.startswith('s3://') else Path(a)
source, target = map(place, args[:2])
if os.environ.get('FAKE_DENY') and os.environ['FAKE_DENY'] in args[1]: sys.exit('An error occurred (AccessDenied)')
if sys.argv[2] == 'sync':
    for p in source.rglob('*') if source.exists() else ():
        if p.is_file() and not any(n.startswith('.') for n in p.relative_to(source).parts):
            (target/p.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, target/p.relative_to(source))
else:
    if not source.exists(): sys.exit('An error occurred (404)')
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
''',
    'shutdown': '#!/bin/sh\necho "$*" >> "$FAKE_SHUTDOWN"\n',
    'python3.12': '''#!/bin/sh
mkdir -p "$3/bin"
printf '#!/bin/sh\\nif [ "$2" = pip ]; then echo "$@" >> "$FAKE_SHUTDOWN.pip"; exit ${FAKE_PIP:-0}; fi\\nexec {python} "$@"\\n' > "$3/bin/python"
chmod +x "$3/bin/python"
'''}

TRAINER = '''
import json, os, pathlib, signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *a: stop.append(1))
saved, model = pathlib.Path(os.environ['SM_CHECKPOINT_DIR'])/'epoch', pathlib.Path(os.environ['SM_MODEL_DIR'])
first = int(saved.read_text()) + 1 if saved.exists() else 1
if os.environ.get('MOOD') == 'fails':
    pathlib.Path(os.environ['SM_FAILURE_FILE']).write_text('no training photo of count 4\\n')
    sys.exit(1)
assert (pathlib.Path(os.environ['SM_CHANNEL_SPLITS'])/'splits.csv').is_file()
for epoch in range(first, int(json.loads(os.environ['SM_HPS'])['epochs']) + 1):
    time.sleep(.1)
    saved.write_text(str(epoch))
    print('epoch', epoch, flush=True)
    if stop: sys.exit(143)
(model/'model.pth').write_text(f'from {first}')
'''


class Metadata(http.server.BaseHTTPRequestHandler):
    "EC2's metadata: a token first, and 404 until the machine is to go"
    taken = None
    def say(self, status, body=b''):
        self.send_response(status), self.send_header('content-length', str(len(body))), self.end_headers()
        self.wfile.write(body)
    def do_PUT(self): self.say(200, b'secret') if self.path == '/latest/api/token' and self.headers['X-aws-ec2-metadata-token-ttl-seconds'] else self.say(400)
    def do_GET(self): self.say(401) if self.headers['X-aws-ec2-metadata-token'] != 'secret' else self.say(200 if self.taken and self.taken() else 404)
    def log_message(self, *args): pass


class Machine:
    "A machine: run the script, see what it left"
    def __init__(self, root):
        self.root, self.s3 = root, root/'s3'
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), type('Own', (Metadata,), {}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        (root/'bin').mkdir(parents=True)
        for name, text in FAKES.items():
            (root/'bin'/name).write_text(text.replace('{python}', sys.executable))
            (root/'bin'/name).chmod(0o755)

    def put(self, uri, content):
        path = self.s3/uri[5:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def get(self, *parts): return (self.s3/PROJECT.uri(*parts)[5:]).read_text()

    def start(self, job, epochs=3, base='base', taken=None, hps={}, **env):
        self.server.RequestHandlerClass.taken = staticmethod(taken) if taken else None
        self.ended = self.root/f'shutdown-{base}'
        script = user_data(PROJECT, DATA, dict(epochs=epochs, **hps), job, SOURCE)
        env = {**os.environ, 'PATH': f'{self.root/"bin"}:{os.environ["PATH"]}', 'BIN_COUNTER_BASE': str(self.root/base), 'BIN_COUNTER_IMDS': f'http://127.0.0.1:{self.server.server_port}', 'no_proxy': '127.0.0.1',
               'BIN_COUNTER_LOOK': '.1', 'BIN_COUNTER_SAVE': '.2', 'BIN_COUNTER_PAUSE': '0', 'FAKE_S3': str(self.s3), 'FAKE_SHUTDOWN': str(self.ended), **env}
        return subprocess.Popen(['bash', '-c', script], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, *args, **more):
        process = self.start(*args, **more)
        out, _ = process.communicate(timeout=120)
        assert out == b'', 'everything is in the log'
        return process.returncode

    def assert_off(self):
        "A clock was set at the start, and the machine was switched off at the end"
        assert self.ended.read_text().splitlines() == ['-h +240', '-h now']


@pytest.fixture
def machine(tmp_path):
    m = Machine(tmp_path/'machine')
    m.put(f'{DATA}/splits/splits.csv', b'id,label,group,part\n')
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode='w:gz') as t:
        info = tarfile.TarInfo('train.py')
        info.size = len(TRAINER)
        t.addfile(info, io.BytesIO(TRAINER.encode()))
    m.put(SOURCE, raw.getvalue())
    yield m
    m.server.shutdown(), m.server.server_close()


def test_pins_are_those_that_are_tested():
    known = dict(l.split('==') for l in (Path(__file__).parents[1]/'constraints.txt').read_text().splitlines() if '==' in l and l[0] != '#')
    assert {n: known[n] for n in TRAIN_PINS} == TRAIN_PINS


def test_it_trains_and_ends(machine):
    assert machine.run('good') == 0
    machine.assert_off()
    assert machine.get('jobs', 'good', 'state.txt') == 'done\n' and 'epoch 3' in machine.get('jobs', 'good', 'log.txt')
    with tarfile.open(machine.s3/PROJECT.uri('jobs', 'good', 'output', 'model.tar.gz')[5:]) as t: assert t.extractfile('./model.pth').read() == b'from 1'
    assert machine.get('checkpoints', 'good', 'epoch') == '3'
    assert 'torch==2.13.0' in Path(f'{machine.ended}.pip').read_text()


@pytest.mark.parametrize('env, says', [
    (dict(MOOD='fails'), 'the training ended with status 1: no training photo of count 4'), (dict(FAKE_PIP='1'), 'the packages could not be installed'),
    (dict(FAKE_DENY='output/model'), 'could not write to s3://')], ids=['training', 'pip', 'upload'])
def test_it_ends_whatever_fails(machine, env, says):
    assert machine.run('bad', **env) == 1
    machine.assert_off()
    assert machine.get('jobs', 'bad', 'state.txt') == 'failed\n' and f'failed: {says}' in machine.get('jobs', 'bad', 'log.txt')


def test_without_any_right_it_still_ends(machine):
    assert machine.run('blind', FAKE_DENY='jobs/blind') == 1
    machine.assert_off()


def test_a_split_that_is_not_there(machine):
    shutil.rmtree(machine.s3/DATA[5:])
    assert machine.run('empty') == 1
    machine.assert_off()
    assert 'upload the split again' in machine.get('jobs', 'empty', 'log.txt')


def test_taken_away_it_saves_and_the_next_machine_goes_on(machine):
    saved = machine.root/'first/checkpoints/epoch'
    assert machine.run('spot', 200, 'first', taken=lambda: saved.exists() and int(saved.read_text() or 0) > 2) == 143
    machine.assert_off()
    reached = int(machine.get('checkpoints', 'spot', 'epoch'))
    assert machine.get('jobs', 'spot', 'state.txt') == 'interrupted\n' and 2 < reached < 200
    assert 'two minutes left' in machine.get('jobs', 'spot', 'log.txt')
    assert machine.run('spot', reached + 2, 'second') == 0
    machine.assert_off()
    with tarfile.open(machine.s3/PROJECT.uri('jobs', 'spot', 'output', 'model.tar.gz')[5:]) as t: assert t.extractfile('./model.pth').read() == f'from {reached + 1}'.encode()


def test_a_script_that_is_stopped_switches_off_too(machine):
    process = machine.start('stopped', 500)
    saved, end = machine.root/'base/checkpoints/epoch', time.monotonic() + 30
    while not saved.exists(): assert time.monotonic() < end; time.sleep(.05)
    process.terminate()
    assert process.wait(20) == 143
    machine.assert_off()
    assert int(machine.get('checkpoints', 'stopped', 'epoch')) >= 1


@pytest.mark.skipif(not SLOW, reason='takes minutes: set BIN_COUNTER_SLOW=1')
def test_a_real_training(machine, bins, split, tmp_path):
    "Our own source on drawn bins: what comes out is a package"
    from bin_counter.package import Package
    from bin_counter.upload import split_items, split_rows
    for i in split_items(split_rows(split), bins): machine.put(f'{DATA}/{i.key}', i.content or i.path.read_bytes())
    machine.put(SOURCE, source_archive())
    assert machine.run('real', 1, hps=dict(arch='squeezenet1_1', weights='none', trained='all', size=32, batch_size=32)) == 0, machine.get('jobs', 'real', 'log.txt')[-2000:]
    machine.assert_off()
    assert Package.load(machine.s3/PROJECT.uri('jobs', 'real', 'output', 'model.tar.gz')[5:]).card.arch == 'squeezenet1_1'
