"Every kind of event through the handlers, against moto, a misbehaving runtime on loopback, and for real under AWS's runtime interface emulator."
import base64, contextlib, hashlib, itertools, json, os, signal, socket, struct, subprocess, sys, threading, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from bin_counter import invoke
from bin_counter.core import make_answer
from bin_counter.inference import CountRequest, RequestError
from bin_counter.invoke import EventError, Settings, ask_endpoint, endpoint_handler, local_handler
from bin_counter.package import Package, count_photo, find_photos
from bin_counter.up import free_port

ROOT = Path(__file__).parents[1]
REGION, BUCKET = 'eu-west-1', 'my-bins'
SURE, TORN = [.01, .02, .94, .02, .01], [.05, .22, .35, .33, .05]


class Context:
    "Lambda's, with a clock"
    aws_request_id = 'r-lambda'
    def __init__(self, seconds=20): self.end = time.monotonic() + seconds
    def get_remaining_time_in_millis(self): return int(1000*(self.end - time.monotonic()))


@pytest.fixture(autouse=True)
def env(monkeypatch):
    "Credentials of nobody, no settings, no waiting between tries"
    for k in list(os.environ):
        if k.startswith(('BIN_COUNTER_', 'AWS_')) and k not in ('BIN_COUNTER_PROGRESS', 'BIN_COUNTER_ABID', 'BIN_COUNTER_RIE'): monkeypatch.delenv(k)
    for k, v in dict(AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_DEFAULT_REGION=REGION, AWS_EC2_METADATA_DISABLED='true').items(): monkeypatch.setenv(k, v)
    monkeypatch.setattr(invoke, '_pause', lambda tries: .01)
    return monkeypatch


@pytest.fixture
def counting(package, env):
    "The settings of a Lambda that counts"
    env.setenv('BIN_COUNTER_MODEL', str(package))
    return package


@pytest.fixture(scope='module')
def photo(bins): return find_photos([bins])[0].read_bytes()


def v2(path='/api/count', body=b'', query='', kind='image/jpeg', method='POST', encoded=True, **headers):
    "An HTTP API's event"
    out = dict(version='2.0', routeKey='$default', rawPath=path, rawQueryString=query, headers={'content-type': kind, **{k.replace('_', '-').lower(): v for k, v in headers.items()}}, isBase64Encoded=encoded,
               requestContext=dict(http=dict(method=method, path=path, sourceIp='192.0.2.1'), requestId='gw-id=', stage='$default'))
    return out | ({'body': base64.b64encode(body).decode() if encoded else body.decode()} if body else {})


def v1(path='/api/count', body=b'', query=(), kind='image/jpeg', method='POST', encoded=True, **headers):
    "A REST API's event"
    many = {}
    for k, v in query: many.setdefault(k, []).append(v)
    return dict(resource='/{proxy+}', httpMethod=method, path=path, headers={'Content-Type': kind, **{k.replace('_', '-'): v for k, v in headers.items()}}, multiValueHeaders={}, isBase64Encoded=encoded,
                queryStringParameters={k: v[-1] for k, v in many.items()} or None, multiValueQueryStringParameters=many or None,
                body=(base64.b64encode(body).decode() if encoded else body.decode()) if body else None, requestContext=dict(requestId='gw-id=', stage='prod', path=f'/prod{path}', httpMethod=method))


def said(reply): return reply['statusCode'], json.loads(reply['body'])


# ---------------------------------------------------------------- the door of API Gateway

@pytest.mark.parametrize('path', ['/api/count', '/prod/api/count', '/bins/v2/api/count', '/api/api/count'])
@pytest.mark.parametrize('event', [lambda p, b: v2(p, b, 'recorded=4&explain=1&id=00100', 'Image/JPEG; charset=x'), lambda p, b: v1(p, b, [('recorded', '4'), ('explain', 'true'), ('id', '00100')])], ids=['2.0', '1.0'])
def test_both_formats_behind_every_stage_give_the_count_of_the_package(event, path, counting, photo):
    status, answer = said(local_handler(event(path, photo), Context()))
    want = count_photo(Package.load(counting), photo, recorded=4)
    assert status == 200 and answer['count'] == want['count'] and answer['id'] == '00100' and len(answer['heat']['values']) == answer['heat']['rows']*answer['heat']['columns']
    assert answer['probs'] == pytest.approx(want['probs'], abs=1e-5) and answer['p_mismatch'] == pytest.approx(want['p_mismatch'], abs=1e-5)


def test_json_bodies_come_as_text_or_as_base64(counting, photo):
    body = json.dumps(dict(image=base64.b64encode(photo).decode(), recorded=4)).encode()
    answers = [said(local_handler(make(body=body, kind='application/json', encoded=encoded), Context())) for make in (v1, v2) for encoded in (True, False)]
    assert all(a == answers[0] for a in answers) and answers[0][0] == 200


