"The web page in a real browser: counting, records, every error, the list, the heat map, keyboard, phone, both colour schemes, and nothing that leaves its own server."
import csv, importlib.util, io, json, os, re, shutil, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import pytest

from bin_counter.core import Counts, make_answer

pytest.importorskip('selenium', reason="the page is tested in a browser: pip install 'bin_counter[dev]'")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

WEB = Path(__file__).parents[1]/'infra/web'
TYPES = {'.html': 'text/html; charset=utf-8', '.css': 'text/css; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.svg': 'image/svg+xml'}
HEADER = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
SURE, SPLIT = [.01, .93, .04, .01, .01], [.05, .22, .35, .33, .05] # a clear photo of 2, an unclear one of 3
HEAT = dict(rows=3, columns=4, values=[0, .1, .2, 0, .3, 1, .6, .1, 0, .2, .1, 0])


class Fake:
    "The API as far as the page knows it: real answers from made-up probabilities, or whatever a test puts into `script`"
    def reset(self):
        self.probs, self.counts, self.alarm_at, self.script, self.seen, self.key, self.bucket = SURE, Counts(), .95, [], [], None, []
        self.policy, self.gate = 'both', None # gate: an Event that holds answers back

    def api(self, path, query, headers, body):
        "Status, headers and body of one request to /api/"
        if path == '/api/health': return 200, {}, dict(status='ok')
        if self.key and headers.get('x-api-key') != self.key: return 401, {}, dict(error='x-api-key is missing or wrong: send the key you were given', request_id='r-401')
        self.seen.append(SimpleNamespace(path=path, query=query, headers=headers, body=body))
        if self.script and (said := self.script.pop(0)): return said
        if path == '/api/uploads': return 200, {}, dict(url=f'{self.url}/bucket', fields={'key': 'uploads/1.jpg', 'policy': 'p'}, key='uploads/1.jpg', expires=300)
        asked = json.loads(body) if headers['content-type'] == 'application/json' else query
        recorded = asked.get('recorded')
        out = make_answer(self.probs, self.counts, None if recorded is None else int(recorded), alarm_at=self.alarm_at, model=dict(arch='mobilenet_v2', package='0123456789ab'))
        return 200, {'x-request-id': 'r-200'}, {**out, **(dict(heat=HEAT) if asked.get('explain') else {})}


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def reply(self, status, headers, body):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for k, v in {**headers, 'content-length': str(len(body))}.items(): self.send_header(k, v)
        self.end_headers()
        try: self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError): pass # the page did not wait

    def do_GET(self):
        fake, url = self.server.fake, urlsplit(self.path)
        if url.path.startswith('/api/'): return self.reply(*fake.api(url.path, {}, self.headers, b''))
        path = WEB/(url.path.lstrip('/') or 'index.html')
        if path.parent != WEB or not path.is_file(): return self.reply(404, {}, b'')
        content = path.read_bytes()
        if fake.policy == 'header' and path.suffix == '.html': content = re.sub(rb'<meta http-equiv="Content-Security-Policy"[^>]*>', b'', content)
        self.reply(200, {'content-type': TYPES[path.suffix], 'cache-control': 'no-store', **({} if fake.policy == 'meta' else {'content-security-policy': HEADER})}, content)

    def do_POST(self):
        fake, url, body = self.server.fake, urlsplit(self.path), self.rfile.read(int(self.headers['content-length']))
        if url.path == '/bucket':
            fake.bucket.append(body)
            return self.reply(204, {}, b'')
        status, headers, answer = fake.api(url.path, dict(parse_qsl(url.query)), self.headers, body)
        if fake.gate: fake.gate.wait(10)
        if status == 'drop': return setattr(self, 'close_connection', True)
        self.reply(status, {'content-type': 'application/json', **headers}, answer)


@pytest.fixture(scope='module')
def fake():
    "The server: page and API on one free port of loopback"
    class Server(ThreadingHTTPServer): daemon_threads = True
    server = Server(('127.0.0.1', 0), Handler)
    server.fake = Fake()
    server.fake.reset()
    server.fake.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.fake
    server.shutdown()
    server.server_close()


