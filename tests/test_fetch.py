"Hostile URLs, name servers and servers against the one function that fetches; a real TLS server on loopback for the good path."
import datetime, gzip, ipaddress, socket, ssl, struct, threading, time
from contextlib import contextmanager, suppress

import pytest

from bin_counter import fetch
from bin_counter.core import ConfigError
from bin_counter.fetch import FetchError, fetch_url, host_list, is_public

x509 = pytest.importorskip('cryptography.x509', reason="a certificate is made for the test server: pip install 'bin_counter[dev]'")

HOST = 'photos.example.com'
PHOTO = b'\xff\xd8' + bytes(range(256))*40 + b'\xff\xd9'


def head(body=b'', status='200 OK', *lines): return '\r\n'.join([f'HTTP/1.1 {status}', f'Content-Length: {len(body)}', *lines, '', '']).encode()


@pytest.fixture(scope='module')
def ca(tmp_path_factory):
    "Files of a self-signed CA, and of certificates by it: for the host, for another host, and for the host in the past"
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    out, now, day = tmp_path_factory.mktemp('ca'), datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    def name(text): return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    ca_key = ec.generate_private_key(ec.SECP256R1())

    def certificate(subject, key, start, *extensions):
        build = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name('test CA')).public_key(key.public_key()).serial_number(x509.random_serial_number())
        build = build.not_valid_before(start).not_valid_after(start + 3*day)
        for e, critical in extensions: build = build.add_extension(e, critical)
        return build.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    (out/'ca.pem').write_bytes(certificate('test CA', ca_key, now - day, (x509.BasicConstraints(True, None), True), (usage, True), (x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)))
    for file, host, start in (('good', HOST, now - day), ('other', 'other.example.com', now - day), ('expired', HOST, now - 10*day)):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (out/f'{file}.pem').write_bytes(pem + certificate(host, key, start, (x509.SubjectAlternativeName([x509.DNSName(host)]), False), (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)))
    return out