B64 = base64.b64encode(b'\xff\xd8').decode()
REFUSED = [
    ('nothing there', v2('/', method='GET'), 404, 'nothing here'), ('the root of the API', v2('/api/', method='GET'), 404, 'nothing here'), ('longer', v2('/api/count/more'), 404, 'nothing here'), ('climbing', v2('/api/../api/counts'), 404, 'nothing here'),
    ('wrong method', v2(method='GET'), 405, 'asked by POST'), ('wrong method 1.0', v1('/api/uploads', method='DELETE'), 405, 'asked by POST'), ('preflight', v2(method='OPTIONS'), 405, 'asked by POST'), ('health by POST', v2('/api/health'), 405, 'asked by GET'),
    ('no body', v2(), 400, 'empty'), ('not a photo', v2(body=b'hello'), 400, 'not a JPEG or PNG'), ('text as a photo', v1(body=b'\xef\xbf\xbd', encoded=False), 400, 'binary media types'), ('not base64', v2() | {'body': '***'}, 400, 'not base64'),
    ('no type', v2(body=b'x', kind=''), 415, 'content type must be'), ('a form', v2(body=b'x', kind='multipart/form-data'), 415, 'content type must be'), ('a GIF', v2(body=b'x', kind='image/gif'), 415, 'content type must be'),
    ('wrong accept', v2(body=b'x', accept='text/html'), 406, 'can be answered as'), ('parameter twice', v2(body=b'x', query='recorded=4&recorded=5'), 400, 'given twice'), ('twice 1.0', v1(body=b'x', query=[('recorded', '4'), ('recorded', '5')]), 400, 'given twice'),
    ('a comma', v2(body=b'x', query='recorded=4%2Cexplain=1'), 400, 'holds a comma'), ('not a number', v2(body=b'x', query='recorded=four'), 400, 'cannot be read'), ('negative', v2(body=b'x', query='recorded=-1'), 400, 'cannot be read'), ('unknown', v2(body=b'x', query='colour=red'), 400, 'cannot be read'), ('empty value', v2(body=b'x', query='recorded='), 400, 'cannot be read'),
    ('bad JSON', v2(body=b'{', kind='application/json'), 400, 'not valid JSON'), ('a list', v2(body=b'[]', kind='application/json'), 400, 'must be an object'), ('unknown key', v2(body=b'{"image": "", "x": 1}', kind='application/json'), 400, 'unknown key'), ('true is not 1', v2(body=f'{{"image": "{B64}", "recorded": true}}'.encode(), kind='application/json'), 400, 'whole number'),
    ('url, switched off', v2(body=b'{"url": "https://169.254.169.254/"}', kind='application/json'), 400, 'switched off'), ('key, switched off', v2(body=b'{"key": "uploads/a.jpg"}', kind='application/json'), 400, 'switched off'), ('key and image', v2(body=b'{"key": "uploads/a.jpg", "image": ""}', kind='application/json'), 400, 'one of them'),
    ('uploads, switched off', v2('/api/uploads', b'{"content_type": "image/jpeg", "bytes": 1}', kind='application/json'), 404, 'switched off'), ('too large', v2(body=bytes(6_291_457)), 413, 'larger than'),
]