class Page:
    "The page as a person has it: chooses, types, reads"
    def __init__(self, driver, fake): self.driver, self.fake = driver, fake
    def js(self, code, *args): return self.driver.execute_script(code, *args)
    def __getitem__(self, id): return self.driver.find_element(By.ID, id)
    def text(self, id): return self.js('return document.getElementById(arguments[0]).textContent.trim()', id)
    def shown(self, id): return self[id].is_displayed()
    def kind(self): return self['verdict'].get_attribute('data-kind')
    def keys(self, *keys): webdriver.ActionChains(self.driver).send_keys(*keys).perform()
    def cdp(self, command, **parameters): return self.driver.execute_cdp_cmd(command, parameters)
    def media(self, **features): self.cdp('Emulation.setEmulatedMedia', features=[dict(name=f'prefers-{k.replace("_", "-")}', value=v) for k, v in features.items()])

    def wait(self, ready, why='the page to be ready', seconds=15):
        end = time.monotonic() + seconds
        while not (value := ready()):
            assert time.monotonic() < end, f'waited in vain for {why}; the page says {self.text("verdict")!r}'
            time.sleep(.02)
        return value

    def open(self, path='/'):
        self.driver.get(self.fake.url + path)
        self.wait(lambda: self.text('health'), 'the script to start')

    def idle(self): return self.wait(lambda: self.js("return !document.querySelector('main').hasAttribute('aria-busy') && document.getElementById('verdict').dataset.kind !== 'idle'"), 'an answer or an error')

    def choose(self, path, wait=True):
        self['files'].send_keys(str(path))
        if wait: self.idle()

    def record(self, number):
        self['recorded'].clear()
        self['recorded'].send_keys(str(number), Keys.ENTER)
        self.idle()

    def places(self):
        "Where the parts of the page stand"
        return self.js("return ['stage', 'choose', 'count', 'items', 'verdict', 'recorded', 'chances', 'history-title'].map(id => { const r = document.getElementById(id).getBoundingClientRect(); return [id, r.x, r.y + scrollY] })")

    def chances(self):
        "The table of chances, as its rows read"
        return self.js("return [...document.getElementById('chances').rows].map(r => `${r.cells[0].textContent} ${r.cells[2].textContent}`)")

    def logs(self):
        "What the console said, but for the requests that a test let fail"
        return [e['message'] for e in self.driver.get_log('browser') if not re.search(r'/api/\S* - Failed to load resource', e['message'])]

    def hosts(self):
        "Where the page went since it was last asked"
        events = [json.loads(e['message'])['message'] for e in self.driver.get_log('performance')]
        return {u[0] if (u := urlsplit(e['params']['request']['url']))[0] in ('blob', 'data') else f'{u[0]}://{u[1]}' for e in events if e['method'] == 'Network.requestWillBeSent'}


@pytest.fixture
def page(browser, fake):
    "The page, fresh; afterwards it must have kept to its own server and left the console empty"
    fake.reset()
    page = Page(browser, fake)
    browser.get(f'{fake.url}/icon.svg') # the same origin, without our script
    page.js('sessionStorage.clear(); localStorage.clear()')
    browser.get_log('browser'), browser.get_log('performance')
    page.open()
    yield page
    assert page.logs() == []
    assert page.hosts() <= {fake.url, 'blob', 'data'}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Files to choose: two bins, and what people choose by mistake"
    from PIL import Image
    from bin_counter.synth import draw_bins
    out = tmp_path_factory.mktemp('photos')
    draw_bins(2, out, seed=3, size=200, workers=1)
    first, second = (p.rename(out/f'{name}.jpg') for p, name in zip(sorted((out/'bin-images').iterdir()), ('first', 'second')))
    im = Image.open(first)
    im.save(out/'photo.png')
    im.save(out/'photo.webp')
    # large, lying on its side, with EXIF that says so: upright it is a portrait whose top is white
    side = Image.frombytes('RGB', (1350, 1100), os.urandom(3*1350*1100)).resize((2700, 2200), Image.Resampling.NEAREST)
    side.paste('white', (0, 0, 700, 2200))
    exif = Image.Exif()
    exif[0x0112] = 6
    side.save(out/'large.jpg', quality=97, exif=exif)
    assert (out/'large.jpg').stat().st_size > 4_400_000
    (out/'undecodable.jpg').write_bytes(first.read_bytes()[:200] + os.urandom(5_000_000) + b'\xff\xd9')
    (out/'phone.heic').write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(500))
    (out/'notes.jpg').write_text('not a photo')
    (out/'empty.jpg').write_bytes(b'')
    (out/'vast.png').write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(20_000_001))
    shutil.copy(first, out/'=1+1,"ü".jpg')
    return out


