"The whole front on loopback: one answer through every door, parts that die, ports that are taken, nothing left behind."
import base64, json, os, re, signal, subprocess, sys, urllib.error, urllib.request
from pathlib import Path

import pytest
import torch

from bin_counter.core import BinCounterError, ConfigError, Counts, ModelCard, Preprocess, infra_folder
from bin_counter.net import build_net, save_model
from bin_counter.package import Package, build_package, count_photo
from bin_counter.up import PAGE_HEADERS, Stack, find_emulator, free_port, wait_until_up

pytest.importorskip('fastapi')


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    "An untrained counter: what it counts means nothing, that all doors agree means everything"
    out = tmp_path_factory.mktemp('up')
    torch.manual_seed(3)
    card = ModelCard('squeezenet1_1', Counts.parse('1-5'), Preprocess(64), dict(pool='meanmax'), views=('plain', 'flip'))
    save_model(out/'run', build_net(card), card)
    build_package(out/'run', out/'model.tar.gz')
    return out/'model.tar.gz'


@pytest.fixture(scope='module')
def photo(bins): return next(iter(sorted((bins/'bin-images').iterdir()))).read_bytes()


@pytest.fixture(scope='module', params=['endpoint', 'local'])
def stack(request, package, tmp_path_factory):
    with Stack(package, answer=request.param, logs=tmp_path_factory.mktemp('logs')) as s: yield s


def ask(url, body=None, **headers):
    "Status, headers and body"
    request = urllib.request.Request(url, body, {k.replace('_', '-'): v for k, v in headers.items()})
    try: r = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as e: r = e
    with r: return r.status, dict(r.headers), r.read()


def same(got, want): return got['count'] == want['count'] and all(abs(got['probs'][k] - p) < 1e-5 for k, p in want['probs'].items()) and got['alarm'] == want['alarm']


def test_every_door_gives_the_answer_of_the_package(stack, package, photo):
    want = count_photo(Package.load(package), photo, recorded=4)
    raw = ask(f'{stack.url}/api/count?recorded=4', photo, content_type='image/jpeg')
    as_json = ask(f'{stack.url}/api/count', json.dumps(dict(image=base64.b64encode(photo).decode(), recorded=4)).encode(), content_type='application/json')
    for status, _, body in (raw, as_json): assert status == 200 and same(json.loads(body), want)


def test_a_refusal_of_the_container_reaches_the_caller_in_its_own_words(stack):
    status, _, body = ask(f'{stack.url}/api/count', b'hello', content_type='image/jpeg')
    assert status == 400 and 'not a JPEG or PNG' in json.loads(body)['error'] and json.loads(body)['request_id']


def test_a_heat_map_comes_through(stack, photo):
    heat = json.loads(ask(f'{stack.url}/api/count?explain=1', photo, content_type='image/jpeg')[2])['heat']
    assert len(heat['values']) == heat['rows']*heat['columns'] and 0 <= min(heat['values']) <= max(heat['values']) <= 1


def test_urls_are_off_unless_listed(stack):
    status, _, body = ask(f'{stack.url}/api/count', b'{"url": "https://example.com/a.jpg"}', content_type='application/json')
    assert status == 400 and 'switched off' in json.loads(body)['error']