@pytest.mark.parametrize('event, status, why', [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_answered_gets_one_line(event, status, why, counting, capsys):
    reply = local_handler(event, Context())
    got, body = said(reply)
    assert got == status and why in body['error'] and '\n' not in body['error'] and body['request_id'] == reply['headers']['x-request-id'] == 'gw-id='
    assert reply['headers']['cache-control'] == 'no-store' and ('allow' in reply['headers']) == (status == 405)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line['status'] == status and line['request_id'] == 'gw-id=' and line['service'] == 'lambda'


def test_url_hosts_are_those_of_the_environment(counting, env):
    env.setenv('BIN_COUNTER_URL_HOSTS', 'photos.example.com')
    status, body = said(local_handler(v2(body=b'{"url": "https://evil.example/7.jpg"}', kind='application/json'), Context()))
    assert status == 400 and 'not among the hosts' in body['error']


def test_csv_health_and_the_id_of_the_caller(counting, photo, capsys):
    reply = local_handler(v2(body=photo, query='id=00100', accept='text/csv', X_Request_Id='mine-7'), Context())
    assert reply['headers'] | {'content-type': 'text/csv', 'x-request-id': 'mine-7'} == reply['headers'] and reply['body'].startswith('00100,')
    capsys.readouterr()
    for method in ('GET', 'HEAD'):
        reply = local_handler(v2('/prod/api/health', method=method), Context())
        assert reply['statusCode'] == 200 and bool(reply['body']) == (method == 'GET')
    assert not capsys.readouterr().out # polls would fill the log
    assert said(local_handler(v2('/x', X_Request_Id='<script>', method='GET'), Context()))[1]['request_id'] == 'gw-id=' # an id that is not harmless is not said back


KEY = 'open sesame'


@pytest.mark.parametrize('headers, status', [({}, 401), ({'X_Api_Key': ''}, 401), ({'X_Api_Key': 'open'}, 401), ({'X_Api_Key': KEY + ' '}, 401), ({'X_Api_Key': hashlib.sha256(KEY.encode()).hexdigest()}, 401), ({'X_Api_Key': 'ключ'}, 401), ({'Authorization': KEY}, 401), ({'X_Api_Key': KEY}, 200)])
@pytest.mark.parametrize('make', [v1, v2])
def test_the_key_guards_every_route_but_health(make, headers, status, counting, env, photo, capsys):
    env.setenv('BIN_COUNTER_KEY_SHA256', hashlib.sha256(KEY.encode()).hexdigest().upper())
    assert local_handler(make(body=photo, **headers), Context())['statusCode'] == status
    assert local_handler(make('/api/uploads', b'{}', **headers), Context())['statusCode'] == (401 if status == 401 else 404)
    assert local_handler(make('/api/health', method='GET', **headers), Context())['statusCode'] == 200
    assert KEY not in capsys.readouterr().out


@pytest.mark.parametrize('name, value', [('BIN_COUNTER_KEY_SHA256', 'open sesame'), ('BIN_COUNTER_URL_HOSTS', '*'), ('BIN_COUNTER_MODEL', '/nowhere')])
@pytest.mark.parametrize('handler', [local_handler, endpoint_handler])
def test_a_mistake_of_the_operator_is_logged_and_not_told(name, value, handler, env, photo, capsys):
    env.setenv(name, value)
    reply = handler(v2(body=photo), Context())
    assert said(reply)[0] == 503 and 'not set up' in said(reply)[1]['error'] and value not in reply['body'] and int(reply['headers']['retry-after']) > 0
    assert any(json.loads(l)['message'] == 'not set up' and json.loads(l)['level'] == 'error' for l in capsys.readouterr().out.splitlines())


def test_a_bug_is_an_error_500_that_tells_nothing(env, capsys):
    def broken(*a): raise ZeroDivisionError('secret of the house')
    env.setattr(invoke, 'count_here', broken)
    reply = local_handler(v2(body=b'\xff\xd8'), Context())
    assert said(reply)[0] == 500 and 'secret' not in reply['body'] and 'secret of the house' in capsys.readouterr().out


# ---------------------------------------------------------------- the door of a program

@pytest.mark.parametrize('event, status, why', [({}, 400, 'either as image'), ({'image': 7}, 400, 'must be a string'), ({'image': B64, 'x': 1}, 400, 'unknown key'), ([1], 400, 'must be an object'), ('hello', 400, 'must be an object'), (None, 400, 'must be an object'),
    ({'image': B64}, 400, 'damaged|not a JPEG|cut short'), ({'key': 'uploads/a.jpg'}, 400, 'switched off'), ({'requestContext': {}, 'image': B64}, 400, 'unknown key')])
def test_a_program_hears_why_not(event, status, why, counting):
    import re
    got = local_handler(event, Context())
    assert got['status'] == status and re.search(why, got['error']) and got['request_id'] == 'r-lambda'


def test_a_program_gets_the_answer_itself(counting, photo):
    answer = local_handler(dict(image=base64.b64encode(photo).decode(), recorded=3, id='7'), Context())
    assert answer['count'] == count_photo(Package.load(counting), photo)['count'] and answer['recorded'] == 3 and answer['id'] == '7'
    assert local_handler(dict(image=base64.b64encode(photo).decode()), None)['count'] == answer['count'] # without a context as well


# ---------------------------------------------------------------- uploads

@pytest.fixture(scope='module')
def memory():
    "AWS in memory, for all tests that need it, and clients of our own for it: making them takes longer than the tests"
    import boto3
    from moto import mock_aws
    with mock_aws(): yield {name: boto3.client(name, region_name=REGION) for name in ('s3', 'dynamodb', 'sns')}


@pytest.fixture
def aws(memory, env):
    "AWS in memory, empty but for a bucket, a table and a topic"
    from moto.moto_api._internal import moto_api_backend
    env.setenv('AWS_DEFAULT_REGION', REGION)
    moto_api_backend.reset()
    memory['s3'].create_bucket(Bucket=BUCKET, CreateBucketConfiguration=dict(LocationConstraint=REGION))
    memory['dynamodb'].create_table(TableName='answers', BillingMode='PAY_PER_REQUEST', AttributeDefinitions=[dict(AttributeName='id', AttributeType='S')], KeySchema=[dict(AttributeName='id', KeyType='HASH')])
    memory['s3'].topic = memory['sns'].create_topic(Name='look')['TopicArn']
    return memory['s3']


def sent(s3):
    "Messages of the topic: kind, subject, content"
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.sns.models import sns_backends
    return [(n[3]['kind']['Value'], n[2], json.loads(n[1])) for n in sns_backends[DEFAULT_ACCOUNT_ID][REGION].topics[s3.topic].sent_notifications]


def test_a_photo_by_way_of_the_bucket(aws, counting, env, photo):
    import requests
    env.setenv('BIN_COUNTER_BUCKET', BUCKET)
    status, form = said(local_handler(v2('/api/uploads', json.dumps(dict(content_type='image/jpeg', bytes=len(photo))).encode(), kind='application/json'), Context()))
    assert status == 200 and set(form) == {'url', 'fields', 'key', 'expires'} and form['url'] == f'https://{BUCKET}.s3.{REGION}.amazonaws.com/'
    assert requests.post(form['url'], data=form['fields'], files=dict(file=photo)).status_code == 204
    asked = json.dumps(dict(key=form['key'], recorded=4, explain=True)).encode()
    status, answer = said(local_handler(v2(body=asked, kind='application/json'), Context()))
    assert status == 200 and answer['count'] == count_photo(Package.load(counting), photo)['count'] and answer['recorded'] == 4 and 'heat' in answer
    assert local_handler(json.loads(asked), Context()) == answer # the same by a program


@pytest.mark.parametrize('asked, status, why', [
    (dict(content_type='image/gif', bytes=1), 415, 'content_type must be'), (dict(content_type=7, bytes=1), 400, 'content_type must be'), (dict(bytes=1), 400, 'content_type must be'), (dict(content_type='image/png'), 400, 'bytes must be'),
    (dict(content_type='image/png', bytes=0), 400, 'bytes must be'), (dict(content_type='image/png', bytes=True), 400, 'bytes must be'), (dict(content_type='image/png', bytes='9'), 400, 'bytes must be'), (dict(content_type='image/png', bytes=1e3), 400, 'bytes must be'),
    (dict(content_type='image/png', bytes=20_000_001), 413, 'larger than 20,000,000'), (dict(content_type='image/png', bytes=1, key='mine.jpg'), 400, 'unknown key'), ([], 400, 'must be an object')])
def test_a_form_for_anything_else_is_refused(asked, status, why, counting, env):
    env.setenv('BIN_COUNTER_BUCKET', BUCKET)
    got, body = said(local_handler(v2('/api/uploads', json.dumps(asked).encode(), kind='application/json'), Context()))
    assert got == status and why in body['error']


def test_the_form_of_the_endpoint_is_bounded_by_what_the_endpoint_takes(env):
    env.setenv('BIN_COUNTER_BUCKET', BUCKET)
    for size, status in ((6_291_456, 200), (6_291_457, 413)): assert said(endpoint_handler(v2('/api/uploads', json.dumps(dict(content_type='image/png', bytes=size)).encode(), kind='application/json'), Context()))[0] == status


@pytest.mark.parametrize('key, status, why', [('uploads/none.jpg', 400, 'no such upload'), ('answers/a.jpg.json', 400, 'must be one that'), ('uploads/../photos/a.jpg', 400, 'must be one that'), ('photos/a.jpg', 400, 'must be one that'), ('uploads/a.jpg\n', 400, 'must be one that'), (['uploads/a.jpg'], 400, 'must be one that'), ('uploads/big.jpg', 413, 'larger than')])
def test_a_key_reads_an_upload_and_nothing_else(key, status, why, aws, counting, env):
    env.setenv('BIN_COUNTER_BUCKET', BUCKET)
    env.setattr(invoke, 'UPLOAD_LIMIT', 100)
    for name in ('photos/a.jpg', 'answers/a.jpg.json', 'uploads/big.jpg'): aws.put_object(Bucket=BUCKET, Key=name, Body=bytes(101))
    got, body = said(local_handler(v2(body=json.dumps(dict(key=key)).encode(), kind='application/json'), Context()))
    assert got == status and why in body['error']


def test_a_bucket_that_fails_is_no_bad_request(aws, counting, env, capsys):
    env.setenv('BIN_COUNTER_BUCKET', 'not-there')
    reply = local_handler(v2(body=b'{"key": "uploads/a.jpg"}', kind='application/json'), Context())
    assert said(reply)[0] == 503 and 'not-there' not in reply['body'] and reply['headers']['retry-after'] == '5' and 'NoSuchBucket' in capsys.readouterr().out
    assert local_handler(dict(key='uploads/a.jpg'), Context())['status'] == 503


# ---------------------------------------------------------------- the door of a bucket

def s3_event(*keys, name='ObjectCreated:Put', bucket=BUCKET):
    return dict(Records=[dict(eventVersion='2.1', eventSource='aws:s3', eventName=name, s3=dict(bucket=dict(name=bucket), object=dict(key=quote_plus(k), eTag='x', sequencer='0'))) for k in keys])


class Counter:
    "Counts as told, and notes what it was asked"
    def __init__(self, probs=SURE): self.probs, self.asked, self.before = probs, [], lambda question: None
    def __call__(self, question, settings, rid, end):
        self.asked.append(question)
        self.before(question)
        return make_answer(self.probs, recorded=question.recorded)


def stored(s3, key, table):
    "The answer to a photo, from the table or from the bucket"
    import boto3
    if not table: return json.loads(s3.get_object(Bucket=BUCKET, Key=f'answers/{key}.json')['Body'].read())
    return boto3.resource('dynamodb', region_name=REGION).Table(table).get_item(Key=dict(id=f'{BUCKET}/{key}'))['Item']


@pytest.fixture(params=['answers', ''], ids=['table', 'bucket'])
def store(request, aws, env):
    "Where answers go: the table, or the bucket itself"
    env.setenv('BIN_COUNTER_TABLE', request.param)
    env.setenv('BIN_COUNTER_TOPIC', aws.topic)
    return request.param


def deliver(count, *keys, seconds=20): return invoke._answer_event(s3_event(*keys), Context(seconds), count, 20_000_000)


@pytest.mark.parametrize('key', ['photos/00100.jpg', 'photos/Regal 7/a b.JPG', 'photos/ä+b.png', 'photos/100%.jpeg', 'photos/a=b&c/ü ü.jpg', '東京.jpg', 'a.jpg'])
def test_every_name_of_a_photo(key, aws, store):
    aws.put_object(Bucket=BUCKET, Key=key, Body=b'photo', Metadata=dict(recorded='3'))
    count = Counter()
    assert deliver(count, key) == dict(answered=1)
    got = stored(aws, key, store)
    assert (got['count'], got['key'], got['recorded'], bool(got['alarm']), float(got['trust'])) == (3, key, 3, False, .94) and count.asked == [CountRequest(b'photo', 3)]
    assert not sent(aws)


def test_an_event_that_comes_twice_is_answered_once(aws, store):
    aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=b'one', Metadata=dict(recorded='1'))
    count = Counter()
    assert [deliver(count, 'a.jpg', 'a.jpg'), deliver(count, 'a.jpg')] == [dict(answered=1), dict(known=1)] and len(count.asked) == len(sent(aws)) == 1
    aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=b'two', Metadata=dict(recorded='3'))
    assert deliver(count, 'a.jpg') == dict(answered=1) and stored(aws, 'a.jpg', store)['recorded'] == 3 # new content under the old name is a new question