def test_a_photo_is_counted(page, fake, photos):
    page.choose(photos/'first.jpg')
    assert (page.text('count'), page.text('items'), page.text('interval'), page.text('trust')) == ('2', 'items in the photo', 'probably no other count', '93% sure')
    assert page.chances() == ['1 1%', '2 93%', '3 4%', '4 1%', '5 1%'] # a table with values, not only bars
    def widths(): return page.js("return [...document.querySelectorAll('.bar')].map(b => b.offsetWidth / b.parentElement.offsetWidth)")
    page.wait(lambda: widths() == pytest.approx(SURE, abs=.01), 'the bars to have grown')
    page.wait(lambda: page.text('polite') == '2 items, probably no other count, 93% sure. Counted. Enter what the record says to check it.', 'the live region')
    asked, = fake.seen
    assert (asked.path, asked.query, asked.headers['content-type'], asked.body) == ('/api/count', {}, 'image/jpeg', (photos/'first.jpg').read_bytes())
    assert page.shown('photo') and page.js("return document.getElementById('photo').naturalWidth") > 100


def test_nothing_moves_while_a_photo_is_counted(page, fake, photos):
    before, fake.gate = page.places(), threading.Event()
    page.choose(photos/'first.jpg', wait=False)
    page.wait(lambda: fake.seen, 'the question')
    assert (page.kind(), page.text('items'), page.text('count')) == ('busy', 'Counting', '?')
    during = page.places()
    fake.gate.set()
    page.idle()
    assert page.text('count') == '2' and before == during == page.places()


def test_the_classes_are_the_counters_own(page, fake, photos):
    fake.counts, fake.probs = Counts.parse('0-6+'), [.01, .01, .01, .02, .05, .3, .6]
    page.choose(photos/'first.jpg')
    assert (page.text('count'), page.text('items'), page.text('interval')) == ('6+', 'items in the photo', 'probably 5 to 6 or more')
    assert [r.split()[0] for r in page.chances()] == ['0', '1', '2', '3', '4', '5', '6+']
    page.record(9)
    assert (page.kind(), page.text('verdict-text')) == ('match', 'Both say 6 or more. Chance that the record is wrong: 40%.')
    assert page.js("return [...document.querySelectorAll('.tag:not([hidden])')].map(t => t.closest('tr').dataset.name)") == ['6+']
    fake.probs = [.16, .14, .14, .14, .14, .14, .14]
    page.choose(photos/'second.jpg')
    assert page.text('interval') == 'anything from 0 to 6 or more'


@pytest.mark.parametrize('probs, recorded, alarm_at, kind, title, text', [
    (SURE, 2, .95, 'match', 'The record agrees', 'Both say 2. Chance that the record is wrong: 7%.'),
    (SURE, 4, .95, 'alarm', 'Recount this bin', 'The record says 4. The photo says 2. Chance that the record is wrong: 99%.'),
    ([.3, .6, .05, .03, .02], 1, .95, 'plain', 'No alarm', 'The record says 1. The photo says 2, but 1 is possible (30%).'),
    (SPLIT, 4, .95, 'unsure', 'Recount by hand', 'The record says 4. The photo says 3, but 4 is possible (33%).'),
    (SPLIT, 3, .95, 'unsure', 'Recount by hand', 'The record and the photo both say 3, but the counter is only 35% sure.'),
    (SPLIT, 3, .6, 'alarm', 'Recount this bin', 'The record says 3. So does the photo, but it is too unclear to believe. Chance that the record is wrong: 65%.'),
    (SURE, 12, .95, 'unsure', 'Recount by hand', 'The counter knows bins of 1 to 5 items. It cannot check a record of 12.'),
    ([1e-7, 1 - 2e-7, 1e-7, 0, 0], 5, .95, 'alarm', 'Recount this bin', 'The record says 5. The photo says 2. Chance that the record is wrong: over 99%.'),
])
def test_a_record_is_checked(page, fake, photos, probs, recorded, alarm_at, kind, title, text):
    fake.probs, fake.alarm_at = probs, alarm_at
    page.choose(photos/'first.jpg')
    page.record(recorded)
    assert (page.kind(), page.text('verdict-title'), page.text('verdict-text')) == (kind, title, text)
    assert fake.seen[-1].query == {'recorded': str(recorded)}
    page.wait(lambda: page.text('polite').endswith(f'{title}. {text}'), 'the live region')