def test_a_photo_through_the_bucket(stack, package, photo):
    if 'bucket' not in stack.parts: pytest.skip('moto is not installed: there is no bucket')
    _, _, body = ask(f'{stack.url}/api/uploads', json.dumps(dict(content_type='image/jpeg', bytes=len(photo))).encode(), content_type='application/json')
    to = json.loads(body)
    assert to['url'].startswith(stack.url) # the page may talk to its own origin only
    edge = 'bin0edge'
    parts = ''.join(f'--{edge}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in to['fields'].items()).encode()
    form = parts + f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="b.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode() + photo + f'\r\n--{edge}--\r\n'.encode()
    assert ask(to['url'], form, content_type=f'multipart/form-data; boundary={edge}')[0] in (200, 201, 204)
    status, _, body = ask(f'{stack.url}/api/count', json.dumps(dict(key=to['key'], recorded=4)).encode(), content_type='application/json')
    assert status == 200 and same(json.loads(body), count_photo(Package.load(package), photo, recorded=4))


def test_the_page_and_only_the_page(stack):
    for name in ('', 'style.css', 'app.js', 'icon.svg'):
        status, headers, body = ask(f'{stack.url}/{name}')
        assert status == 200 and body == (infra_folder()/'web'/(name or 'index.html')).read_bytes()
        assert headers['content-security-policy'] == PAGE_HEADERS['content-security-policy']
    for name in ('../settings.ini', '%2e%2e/settings.ini', 'template.yaml', 'web/index.html', 'nothing'): assert ask(f'{stack.url}/{name}')[0] == 404
    assert ask(f'{stack.url}/', b'x')[0] == 405


def test_the_policy_is_the_template_s():
    "CloudFront sends what this stack sends, apart from the bucket that takes large photos"
    template = ' '.join((infra_folder()/'template.yaml').read_text().split())
    for directive in PAGE_HEADERS['content-security-policy'].split('; '):
        if not directive.startswith('connect-src'): assert directive in template, directive


def test_a_photo_in_the_browser(stack, browser, package, photo, tmp_path, request):
    "Choose a file, read the count, type the record: page, gateway, Lambda, endpoint and back"
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
    real = Path(os.environ.get('BIN_COUNTER_ABID', Path(__file__).parents[2]/'shared/abid'))/'bin-images'
    path = next(iter(sorted(real.glob('*.jpg'))), None) or tmp_path/'bin.jpg' # a real photo where there are any
    if not path.exists(): path.write_bytes(photo)
    want = count_photo(Package.load(package), path.read_bytes(), recorded=5)
    browser.get(stack.url)
    find = lambda id: browser.find_element(By.ID, id)
    find('files').send_keys(str(path))
    WebDriverWait(browser, 60).until(lambda _: find('count').text == str(want['count']))
    find('recorded').send_keys('5\n')
    WebDriverWait(browser, 60).until(lambda _: find('verdict').get_attribute('data-kind') not in ('idle', 'busy', 'wait'))
    assert ('Recount' in find('verdict-title').text) == (want['alarm'] or want['review'])
    assert not [e for e in browser.get_log('browser') if e['level'] == 'SEVERE']


def test_a_body_above_the_gateway_s_limit(stack):
    request = urllib.request.Request(f'{stack.url}/api/count', b'x', {'content-type': 'image/jpeg', 'content-length': str(11*1024*1024)})
    with pytest.raises(urllib.error.HTTPError) as e: urllib.request.urlopen(request, timeout=20)
    assert e.value.code == 413


def test_under_the_emulator_where_there_is_one(stack):
    if find_emulator() is None: pytest.skip('the Lambda runtime interface emulator was not found: set BIN_COUNTER_RIE')
    assert 'emulator' in stack.how


def test_the_lambda_survives_its_endpoint(package, photo, tmp_path):
    "Kill the endpoint: callers are told to come back, and never get a wrong answer"
    with Stack(package, logs=tmp_path, env={'AWS_LAMBDA_FUNCTION_TIMEOUT': '6'}) as stack: # the Lambda asks again for as long as it has time
        os.killpg(stack.parts['endpoint'].process.pid, signal.SIGKILL)
        status, headers, body = ask(f'{stack.url}/api/count', photo, content_type='image/jpeg')
        assert status == 503 and json.loads(body)['error'] and int({k.lower(): v for k, v in headers.items()}['retry-after']) > 0
        wait_until_up(stack.parts['endpoint'].start())
        status, _, body = ask(f'{stack.url}/api/count', photo, content_type='image/jpeg')
        assert status == 200 and json.loads(body)['count'] == count_photo(Package.load(package), photo)['count']


def test_a_failed_start_leaves_nothing_running(package, tmp_path):
    with Stack(package, answer='local', logs=tmp_path) as first:
        parts = Stack(package, int(first.url.rsplit(':', 1)[1]), logs=tmp_path/'second')
        with pytest.raises(ConfigError, match='choose another with --port'): parts.__enter__()
        assert not any(p.alive() for p in parts.parts.values())


def test_a_damaged_package_is_one_line(package, tmp_path):
    (tmp_path/'bad.tar.gz').write_bytes(package.read_bytes()[:1000])
    with pytest.raises(BinCounterError, match='endpoint ended before it answered'):
        with Stack(tmp_path/'bad.tar.gz', logs=tmp_path): pass


def test_the_command_prints_its_address_and_ends_on_sigterm(package, photo):
    code = 'import sys; from bin_counter.operate import bin_up; sys.exit(bin_up())'
    with subprocess.Popen([sys.executable, '-c', code, '--package', str(package), '--port', str(free_port())], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        lines = []
        for line in up.stdout:
            lines.append(line)
            if 'Ctrl-C' in line: break
        url = re.search(r'http://127\.0\.0\.1:\d+', ''.join(lines))[0]
        assert ask(f'{url}/api/count', photo, content_type='image/jpeg')[0] == 200
        up.send_signal(signal.SIGTERM)
        rest = up.stdout.read()
        assert up.wait(30) == 0 and rest.strip().endswith('stopped')
    with pytest.raises(OSError): urllib.request.urlopen(url, timeout=2)