@pytest.mark.parametrize('keys, name', [(['answers/a.jpg'], 'ObjectCreated:Put'), (['answers/photos/a.jpg.json'], 'ObjectCreated:Put'), (['uploads/a.jpg'], 'ObjectCreated:Post'), (['notes.txt', 'photos/', 'jpg'], 'ObjectCreated:Put'), (['a.jpg'], 'ObjectRemoved:Delete'), (['a.jpg'], 'ObjectRestore:Completed')])
def test_what_is_no_new_photo_is_left_alone(keys, name, aws, store):
    for k in keys: aws.put_object(Bucket=BUCKET, Key=k, Body=b'x')
    count = Counter()
    assert invoke._answer_event(s3_event(*keys, name=name), Context(), count, 99) == {} and not count.asked


def test_its_own_answers_start_nothing(aws, env, counting, photo):
    "Every object that answering leaves in the bucket is delivered as news, until there is no news"
    aws.put_object(Bucket=BUCKET, Key='photos/a.jpg', Body=photo)
    seen, news = set(), ['photos/a.jpg']
    for rounds in itertools.count():
        if not news: break
        seen |= set(news)
        local_handler(s3_event(*news), Context())
        news = [o['Key'] for o in aws.list_objects_v2(Bucket=BUCKET)['Contents'] if o['Key'] not in seen]
    assert rounds == 2 and seen == {'photos/a.jpg', 'answers/photos/a.jpg.json'}
    assert stored(aws, 'photos/a.jpg', '')['count'] == count_photo(Package.load(counting), photo)['count']