def test_a_record_is_asked_for_once_the_typing_stops(page, fake, photos):
    page.choose(photos/'first.jpg')
    for _ in range(3): page['more'].click()
    page['less'].click()
    assert page.kind() == 'busy' and page['recorded'].get_attribute('value') == '2' # no old verdict beside a new record
    page.idle()
    assert [s.query for s in fake.seen] == [{}, {'recorded': '2'}] and page.kind() == 'match'
    page['recorded'].send_keys(Keys.ARROW_UP)
    page.idle()
    page['recorded'].send_keys(Keys.ARROW_DOWN, 'x')
    page.idle()
    assert len(fake.seen) == 3 and page.kind() == 'match' # known already
    page['recorded'].clear()
    page['recorded'].send_keys(Keys.ENTER)
    assert page.text('verdict-title') == 'Counted' and len(fake.seen) == 3


def test_a_record_belongs_to_one_bin(page, fake, photos):
    page['recorded'].send_keys('2') # typed before its photo: kept for it
    page['bin'].send_keys('P-3-A214B')
    page.choose(photos/'first.jpg')
    assert fake.seen[-1].query == {'recorded': '2'} and page.kind() == 'match'
    page.choose(photos/'second.jpg')
    assert fake.seen[-1].query == {} and page['recorded'].get_attribute('value') == page['bin'].get_attribute('value') == ''


def test_a_newer_photo_wins(page, fake, photos):
    fake.gate = threading.Event()
    page.choose(photos/'first.jpg', wait=False)
    page.wait(lambda: fake.seen, 'the first question')
    fake.probs, gate, fake.gate = [.01, .01, .01, .96, .01], fake.gate, None
    page.choose(photos/'second.jpg')
    gate.set()
    time.sleep(.2)
    def listed(): return len(page.driver.find_elements(By.CSS_SELECTOR, '#entries tr'))
    assert page.text('count') == '4' and 'second.jpg' in page.text('caption') and listed() == 1
    page.choose(photos/'large.jpg', wait=False) # takes long to shrink
    page.choose(photos/'first.jpg')
    time.sleep(.8)
    assert 'first.jpg' in page.text('caption') and listed() == 2 and len(fake.seen) == 3


ERROR = 'photo: <img src=x onerror=alert(1)> damaged: fetch it again' # must come out as text

@pytest.mark.parametrize('status, body, title, again', [
    (400, dict(error=ERROR, request_id='r-400'), 'The photo was not accepted', True),
    (403, dict(message='Forbidden'), 'The counter refused', True),
    (404, b'<html>', 'There is no counter at this address', False),
    (413, dict(error=ERROR, request_id='r-400'), 'The photo is too large', False),
    (415, dict(error=ERROR, request_id='r-400'), 'This kind of file cannot be counted', False),
    (500, dict(message='Internal Server Error'), 'The counter failed', True),
    (504, dict(message='Endpoint request timed out'), 'The counter took too long', True),
    (200, b'{"count": "many"}', 'The answer cannot be read', True),
    (200, b'<html>', 'The answer cannot be read', True),
])
def test_an_error_says_what_to_do(page, fake, photos, status, body, title, again):
    fake.script = [(status, {} if isinstance(body, dict) and 'request_id' in body else {'x-request-id': 'r-400'}, body)] # API Gateway's own errors name their request in a header only
    page.choose(photos/'first.jpg')
    assert (page.kind(), page.text('verdict-title'), page.text('count'), page.text('items')) == ('error', title, '?', 'No count')
    said = body.get('error') or body.get('message') if isinstance(body, dict) else ''
    assert page.text('verdict-text') and page.text('verdict-detail') == ('' if status == 200 else f'The counter says: {said} ({status}, request r-400)' if said else f'({status}, request r-400)')
    page.wait(lambda: page.text('urgent').startswith(title), 'the alert')
    assert page.js("return document.querySelectorAll('#verdict img').length") == 0
    assert page.shown('verdict-again') == again
    if not again: return
    page['verdict-again'].click()
    page.wait(lambda: page.text('count') == '2', 'the second try')


def test_an_access_key_is_asked_for_and_kept_in_the_tab(page, fake, photos):
    fake.key = 'open sesame'
    page.choose(photos/'first.jpg')
    assert page.text('verdict-title') == 'Access key needed'
    page['verdict-key'].click()
    page['key'].send_keys('open sesame', Keys.ENTER)
    page.wait(lambda: page.text('count') == '2', 'the count')
    assert fake.seen[-1].headers['x-api-key'] == 'open sesame'
    assert 'sesame' in page.js('return JSON.stringify(sessionStorage)') and 'sesame' not in page.js('return JSON.stringify(localStorage) + document.body.innerHTML')