@contextmanager
def server(script, ca, cert='good', tls=True):
    "A TLS server on loopback whose every connection is handed to `script(connection, request)`; yields its port and the requests it saw"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca/f'{cert}.pem')
    sock, seen = socket.create_server(('127.0.0.1', 0)), []

    def one(conn):
        with suppress(OSError, ssl.SSLError), conn:
            conn.settimeout(5)
            if not tls: return script(conn, b'')
            with context.wrap_socket(conn, server_side=True) as c:
                request = b''
                while b'\r\n\r\n' not in request and (got := c.recv(4096)): request += got
                seen.append(request)
                script(c, request)

    def accept():
        with suppress(OSError):
            while True: threading.Thread(target=one, args=(sock.accept()[0],), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
    try: yield sock.getsockname()[1], seen
    finally: sock.close()


def to(*answers):
    "A name server that gives one list of addresses after the other, the last one for ever; it counts how often it was asked"
    def resolve(host, port, type=0):
        resolve.asked.append(host)
        given = answers[min(len(resolve.asked), len(answers)) - 1]
        return [(socket.AF_INET6 if ':' in a else socket.AF_INET, socket.SOCK_STREAM, 6, '', (a, port, 0, 0) if ':' in a else (a, port)) for a in given]
    resolve.asked = []
    return resolve


def get(ca, port, url=None, max_bytes=6_291_456, seconds=5., resolve=None, allow=lambda a: a == '127.0.0.1', trust=True):
    "Fetch from the test server through the same steps as `fetch_url`, with a name server, a check of addresses and a CA of our own"
    context = ssl.create_default_context(cafile=str(ca/'ca.pem')) if trust else None
    return fetch._fetch(url or f'https://{HOST}:{port}/bin.jpg', [f'{HOST}:{port}'], max_bytes, seconds, resolve or to(['127.0.0.1']), allow, context)


@pytest.fixture
def offline(monkeypatch):
    "No test of a refusal may look up a name or open a socket: both are counted"
    calls = []
    monkeypatch.setattr(fetch.socket, 'getaddrinfo', lambda *a, **k: calls.append(a) or [])
    monkeypatch.setattr(fetch.socket, 'socket', lambda *a, **k: calls.append(a))
    return calls


HOSTILE = [
    'http://photos.example.com/', 'ftp://photos.example.com/', 'file:///etc/passwd', 'gopher://photos.example.com:443/_x', 'data:image/jpeg;base64,AAAA', 'javascript:alert(1)', 'jar:https://photos.example.com/!/', 'netdoc:///etc/passwd',
    '//photos.example.com/', 'photos.example.com', '', ' ', 'https://', 'https:///x', 'https:photos.example.com', 'https:/photos.example.com/', 'https://:443/',
    'https://127.0.0.1/', 'https://127.1/', 'https://127.0.1/', 'https://0/', 'https://0.0.0.0/', 'https://2130706433/', 'https://0x7f000001/', 'https://0x7f.0.0.1/', 'https://0177.0.0.1/', 'https://017700000001/', 'https://127.0.0.0x1/',
    'https://169.254.169.254/latest/meta-data/iam/', 'https://2852039166/', 'https://0xa9fea9fe/', 'https://0251.0376.0251.0376/', 'https://169.254.43518/', 'https://10.0.0.1/', 'https://192.168.0.1/', 'https://1.1.1.1/',
    'https://[::1]/', 'https://[::]/', 'https://[::ffff:127.0.0.1]/', 'https://[::ffff:7f00:1]/', 'https://[fd00:ec2::254]/', 'https://[fe80::1%25eth0]/', 'https://[64:ff9b::7f00:1]/', 'https://[2002:7f00:1::]/', 'https://[2001:0:7f00:1::]/', 'https://[2606:4700:4700::1111]/', 'https://[v1.x]/', 'https://[::1/', 'https://::1/',
    'https://localhost/', 'https://photos/', 'https://photos.example.com./', 'https://.photos.example.com/', 'https://photos..example.com/', 'https://-photos.example.com/', 'https://photos.example.com-/', 'https://' + 'a'*64 + '.example.com/', 'https://' + 'a.'*130 + 'com/',
    'https://user@photos.example.com/', 'https://user:pass@photos.example.com/', 'https://@photos.example.com/', 'https://photos.example.com@evil.example/', 'https://photos.example.com:443@evil.example/', 'https://photos.example.com%40evil.example/',
    'https://evil.example/', 'https://photos.example.com.evil.example/', 'https://evilphotos.example.com/', 'https://example.com/', 'https://x.photos.example.com/', 'https://cdn.example.org/', 'https://evilcdn.example.org/',
    'https://photos.example.com:22/', 'https://photos.example.com:80/', 'https://photos.example.com:0/', 'https://photos.example.com:65536/', 'https://photos.example.com:-1/', 'https://photos.example.com:x/', 'https://photos.example.com:４４３/', 'https://photos.example.com:443:443/', 'https://a.cdn.example.org:443/', 'https://photos.example.com:8443/',
    'https://photos.example.com/\r\nHost: evil.example', 'https://photos.example.com/%0d%0a\r\n', 'https://photos.example.com\n.evil.example/', 'https://photos.example.com/\tx', 'https://photos.example.com/ x', ' https://photos.example.com/', 'https://photos.example.com/\x00', 'https://photos.example.com/\x7f',
    'https://photos.example.com\\@evil.example/', 'https://evil.example\\.photos.example.com/', 'https:\\\\photos.example.com/', 'https://photos.example.com\\/x',
    'https://phötos.example.com/', 'https://photos.example。com/', 'https://ｐhotos.example.com/', 'https://①②⑦.⓪.⓪.①/', 'https://١٢٧.٠.٠.١/', 'https://photos.example.com/ä', 'https://photos.exam\u00adple.com/', 'https://photos.example.com\u200b/', 'https://ſ.example.com/', 'https://photos.example.com℀/',
    'https://photos.example.com/' + 'a'*3000, None, 7, b'https://photos.example.com/', ['https://photos.example.com/'],
]


@pytest.mark.parametrize('url', HOSTILE, ids=lambda u: repr(u)[:60])
def test_a_hostile_url_is_refused_without_a_lookup_or_a_socket(url, offline):
    with pytest.raises(FetchError) as e: fetch_url(url, [HOST, '*.cdn.example.org:8443'])
    assert not offline and '\n' not in str(e.value)
    assert not any(inside in str(e.value) for inside in ('169.254', '127.0', 'fd00', 'user', 'pass@')) # nothing that was not a plain host name is said back


@pytest.mark.parametrize('url, port', [('https://photos.example.com', 443), ('HTTPS://PHOTOS.Example.COM/x', 443), ('https://photos.example.com:443/?a=b#c', 443), ('https://photos.example.com:/x', 443), ('https://a.b.cdn.example.org:8443/', 8443)])
def test_what_is_listed_is_looked_up_once(url, port, offline):
    "The matrix above would be worth nothing if good URLs were refused as well"
    with pytest.raises(FetchError, match='is not a public host'): fetch_url(url, [HOST, '*.cdn.example.org:8443']) # the patched resolver knows no address
    assert len(offline) == 1 and offline[0][1] == port and offline[0][0] == offline[0][0].lower()


INSIDE = ['0.0.0.0', '10.0.0.1', '10.255.255.255', '100.64.0.1', '100.100.100.200', '127.0.0.1', '127.255.255.254', '168.63.129.16', '169.254.169.254', '169.254.170.2', '172.16.0.1', '172.31.255.255', '192.0.0.1', '192.0.0.192', '192.0.2.1',
          '192.88.99.1', '192.168.1.1', '198.18.0.1', '198.51.100.7', '203.0.113.7', '224.0.0.1', '239.255.255.250', '240.0.0.1', '255.255.255.255',
          '::', '::1', '::127.0.0.1', '::ffff:127.0.0.1', '::ffff:169.254.169.254', '::ffff:8.8.8.8', '::ffff:0:127.0.0.1', '64:ff9b::169.254.169.254', '64:ff9b:1::1', '100::1', '2001::1', '2001:0:4136:e378:8000:63bf:3fff:fdd2', '2001:10::1', '2001:20::1', '2001:db8::1',
          '2002:7f00:1::', '2002:a9fe:a9fe::1', '3fff::1', '5f00::1', 'fc00::1', 'fd00:ec2::254', 'fd00:ec2::23', 'fe80::1', 'fe80::1%eth0', 'fec0::1', 'ff02::1', 'ff0e::1', 'not an address', '', '1.1.1.1 ', '01.1.1.1', '1.1.1']


@pytest.mark.parametrize('address', INSIDE)
def test_an_address_inside_is_not_public_however_it_is_written(address):
    assert not is_public(address)
    with pytest.raises(FetchError, match='not a public host') as e: fetch._addresses(HOST, 443, time.monotonic() + 5, to(['1.1.1.1', address, '8.8.8.8']), is_public)
    assert not address or address == '::' or address not in str(e.value) # the caller learns nothing about what lies inside


def test_every_edge_of_the_special_ranges():
    "The first and last address of each is inside; IPv4's neighbours outside of any range are public"
    for net in fetch.SPECIAL:
        assert not is_public(str(net[0])) and not is_public(str(net[-1]))
        for n in (int(net[0]) - 1, int(net[-1]) + 1):
            ip = (ipaddress.IPv4Address if net.version == 4 else ipaddress.IPv6Address)(n) if 0 <= n < 2**(32 if net.version == 4 else 128) else None
            if ip and not any(ip in other for other in fetch.SPECIAL if other.version == ip.version): assert is_public(str(ip)) == (ip.version == 4 or ip in ipaddress.ip_network('2000::/3')), ip
    assert all(map(is_public, ['1.1.1.1', '8.8.8.8', '52.218.0.1', '172.15.255.255', '172.32.0.0', '2606:4700:4700::1111', '2a05:d018::1', '2600:1f18::1']))


@pytest.mark.parametrize('answers', [['127.0.0.1'], ['1.1.1.1', '169.254.169.254'], ['fd00:ec2::254', '2606:4700:4700::1111'], ['::ffff:127.0.0.1'], []], ids=str)
def test_one_bad_address_is_enough(answers, ca, offline):
    with pytest.raises(FetchError, match='not a public host'): get(ca, 443, resolve=to(answers), allow=is_public)
    assert not offline


def test_an_address_that_changes_is_asked_for_once_and_the_checked_one_is_used(ca):
    "DNS rebinding: 127.0.0.1 plays the public address that was checked, 127.0.0.2 the inside"
    good, bad = [], []
    with server(lambda c, r: (good.append(1), c.sendall(head(PHOTO) + PHOTO)), ca) as (port, _):
        inside = socket.create_server(('127.0.0.2', port)) # the same port, as an attacker would choose it
        inside.settimeout(.01)
        resolve = to(['127.0.0.1'], ['127.0.0.2'])
        assert get(ca, port, resolve=resolve) == PHOTO and len(resolve.asked) == 1 and good == [1]
        with pytest.raises(FetchError, match='not a public host'): get(ca, port, resolve=resolve)
        with suppress(TimeoutError): bad.append(inside.accept())
        inside.close()
    assert not bad


def test_a_photo_comes_with_the_name_in_certificate_sni_and_host(ca):
    with server(lambda c, r: c.sendall(head(PHOTO, '200 OK', 'Content-Type: image/jpeg') + PHOTO), ca) as (port, seen):
        assert get(ca, port, f'https://{HOST}:{port}/a%20b.jpg?X-Amz-Signature=1&y=2#part') == PHOTO
    lines = seen[0].decode().split('\r\n')
    assert lines[0] == 'GET /a%20b.jpg?X-Amz-Signature=1&y=2 HTTP/1.1' and f'Host: {HOST}:{port}' in lines
    assert not any(l.lower().startswith(('cookie', 'authorization', 'x-')) for l in lines)


def test_a_second_address_is_tried_where_the_first_is_dead(ca):
    with server(lambda c, r: c.sendall(head(PHOTO) + PHOTO), ca) as (port, _):
        assert get(ca, port, resolve=to(['127.0.0.3', '127.0.0.1']), allow=lambda a: a.startswith('127.')) == PHOTO


def chunked(body, size=1000): return b''.join(b'%x\r\n%s\r\n' % (len(body[i:i + size]), body[i:i + size]) for i in range(0, len(body), size)) + b'0\r\n\r\n'


@pytest.mark.parametrize('script', [
    lambda c, r: c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n' + chunked(PHOTO)),
    lambda c, r: c.sendall(b'HTTP/1.0 200 OK\r\n\r\n' + PHOTO),
    lambda c, r: c.sendall(b'HTTP/1.1 100 Continue\r\n\r\n' + head(PHOTO) + PHOTO),
    lambda c, r: [(c.sendall(bytes(part)), time.sleep(.002)) for part in (head(PHOTO), PHOTO[:5000], PHOTO[5000:])],
], ids=['chunked', 'until the end', 'continue first', 'in pieces'])
def test_every_honest_way_to_send_a_body(script, ca):
    with server(script, ca) as (port, _): assert get(ca, port) == PHOTO


def endless(c, r):
    c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
    while True: c.sendall(b'10000\r\n' + bytes(65536) + b'\r\n')


REFUSED = [
    ('redirect inside', lambda c, r: c.sendall(head(b'', '302 Found', 'Location: https://169.254.169.254/')), 'redirects elsewhere'),
    ('redirect to itself', lambda c, r: c.sendall(head(b'', '301 Moved', f'Location: https://{HOST}/')), 'redirects elsewhere'),
    ('redirect 307', lambda c, r: c.sendall(head(b'', '307 Temporary', 'Location: /x')), 'redirects elsewhere'),
    ('not modified', lambda c, r: c.sendall(head(b'', '304 Not Modified')), 'redirects elsewhere'),
    ('missing', lambda c, r: c.sendall(head(b'', '404 Not Found')), 'status 404'),
    ('a part', lambda c, r: c.sendall(head(PHOTO, '206 Partial') + PHOTO), 'status 206'),
    ('failing', lambda c, r: c.sendall(head(b'', '500 secret 10.1.2.3')), 'status 500: check'),
    ('declared too large', lambda c, r: c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n'), 'larger than 20,000 bytes'),
    ('endless in chunks', endless, 'larger than 20,000 bytes'),
    ('endless without length', lambda c, r: (c.sendall(b'HTTP/1.0 200 OK\r\n\r\n'), [c.sendall(bytes(65536)) for _ in range(10_000)]), 'larger than 20,000 bytes'),
    ('one huge chunk', lambda c, r: c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n' + bytes(30_000)), 'larger than 20,000 bytes'),
    ('gzip bomb', lambda c, r: c.sendall(head(b := gzip.compress(bytes(1_000_000)), '200 OK', 'Content-Encoding: gzip') + b), 'compressed body'),
    ('brotli', lambda c, r: c.sendall(head(b'x', '200 OK', 'content-encoding: BR') + b'x'), 'compressed body'),
    ('breaks off', lambda c, r: c.sendall(head(PHOTO) + PHOTO[:5000]), 'broke off'),
    ('breaks off in a chunk', lambda c, r: c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n' + bytes(100)), 'broke off'),
    ('says nothing', lambda c, r: None, 'broke off'),
    ('not HTTP', lambda c, r: c.sendall(b'SSH-2.0-OpenSSH_9\r\n'), 'not HTTP'),
    ('endless header line', lambda c, r: c.sendall(b'HTTP/1.1 200 OK\r\nX: ' + b'a'*200_000), 'not HTTP'),
    ('endless headers', lambda c, r: c.sendall(b'HTTP/1.1 200 OK\r\n' + b'X: 1\r\n'*5000), 'not HTTP'),
    ('bad length of a chunk', lambda c, r: c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nxx'), 'not HTTP|broke off'),
]


@pytest.mark.parametrize('script, why', [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_an_answer_that_is_no_plain_photo_is_refused(script, why, ca):
    with server(script, ca) as (port, seen):
        with pytest.raises(FetchError, match=why) as e: get(ca, port, max_bytes=20_000)
        assert len(seen) == 1 and '127.0.0.1' not in str(e.value) and '10.1.2.3' not in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('extra, comes', [(0, True), (1, False)])
@pytest.mark.parametrize('declared', [True, False])
def test_the_bound_is_exact(extra, comes, declared, ca):
    body = bytes(10_000 + extra)
    with server(lambda c, r: c.sendall((head(body) if declared else b'HTTP/1.1 200 OK\r\n\r\n') + body), ca) as (port, _):
        if comes: assert len(get(ca, port, max_bytes=10_000)) == 10_000
        else:
            with pytest.raises(FetchError, match='larger than 10,000'): get(ca, port, max_bytes=10_000)


def drip(before=b''):
    def script(c, r):
        c.sendall(before)
        for _ in range(200): c.sendall(b'X'), time.sleep(.05)
    return script


def hang(*args, **kw): time.sleep(1.5)


def flood_without_close(c, r): c.sendall(head(PHOTO) + PHOTO[:100]), time.sleep(3)


@pytest.mark.parametrize('script, tls, resolve', [
    (drip(), True, None), (drip(b'HTTP/1.1 200 OK\r\nX: '), True, None), (drip(head(bytes(10_000))), True, None), (lambda c, r: time.sleep(3), True, None),
    (flood_without_close, True, None), (lambda c, r: time.sleep(3), False, None), (lambda c, r: (c.sendall(b'\x16\x03\x03\x40\x00'), drip()(c, r)), False, None), (None, True, hang)],
    ids=['status line drips', 'headers drip', 'body drips', 'silence', 'half a body, then silence', 'no handshake', 'handshake drips', 'name server hangs'])
def test_one_deadline_holds_for_everything_together(script, tls, resolve, ca):
    with server(script or drip(), ca, tls=tls) as (port, _):
        start = time.monotonic()
        with pytest.raises(FetchError, match='too slow|does not answer|not found in time'): get(ca, port, seconds=.4, resolve=resolve)
        assert time.monotonic() - start < 2


@pytest.mark.parametrize('cert, trust, tls', [('other', True, True), ('expired', True, True), ('good', False, True), ('good', True, False)], ids=['of another host', 'expired', 'of an unknown CA', 'plain HTTP'])
def test_a_certificate_must_be_good_and_for_the_name(cert, trust, tls, ca):
    with server(lambda c, r: c.sendall(head(PHOTO) + PHOTO), ca, cert, tls) as (port, seen):
        with pytest.raises(FetchError, match='no valid certificate' if tls else 'does not answer'): get(ca, port, trust=trust)
        assert not seen


def test_a_connection_that_is_reset_or_refused(ca):
    def reset(c, r): c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)), c.close()
    with server(reset, ca, tls=False) as (port, _):
        with pytest.raises(FetchError, match='does not answer') as e: get(ca, port)
    with pytest.raises(FetchError, match='does not answer') as e2: get(ca, port)
    assert str(e.value) == str(e2.value) # open or closed looks the same from outside


def test_a_name_that_does_not_resolve(ca):
    def unknown(*a, **k): raise socket.gaierror(-2, 'Name or service not known')
    with pytest.raises(FetchError, match='photos.example.com was not found: check the name'): get(ca, 443, resolve=unknown)


def test_proxies_of_the_environment_are_not_asked(ca, monkeypatch):
    for name in ('https_proxy', 'HTTPS_PROXY', 'all_proxy'): monkeypatch.setenv(name, 'http://127.0.0.1:9')
    with server(lambda c, r: c.sendall(head(PHOTO) + PHOTO), ca) as (port, _): assert get(ca, port) == PHOTO


def test_the_public_function_reaches_no_server_on_loopback(ca, monkeypatch):
    "The same server that answers above, asked through the door that callers have"
    monkeypatch.setenv('SSL_CERT_FILE', str(ca/'ca.pem'))
    monkeypatch.setattr(fetch.socket, 'getaddrinfo', to(['127.0.0.1']))
    with server(lambda c, r: c.sendall(head(PHOTO) + PHOTO), ca) as (port, seen):
        with pytest.raises(FetchError, match='not a public host'): fetch_url(f'https://{HOST}:{port}/', [f'{HOST}:{port}'])
    assert not seen


@pytest.mark.parametrize('text', ['*', '*.com', '**.example.com', 'a.*.example.com', 'localhost', '127.0.0.1', '127.0.0.1:443', '[::1]', 'example.com:', 'example.com:0', 'example.com:99999', 'example.com:x', 'https://example.com', 'example.com/x', 'user@example.com', 'example.com.', 'exämple.com', 'a b.com'])
def test_a_list_with_a_hole_is_refused(text):
    with pytest.raises(ConfigError, match='names no host'): host_list(f'photos.example.com, {text}')
    with pytest.raises(ConfigError, match='names no host'): fetch_url('https://other.example.com/', [text])


def test_a_fetch_leaves_no_socket_open(ca):
    import gc, warnings
    with server(lambda c, r: c.sendall(head(PHOTO) + PHOTO), ca) as (port, _), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        get(ca, port)
        with pytest.raises(FetchError): get(ca, port, max_bytes=10)
        with pytest.raises(FetchError): get(ca, port, trust=False)
        gc.collect()
    assert not [w for w in caught if issubclass(w.category, ResourceWarning)]