def test_one_failure_does_not_stop_the_others_and_is_delivered_again(aws, store, capsys):
    for k in 'abc': aws.put_object(Bucket=BUCKET, Key=f'{k}.jpg', Body=k.encode())
    count = Counter()
    def fail(question):
        if question.photo == b'b': raise RequestError('the counter is busy', 503)
    count.before = fail
    with pytest.raises(EventError, match='1 of 3 photos could not be answered, first my-bins/b.jpg') as e: deliver(count, 'a.jpg', 'b.jpg', 'c.jpg')
    assert '\n' not in str(e.value) and any(json.loads(l).get('failed') == 1 and json.loads(l).get('_aws') for l in capsys.readouterr().out.splitlines())
    count.before = lambda question: None
    assert deliver(count, 'a.jpg', 'b.jpg', 'c.jpg') == dict(known=2, answered=1) and [q.photo for q in count.asked] == [b'a', b'b', b'c', b'b']


@pytest.mark.parametrize('body, recorded, why', [(b'not a photo', None, 'not a JPEG or PNG'), (b'', None, 'empty'), (b'\xff\xd8\xff', None, 'damaged|cut short'), ('photo', 'four', 'metadata `recorded`'), ('photo', '-1', 'metadata `recorded`'), (bytes(20_000_001), None, 'larger than')])
def test_a_photo_that_cannot_be_counted_is_told_and_not_tried_for_ever(body, recorded, why, aws, store, counting, photo):
    import re
    aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=photo if body == 'photo' else body, Metadata=dict(recorded=recorded) if recorded else {})
    assert [local_handler(s3_event('a.jpg'), Context()) for _ in range(2)] == [dict(refused=1), dict(known=1)]
    got = stored(aws, 'a.jpg', store)
    assert re.search(why, got['error']) and got['review'] is True and 'count' not in got
    assert [(k, s) for k, s, _ in sent(aws)] == [('refused', 'bin_counter: a photo could not be counted')]


@pytest.mark.parametrize('probs, recorded, kind', [(SURE, None, None), (SURE, 3, None), (SURE, 1, 'mismatch'), (TORN, None, 'review'), (TORN, 3, 'review'), (TORN, 1, 'mismatch'), (SURE, 9, 'review')])
def test_who_should_look_is_told(probs, recorded, kind, aws, store):
    aws.put_object(Bucket=BUCKET, Key='ä.jpg', Body=b'x', Metadata={} if recorded is None else dict(recorded=str(recorded)))
    deliver(Counter(probs), 'ä.jpg')
    got = sent(aws)
    assert [k for k, _, _ in got] == ([kind] if kind else [])
    for _, subject, record in got: assert subject.isascii() and len(subject) < 100 and record['key'] == 'ä.jpg' and record['bucket'] == BUCKET and record['count'] == 3


def test_a_photo_that_is_gone(aws, store):
    assert deliver(Counter(), 'gone.jpg') == dict(gone=1)


def test_of_two_at_a_time_one_wins_and_the_other_is_delivered_again(aws, store):
    "While the old content is being counted, new content arrives and is counted by another invocation"
    aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=b'old')
    slow, quick = Counter(TORN), Counter()
    def meanwhile(question):
        aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=b'new')
        assert deliver(quick, 'a.jpg') == dict(answered=1)
    slow.before = meanwhile
    with pytest.raises(EventError, match='must be delivered again'): deliver(slow, 'a.jpg')
    assert float(stored(aws, 'a.jpg', store)['trust']) == .94 # the answer to the new content has not been overwritten
    assert deliver(slow, 'a.jpg') == dict(known=1)