@pytest.mark.parametrize('busy, ends', [(2, 'plain'), (3, 'error')])
def test_a_busy_counter_is_asked_again(page, fake, photos, busy, ends):
    fake.script = [(503, {'retry-after': '1'}, dict(error='busy: try again in 1 s'))]*busy
    begun = time.monotonic()
    page.choose(photos/'first.jpg', wait=False)
    page.wait(lambda: page.text('verdict-text') == 'Try 1 of 2 in 1 s.', 'the first wait')
    assert page.text('verdict-title') == 'The counter is busy'
    page.wait(lambda: page.kind() == ends, ends)
    assert len(fake.seen) == 3 and time.monotonic() - begun >= 2
    assert (page.text('count'), page.text('verdict-title')) == (('2', 'Counted') if ends == 'plain' else ('?', 'The counter is busy'))


def test_waiting_can_be_stopped(page, fake, photos):
    fake.script = [(429, {'retry-after': '30'}, dict(message='Too Many Requests'))]
    page.choose(photos/'first.jpg', wait=False)
    page.wait(lambda: page.text('verdict-text') == 'Try 1 of 2 in 30 s.', 'the wait')
    page.keys(Keys.ESCAPE)
    assert page.text('verdict-title') == 'Stopped' and len(fake.seen) == 1
    page['verdict-again'].click()
    page.wait(lambda: page.text('count') == '2', 'the second try')


def test_an_answer_that_does_not_come(page, fake, photos):
    page.js("document.querySelector('main').dataset.seconds = 0.3")
    fake.gate = threading.Event()
    page.choose(photos/'first.jpg')
    fake.gate.set()
    assert (page.kind(), page.text('verdict-title')) == ('error', 'No answer in time')
    page.js("document.querySelector('main').dataset.seconds = 20")
    fake.script = [('drop', {}, b'')]*3 # a browser may try a lost connection again by itself
    page['verdict-again'].click()
    page.wait(lambda: page.text('verdict-title') == 'The counter cannot be reached', 'the lost connection')