def test_a_message_is_sent_before_the_answer_is_stored(aws, store, env):
    "A store that fails leads to a second message, never to none"
    aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=b'x', Metadata=dict(recorded='1'))
    kind = invoke.TableStore if store else invoke.BucketStore
    write = kind.write
    env.setattr(kind, 'write', lambda *a: 1/0)
    with pytest.raises(EventError): deliver(Counter(), 'a.jpg')
    env.setattr(kind, 'write', write)
    assert deliver(Counter(), 'a.jpg') == dict(answered=1) and len(sent(aws)) == 2


def test_the_table_holds_decimals_and_no_floats(aws, env):
    from decimal import Decimal
    env.setenv('BIN_COUNTER_TABLE', 'answers')
    aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=b'x', Metadata=dict(recorded='1'))
    deliver(Counter(TORN), 'a.jpg')
    got = stored(aws, 'a.jpg', 'answers')
    assert got['id'] == f'{BUCKET}/a.jpg' and got['probs']['3'] == Decimal('.35') and got['interval'] == [2, 4] and got['p_mismatch'] == Decimal('.95') and got['answered'].endswith('Z')


def test_what_there_is_no_time_for_is_delivered_again(aws, store):
    for k in 'ab': aws.put_object(Bucket=BUCKET, Key=f'{k}.jpg', Body=b'x')
    count = Counter()
    count.before = lambda question: time.sleep(1)
    with pytest.raises(EventError, match='1 of 2 .* first my-bins/b.jpg'): deliver(count, 'a.jpg', 'b.jpg', seconds=2.5)
    assert len(count.asked) == 1


def test_a_damaged_answer_in_the_bucket_is_written_anew(aws):
    aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=b'x')
    aws.put_object(Bucket=BUCKET, Key='answers/a.jpg.json', Body=b'{half')
    assert deliver(Counter(), 'a.jpg') == dict(answered=1) and stored(aws, 'a.jpg', '')['count'] == 3


def test_news_of_others_and_s3_trying_out_the_connection():
    assert local_handler(dict(Service='Amazon S3', Event='s3:TestEvent', Bucket=BUCKET), Context()) == {}
    with pytest.raises(EventError, match='events of aws:sqs are not answered'): local_handler(dict(Records=[dict(eventSource='aws:sqs', body='{}')]), Context())
    with pytest.raises(EventError, match='events of aws:sns are not answered'): local_handler(dict(Records=[dict(EventSource='aws:sns', Sns={})]), Context())


# ---------------------------------------------------------------- the endpoint, misbehaving

class Runtime:
    "SageMaker's runtime on loopback: does what `script` says, one entry a request, then answers well"
    def __init__(self):
        outer = self
        self.script, self.seen = [], []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            def log_message(self, *a): pass
            def send(self, status, body, code='', length=None):
                self.send_response(status)
                if code: self.send_header('x-amzn-errortype', code)
                self.send_header('content-type', 'application/json')
                self.send_header('content-length', str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)
            def do_POST(self):
                body = self.rfile.read(int(self.headers['content-length']))
                outer.seen.append((self.path, dict(self.headers), body))
                step = outer.script.pop(0) if outer.script else ok
                step(self)
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_port}'


def ok(h): h.send(200, json.dumps(make_answer(SURE)).encode())
def error(status, code, **more): return lambda h: h.send(status, json.dumps(dict(Message='no', **more)).encode(), code)
def model(status, text): return error(424, 'ModelError', OriginalStatusCode=status, OriginalMessage=text, LogStreamArn='arn')
def reset(h): h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)), h.connection.close(), setattr(h, 'close_connection', True)
def close(h): h.connection.shutdown(socket.SHUT_RDWR), setattr(h, 'close_connection', True)
def half(h): h.send(200, b'{"count": 3', length=500), close(h)
def html(h): h.send(502, b'<html>Bad gateway</html>')
def garbage(h): h.send(200, b'pong')
def hang(h): time.sleep(3), setattr(h, 'close_connection', True)


@pytest.fixture
def runtime(env):
    r = Runtime()
    invoke._client.cache_clear() # clients know their address
    env.setenv('AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME', r.url)
    env.setenv('BIN_COUNTER_ENDPOINT', 'bins')
    yield r
    r.server.shutdown(), r.server.server_close()


AGAIN = dict(throttled=error(400, 'ThrottlingException'), too_many=error(429, 'TooManyRequestsException'), not_ready=error(429, 'ModelNotReadyException'), unavailable=error(503, 'ServiceUnavailable'), internal=error(500, 'InternalFailure'),
             dependency=error(530, 'InternalDependencyException'), busy=model(503, '{"error": "busy"}'), gateway=model(504, ''), reset=reset, closed=close, half=half, html=html, garbage=garbage)


@pytest.mark.parametrize('name', AGAIN)
def test_what_may_pass_is_tried_again(name, runtime):
    runtime.script = [AGAIN[name]]*2
    status, answer = said(endpoint_handler(v2(body=b'\xff\xd8photo', query='recorded=4&id=7'), Context()))
    assert (status, answer['count']) == (200, 3) and len(runtime.seen) == 3
    path, headers, body = runtime.seen[-1]
    assert path == '/endpoints/bins/invocations' and body == b'\xff\xd8photo' and headers['Content-Type'] == 'image/jpeg' and headers['X-Amzn-SageMaker-Custom-Attributes'] == 'recorded=4,id=7' and headers['X-Amzn-SageMaker-Inference-Id'] == 'gw-id='


@pytest.mark.parametrize('step, status, why', [
    (model(400, '{"error": "photo: the file is cut short: fetch it again", "request_id": "x"}'), 400, 'photo: the file is cut short: fetch it again'), (model(413, '{"error": "too large"}'), 413, 'too large'), (model(415, '{"error": "content type"}'), 415, 'content type'),
    (model(400, 'plain text'), 400, 'refused this photo'), (model(418, '[]'), 418, 'refused this photo'), (model(500, '{"error": "report it"}'), 500, 'report it'), (model(500, 'Traceback: /secret'), 500, 'failed on this photo'),
    (error(400, 'ValidationError'), 503, 'not set up'), (error(403, 'AccessDeniedException'), 503, 'not set up'), (error(403, 'ExpiredTokenException'), 503, 'not set up'), (error(404, 'ResourceNotFound'), 503, 'not set up')])
def test_what_will_not_pass_is_told_at_once(step, status, why, runtime):
    runtime.script = [step]*9
    reply = endpoint_handler(v2(body=b'x'), Context())
    got, body = said(reply)
    assert (got, len(runtime.seen)) == (status, 1) and why in body['error'] and 'secret' not in body['error'] and ('retry-after' in reply['headers']) == (status == 503)


@pytest.mark.parametrize('steps, seconds', [([error(503, 'ServiceUnavailable')]*999, 3), ([hang]*9, 4), ([close]*999, 3)], ids=['busy', 'hanging', 'closing'])
def test_it_gives_up_in_time_and_says_when_to_come_back(steps, seconds, runtime):
    runtime.script = list(steps)
    start = time.monotonic()
    reply = endpoint_handler(v2(body=b'x'), Context(seconds))
    assert said(reply)[0] == 503 and 'try again in a few seconds' in said(reply)[1]['error'] and reply['headers']['retry-after'] == '5'
    assert time.monotonic() - start < seconds and len(runtime.seen) >= 2


def test_a_try_that_hangs_leaves_time_for_another(runtime):
    runtime.script = [hang]
    assert said(endpoint_handler(v2(body=b'x'), Context(5)))[0] == 200 and len(runtime.seen) == 2


def test_nobody_listens_then_somebody_does(env):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{s.getsockname()[1]}'
    invoke._client.cache_clear()
    env.setenv('AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME', url)
    env.setenv('BIN_COUNTER_ENDPOINT', 'bins')
    assert said(endpoint_handler(v2(body=b'x'), Context(2.5)))[0] == 503


@pytest.mark.parametrize('request_, kind', [(CountRequest(b'\x89PNGx', 4), 'image/png'), (CountRequest(b'\xff\xd8', id='Regal 7, ä'), 'application/json'), (CountRequest(b'\xff\xd8', 4, True, b'\xff\xd8\x01', 3, 'a'), 'application/json')])
def test_every_question_arrives_as_it_was_asked(request_, kind, runtime):
    "What is sent reads back as the same question, by the very function that the container uses"
    from bin_counter.inference import input_fn
    ask_endpoint(request_, Settings(endpoint='bins'), 'r', time.monotonic() + 9)
    _, headers, body = runtime.seen[-1]
    assert headers['Content-Type'] == kind and input_fn(body, kind, headers.get('X-Amzn-SageMaker-Custom-Attributes', '')) == request_


def test_a_photo_that_no_endpoint_takes_is_not_sent(runtime):
    with pytest.raises(RequestError, match='larger than') as e: ask_endpoint(CountRequest(bytes(6_291_457)), Settings(endpoint='bins'), 'r', time.monotonic() + 9)
    assert e.value.status == 413 and not runtime.seen


def test_a_busy_endpoint_sends_the_event_back(aws, env):
    "Nothing is stored and the function fails, so that Lambda delivers again"
    def busy(*a): raise RequestError('the counter is busy or starting', 503)
    aws.put_object(Bucket=BUCKET, Key='a.jpg', Body=b'x')
    with pytest.raises(EventError): deliver(busy, 'a.jpg')
    assert 'Contents' not in aws.list_objects_v2(Bucket=BUCKET, Prefix='answers/')


# ---------------------------------------------------------------- light, and warm where it should be

def run(code, **env): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd='/', env={**os.environ, 'PYTHONPATH': str(ROOT), **env}).stdout


def test_importing_it_needs_the_standard_library_and_little_time():
    "Processor time, so that a busy machine does not matter; about 50 ms"
    out = json.loads(run('import sys, time, json; before = set(sys.modules); import bin_counter.invoke; print(json.dumps([time.process_time(), sorted({m.split(".")[0] for m in set(sys.modules) - before})]))'))
    assert set(out[1]) - set(sys.stdlib_module_names) == {'bin_counter'} and out[0] < .5


def test_inside_of_a_lambda_the_model_is_open_before_the_first_event(package):
    code = 'import json, sys; import bin_counter.invoke as i; print(json.dumps([i._package.cache_info().currsize, i._client.cache_info().currsize, "numpy" in sys.modules, "boto3" in sys.modules]))'
    assert json.loads(run(code, _HANDLER='bin_counter.invoke.local_handler', BIN_COUNTER_MODEL=str(package))) == [1, 0, True, False]
    assert json.loads(run(code, _HANDLER='bin_counter.invoke.endpoint_handler')) == [0, 1, False, True]
    assert json.loads(run(code, _HANDLER='other.handler', BIN_COUNTER_MODEL=str(package))) == [0, 0, False, False]