def test_a_photo_taken_offline_is_counted_later(page, fake, photos):
    page.cdp('Network.enable')
    page.cdp('Network.emulateNetworkConditions', offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    try:
        page.choose(photos/'first.jpg')
        assert (page.text('verdict-title'), fake.seen) == ('No connection', [])
    finally: page.cdp('Network.emulateNetworkConditions', offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.wait(lambda: page.text('count') == '2', 'the count')


@pytest.mark.parametrize('name, title', [('phone.heic', 'This browser cannot open HEIC photos'), ('notes.jpg', 'This is not a photo'), ('empty.jpg', 'The file is empty'), ('vast.png', 'The photo is too large')])
def test_what_is_no_photo_is_not_sent(page, fake, photos, name, title):
    page.choose(photos/'first.jpg')
    page.choose(photos/name)
    assert (page.kind(), page.text('verdict-title'), page.text('count')) == ('error', title, '?')
    assert len(fake.seen) == 1 and not page.shown('photo') and not page.shown('verdict-again')


@pytest.mark.parametrize('name, kind', [('photo.png', 'image/png'), ('photo.webp', 'image/jpeg'), ('large.jpg', 'image/jpeg')])
def test_a_photo_is_made_fit_to_send(page, fake, photos, name, kind):
    from PIL import Image
    page.choose(photos/name)
    sent = fake.seen[0]
    im = Image.open(io.BytesIO(sent.body))
    assert page.text('count') == '2' and sent.headers['content-type'] == kind == Image.MIME[im.format]
    if name != 'large.jpg': return
    assert len(sent.body) <= 4_400_000 and im.size == (round(2048*2200/2700), 2048) and not im.getexif().get(0x0112) # upright now, so that nobody turns it twice
    assert im.resize((1, 10)).getpixel((0, 0)) > (240, 240, 240) > im.resize((1, 10)).getpixel((0, 5))
    assert re.search(r'^large\.jpg · [\d.]+ MB, sent as [\d.]+ MB$', page.text('caption'))


def test_a_photo_that_cannot_be_shrunk_goes_through_the_bucket(page, fake, photos):
    page.choose(photos/'undecodable.jpg')
    page.record(2)
    content = (photos/'undecodable.jpg').read_bytes()
    ask, *counts = fake.seen
    assert (ask.path, json.loads(ask.body)) == ('/api/uploads', dict(content_type='image/jpeg', bytes=len(content)))
    form, = fake.bucket # once, for both questions
    assert content in form and form.index(b'name="policy"') < form.index(b'name="file"')
    assert [json.loads(c.body) for c in counts] == [dict(key='uploads/1.jpg'), dict(key='uploads/1.jpg', recorded=2)]
    assert page.text('count') == '2' and page.shown('no-preview') and not page['heat-toggle'].is_enabled()


def test_the_heat_map_is_drawn_over_the_photo(page, fake, photos):
    page.choose(photos/'first.jpg')
    assert not page.shown('heat')
    page['heat-toggle'].click()
    page.idle()
    assert fake.seen[-1].query == {'explain': '1'} and page.shown('heat') and page.shown('legend') and page['heat-toggle'].get_attribute('aria-pressed') == 'true'
    assert page.js("""const h = document.getElementById('heat'), p = document.getElementById('photo'), a = h.getBoundingClientRect(), b = p.getBoundingClientRect()
        return a.x === b.x && a.y === b.y && a.width === b.width && a.height === b.height && Math.abs(h.width/h.height - p.naturalWidth/p.naturalHeight) < .02""")
    hot, cold = page.js("""const c = document.getElementById('heat'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data
        return [[.375, .5], [.95, .05]].map(([x, y]) => 4*(Math.floor(y*c.height)*c.width + Math.floor(x*c.width))).map(i => d[i] - d[i + 2])""")
    assert hot > 60 and abs(cold) <= 2 # HEAT: 1 in the second column of the middle row, 0 in the corner, which is grey
    page['heat-toggle'].click()
    assert not page.shown('heat') and not page.shown('legend')
    page['heat-toggle'].click()
    assert page.shown('heat') and len(fake.seen) == 2 # drawn once, asked for once
    page.choose(photos/'second.jpg')
    assert fake.seen[-1].query == {'explain': '1'} and page.shown('heat') # the wish stays


@pytest.mark.parametrize('said', [(400, {}, dict(error='this package has no map to show')), (200, {}, None)])
def test_a_counter_without_a_heat_map_still_counts(page, fake, photos, said):
    page.choose(photos/'first.jpg')
    answer = make_answer(SURE)
    fake.script = [said if said[2] else (200, {}, answer)]
    page['heat-toggle'].click()
    page.idle()
    assert (page.text('count'), page.kind(), page['heat-toggle'].text.split('\n')[0]) == ('2', 'plain', 'No heat map') and not page['heat-toggle'].is_enabled() and not page.shown('heat')
    page.choose(photos/'second.jpg')
    assert fake.seen[-1].query == {} # nor is it asked for one again


def test_the_session_is_listed_exported_and_cleared(page, fake, photos, tmp_path):
    evil = '=1+1,"ü".jpg'
    page.choose(photos/evil)
    page.record(5)
    page.record(2) # the same bin: the same entry
    fake.probs = SPLIT
    page.choose(photos/'second.jpg')
    page['bin'].send_keys('@P-3')
    assert page.text('history-summary') == '2 bins, 1 to recount.'
    assert page.js("return [...document.querySelectorAll('#entries tr')].map(r => [...r.cells].slice(1).map(c => c.textContent))") == [['3', '–', 'Recount by hand'], ['2', '2', 'Agrees']]
    page.open() # a reload keeps the list
    first = page.js("return [...document.querySelectorAll('#entries th')].map(c => c.querySelector('.who > span').firstChild.textContent)")
    assert first == ['@P-3', evil]
    assert len(page.js('return JSON.stringify(sessionStorage)')) < 30_000 # small pictures, not photos
    page.cdp('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
    page['export'].click()
    path, = page.wait(lambda: list(tmp_path.glob('bins-*.csv')), 'the file')
    page.wait(lambda: path.stat().st_size, 'its content')
    with path.open(encoding='utf-8-sig', newline='') as f: out = list(csv.DictReader(f))
    assert [(r['bin'], r['photo'], r['count'], r['recorded'], r['p_mismatch'], r['alarm'], r['review'], r['verdict'], r['model']) for r in out] == [
        ('', "'" + evil, '2', '2', '0.07', 'false', 'false', 'Agrees', '0123456789ab'), ("'@P-3", 'second.jpg', '3', '', '', '', 'true', 'Recount by hand', '0123456789ab')]
    for button, left in (('keep', 2), ('clear', 0)):
        page['clear'].click()
        page.driver.find_element(By.CSS_SELECTOR, f'#confirm [value={button}]').click()
        page.wait(lambda: len(page.driver.find_elements(By.CSS_SELECTOR, '#entries tr')) == left, button)
    assert not page['export'].is_enabled() and page.js("return JSON.parse(sessionStorage['bin_counter.history'])") == []


def test_everything_by_keyboard(page, fake, photos):
    page.js("""window.opened = []; for (const id of ['files', 'camera']) document.getElementById(id).addEventListener('click', e => { e.preventDefault(); opened.push(id) })""") # the browser's own window cannot be reached from here
    def reach(id):
        for _ in range(30):
            if page.js('return document.activeElement.id') == id: return page.js("return getComputedStyle(document.activeElement).outlineWidth") # the focus can be seen
            page.keys(Keys.TAB)
        raise AssertionError(f'{id} cannot be reached')
    assert reach('choose') == '3px'
    page.keys(Keys.ENTER, 'o', 'p')
    assert page.js('return opened') == ['files', 'files', 'camera']
    page.choose(photos/'first.jpg')
    page.keys('4', Keys.ENTER) # from anywhere: what the record says
    page.idle()
    assert page.text('verdict-title') == 'Recount this bin'
    for id in ('more', 'bin', 'export', 'clear', 'open-help', 'open-settings', 'theme', 'heat-toggle'): assert reach(id) == '3px'
    page.keys('h')
    page.idle()
    assert page.shown('heat')
    page.keys('-')
    page.idle()
    assert page['recorded'].get_attribute('value') == '3'
    page.keys('?')
    assert page.shown('help')
    page.keys('h', Keys.ESCAPE) # nothing happens behind an open window
    assert not page.shown('help') and page.shown('heat')


def test_shortcuts_can_be_switched_off(page, fake, photos):
    page.choose(photos/'first.jpg')
    page.keys('k')
    page['use-shortcuts'].click()
    page.driver.find_element(By.CSS_SELECTOR, '#settings [value=save]').click()
    page.open()
    page.choose(photos/'first.jpg')
    page.keys('h', '4', '?')
    assert not page.shown('help') and not page.shown('heat') and page['recorded'].get_attribute('value') == '' and not [k for k in page.driver.find_elements(By.TAG_NAME, 'kbd') if k.is_displayed()]


def test_a_photo_can_be_dropped_or_pasted(page, fake, photos):
    hand = """const bytes = Uint8Array.from(arguments[1]), data = new DataTransfer()
        for (const n of arguments[2]) data.items.add(new File([bytes], n, {type: 'image/jpeg'}))
        const e = arguments[0] === 'paste' ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true}) : new DragEvent(arguments[0], {dataTransfer: data, bubbles: true, cancelable: true})
        document.getElementById('stage').dispatchEvent(e)
        return e.defaultPrevented"""
    content = list((photos/'first.jpg').read_bytes())
    for how, names in (('drop', ['a.jpg', 'b.jpg']), ('paste', ['c.jpg'])):
        prevented = page.js(hand, how, content, names)
        page.idle()
        assert page.text('count') == '2' and names[0] in page.text('caption') and prevented == (how == 'drop')
        assert ('the first of 2' in page.text('caption')) == (how == 'drop')
    assert len(fake.seen) == 2


def test_colours_follow_the_system_until_somebody_chooses(page):
    def page_is_dark(): return page.js("return getComputedStyle(document.body).backgroundColor") == 'rgb(14, 18, 21)'
    try:
        for scheme in ('dark', 'light'):
            page.media(color_scheme=scheme)
            assert page_is_dark() == (scheme == 'dark') == (page['theme'].get_attribute('aria-pressed') == 'true')
        page['theme'].click()
        page.open()
        assert page_is_dark() # the choice outlives the page
        page['theme'].click()
        assert not page_is_dark() and page.js("return localStorage.length") == 0
        page.media(color_scheme='light', reduced_motion='reduce')
        assert page.js("return getComputedStyle(document.querySelector('.progress'), '::after').animationName") == 'none'
    finally: page.media()


PHONE, SMALL, LYING = (390, 844), (320, 568), (844, 390)

@pytest.fixture
def phone(page):
    "The page on a phone: small, touched, twice the pixels"
    def hold(size): page.cdp('Emulation.setDeviceMetricsOverride', width=size[0], height=size[1], deviceScaleFactor=2, mobile=True)
    page.cdp('Emulation.setTouchEmulationEnabled', enabled=True, maxTouchPoints=5)
    page.hold = hold
    hold(PHONE)
    yield page
    page.cdp('Emulation.clearDeviceMetricsOverride')
    page.cdp('Emulation.setTouchEmulationEnabled', enabled=False)


def test_a_phone_shows_the_answer_at_once_and_never_scrolls_sideways(phone, fake, photos):
    fake.counts, fake.probs = Counts.parse('0-6+'), [.01, .01, .01, .02, .05, .3, .6]
    phone.choose(photos/'=1+1,"ü".jpg')
    phone.record(1)
    def seen(id): return phone.js("const r = document.getElementById(arguments[0]).getBoundingClientRect(), e = document.elementFromPoint(r.x + r.width/2, r.bottom - 4); return Boolean(e?.closest('#' + arguments[0]))", id)
    for id in ('count', 'verdict', 'recorded', 'take'): assert seen(id), id # above the fold, and not under the bar at the bottom
    for id in ('bin', 'export', 'clear'): # what gets the focus comes out from under the bar
        phone.js("document.getElementById(arguments[0]).focus()", id)
        assert seen(id), id
    phone.js('scrollTo(0, 0)')
    phone['heat-toggle'].click()
    phone.idle()
    phone['bin'].send_keys('A-VERY-LONG-NAME-OF-A-BIN-WITHOUT-ANY-SPACE-IN-IT')
    for size in (PHONE, SMALL, LYING):
        phone.hold(size)
        assert phone.js('return document.documentElement.scrollWidth') <= size[0]
        small = phone.js("return [...document.querySelectorAll('button, input')].filter(e => e.offsetParent && (e.offsetWidth < 44 || e.offsetHeight < 44)).map(e => e.id)")
        assert small == [] # a gloved finger hits everything
    assert phone.js("return document.getElementById('camera').getAttribute('capture')") == 'environment'


@pytest.mark.parametrize('policy', ['meta', 'header'])
def test_either_policy_alone_is_enough(page, fake, photos, policy):
    fake.policy = policy
    page.open()
    page.choose(photos/'first.jpg')
    page['heat-toggle'].click()
    page.idle()
    assert page.text('count') == '2' and page.shown('heat') and page.logs() == []
    blocked = page.js("""return new Promise(done => { addEventListener('securitypolicyviolation', e => done(e.effectiveDirective), {once: true})
        const s = document.createElement('style'); s.textContent = 'body { color: red }'; document.head.append(s); setTimeout(() => done('nothing'), 2000) })""")
    assert blocked == 'style-src-elem' # it does hold
    assert len(page.logs()) == 1


@pytest.fixture(scope='module')
def axe():
    "The source of axe-core, which finds what keeps people out"
    spec = importlib.util.find_spec('axe_core_python')
    if not spec: pytest.skip('axe-core not found: pip install axe-core-python')
    return (Path(spec.origin).parent/'axe.min.js').read_text()


def barriers(page, axe):
    "What axe-core calls serious or critical on the page as it stands"
    if not page.js('return Boolean(window.axe)'): page.js(axe)
    found = page.driver.execute_async_script("const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(r => done(r.violations), e => done([{id: String(e), impact: 'critical', nodes: []}]))")
    return [(v['id'], v['impact'], [n['html'][:120] for n in v['nodes']]) for v in found if v['impact'] in ('serious', 'critical')]


@pytest.mark.parametrize('scheme, small', [('light', False), ('dark', False), ('light', True)])
def test_no_barriers(request, page, fake, photos, axe, scheme, small):
    if small: request.getfixturevalue('phone')
    page.media(color_scheme=scheme)
    found = {}
    def look(state): found[state] = barriers(page, axe)
    try:
        look('empty')
        page.choose(photos/'first.jpg')
        page.record(2)
        look('match')
        page.record(5)
        page['heat-toggle'].click()
        page.idle()
        look('alarm, heat')
        fake.probs = SPLIT
        page.choose(photos/'second.jpg')
        look('recount by hand, list')
        fake.gate = threading.Event()
        page.choose(photos/'first.jpg', wait=False)
        page.wait(lambda: page.kind() == 'busy', 'the question')
        if not small: look('busy')
        fake.gate.set()
        page.idle()
        fake.key = 'k'
        page.choose(photos/'first.jpg')
        look('error')
        for button in ('open-settings', 'clear') if small else ('open-settings', 'open-help', 'clear'):
            page.js("document.getElementById(arguments[0]).scrollIntoView({block: 'center'})", button)
            page[button].click()
            look(button)
            page.js("document.querySelector('dialog[open]').close()")
    finally: page.media()
    assert {state: b for state, b in found.items() if b} == {}