# ---------------------------------------------------------------- for real, under the emulator

def emulator():
    "AWS's runtime interface emulator, or a skip that says how to get it"
    from bin_counter.up import find_emulator
    return find_emulator() or pytest.skip("AWS's runtime interface emulator or awslambdaric is not here: make test installs both, or set BIN_COUNTER_RIE")


def wait_for(port, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError): return socket.create_connection(('127.0.0.1', port), .5).close()
        time.sleep(.02)
    raise TimeoutError(f'nobody listens on port {port}')


@contextlib.contextmanager
def rie(handler, seconds, **env):
    "A Lambda under the emulator; yields a function that invokes it"
    binary, port, api = emulator(), free_port(), free_port()
    full = dict(PATH=f'{Path(sys.executable).parent}:/usr/bin:/bin', HOME='/tmp', PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', AWS_REGION=REGION, AWS_DEFAULT_REGION=REGION, AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_LAMBDA_FUNCTION_NAME='bins',
                AWS_LAMBDA_FUNCTION_TIMEOUT=str(seconds), AWS_LAMBDA_FUNCTION_MEMORY_SIZE='1769', AWS_EC2_METADATA_DISABLED='true', **env)
    command = [binary, '--runtime-interface-emulator-address', f'127.0.0.1:{port}', '--runtime-api-address', f'127.0.0.1:{api}', sys.executable, '-m', 'awslambdaric', f'bin_counter.invoke.{handler}']
    process = subprocess.Popen(command, env=full, cwd='/tmp', stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    def ask(event):
        request = urllib.request.Request(f'http://127.0.0.1:{port}/2015-03-31/functions/function/invocations', json.dumps(event).encode())
        return json.loads(urllib.request.urlopen(request, timeout=60).read())
    try:
        wait_for(port)
        yield ask
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


SERVER = '''
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from bin_counter.inference import respond
from bin_counter.package import Package
package = Package.load(sys.argv[1])
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_POST(self):
        reply = respond(package, self.rfile.read(int(self.headers['content-length'])), dict(self.headers), log=lambda *a, **k: {})
        body = reply.body if reply.status == 200 else json.dumps(dict(Message='m', OriginalStatusCode=reply.status, OriginalMessage=reply.body.decode())).encode()
        self.send_response(200 if reply.status == 200 else 424)
        if reply.status != 200: self.send_header('x-amzn-errortype', 'ModelError')
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
ThreadingHTTPServer(('127.0.0.1', int(sys.argv[2])), Handler).serve_forever()
'''


@pytest.fixture
def endpoint(package):
    "A runtime with a container behind it, as one process that can be killed and started again on its port"
    port, alive = free_port(), []
    def start(): alive.append(subprocess.Popen([sys.executable, '-c', SERVER, str(package), str(port)], env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd='/tmp', start_new_session=True))
    def kill():
        if alive:
            alive[-1].kill()
            alive.pop().wait(10)
    yield port, start, kill
    kill()


def test_the_lambda_that_counts_under_the_emulator(package, photo, aws):
    with rie('local_handler', 20, BIN_COUNTER_MODEL=str(package)) as ask:
        want = count_photo(Package.load(package), photo, recorded=4)
        status, answer = said(ask(v2(body=photo, query='recorded=4')))
        assert (status, answer['count'], answer['alarm']) == (200, want['count'], want['alarm']) and answer['probs'] == pytest.approx(want['probs'], abs=1e-5)
        assert said(ask(v1(body=photo, query=[('recorded', '4')])))[1]['count'] == want['count']
        assert said(ask(v2(body=b'not a photo')))[0] == 400
        assert ask(dict(image=base64.b64encode(photo).decode()))['count'] == want['count']
        failed = ask(dict(Records=[dict(eventSource='aws:sqs')]))
        assert failed['errorType'] == 'EventError' and 'not answered' in failed['errorMessage'] # Lambda sees a failure, and would deliver again


def test_the_lambda_that_asks_outlives_its_endpoint_under_the_emulator(package, photo, endpoint):
    port, start, kill = endpoint
    start(), wait_for(port)
    with rie('endpoint_handler', 15, BIN_COUNTER_ENDPOINT='bins', AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=f'http://127.0.0.1:{port}') as ask:
        want = count_photo(Package.load(package), photo)['count']
        assert said(ask(v2(body=photo)))[1]['count'] == want
        assert said(ask(v2(body=b'not a photo')))[0] == 400
        kill()
        threading.Timer(1.5, start).start()
        began = time.monotonic()
        status, answer = said(ask(v2(body=photo)))
        assert (status, answer['count']) == (200, want) and 1 < time.monotonic() - began < 15


def test_the_lambda_says_so_before_it_is_killed_for_being_late(endpoint):
    with rie('endpoint_handler', 4, BIN_COUNTER_ENDPOINT='bins', AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=f'http://127.0.0.1:{endpoint[0]}') as ask:
        ask(v2('/api/health', method='GET')) # starts it
        began = time.monotonic()
        reply = ask(v2(body=b'x'))
        assert said(reply)[0] == 503 and reply['headers']['retry-after'] == '5' and time.monotonic() - began < 4
