"The client against boto3's own errors: the container's words come through, what may heal is asked again, what cannot is not."
import io, json

import boto3, pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

from bin_counter.client import BinPredictor, EndpointError
from bin_counter.core import ConfigError, DataError

PHOTO = b'\xff\xd8\xff photo'
ANSWER = dict(count=3, probs={'3': 1.})


@pytest.fixture
def asked(monkeypatch):
    "A predictor whose boto3 client says what a test puts into the stubber, and no pauses"
    client = boto3.client('sagemaker-runtime', region_name='us-east-1', aws_access_key_id='x', aws_secret_access_key='x')
    class Session:
        def client(self, name): return client
    monkeypatch.setattr('time.sleep', lambda s: None)
    monkeypatch.setattr('bin_counter.client.patiently.__defaults__', (3, 0., lambda s: None))
    with Stubber(client) as stub: yield BinPredictor('bins', Session()), stub


def good(stub, **expected):
    body = json.dumps(ANSWER).encode()
    stub.add_response('invoke_endpoint', dict(Body=StreamingBody(io.BytesIO(body), len(body)), ContentType='application/json'),
                      dict(EndpointName='bins', Body=PHOTO, ContentType='image/jpeg', Accept='application/json', **expected))


def bad(stub, code, message='', http=400, **more): stub.add_client_error('invoke_endpoint', code, message, http, modeled_fields=more, response_meta={})


def test_a_photo_goes_as_it_is_and_the_record_beside_it(asked):
    predictor, stub = asked
    good(stub, CustomAttributes='recorded=4,explain=1')
    assert predictor.predict(PHOTO, recorded=4, explain=True) == ANSWER


@pytest.mark.parametrize('code, message, http, more, status, line', [
    ('ModelError', '', 424, dict(OriginalStatusCode=400, OriginalMessage='{"error": "photo: cut short: send it again", "request_id": "r"}'), 400, 'photo: cut short: send it again'),
    ('ModelError', '', 424, dict(OriginalStatusCode=500, OriginalMessage='Traceback'), 500, 'Traceback'),
    ('AccessDeniedException', 'no', 403, {}, 403, 'sagemaker:InvokeEndpoint'),
    ('ExpiredTokenException', 'old', 400, {}, 401, 'sign in again'),
    ('ValidationError', 'Endpoint bins of account 123456789012 not found.', 400, {}, 404, 'deploy it with bin_deploy')])
def test_what_cannot_heal_is_said_at_once(asked, code, message, http, more, status, line):
    predictor, stub = asked
    bad(stub, code, message, http, **more)
    with pytest.raises(EndpointError, match=line) as e: predictor.predict(PHOTO)
    assert e.value.status == status and '\n' not in str(e.value)
    stub.assert_no_pending_responses()


@pytest.mark.parametrize('code, http, more', [('ThrottlingException', 429, {}), ('ServiceUnavailable', 503, {}), ('ModelError', 424, dict(OriginalStatusCode=503, OriginalMessage='{"error": "the server is busy"}'))])
def test_busy_is_asked_again(asked, code, http, more):
    predictor, stub = asked
    for _ in range(2): bad(stub, code, 'busy', http, **more)
    good(stub)
    assert predictor.predict(PHOTO) == ANSWER


def test_busy_for_too_long_is_an_error(asked):
    predictor, stub = asked
    for _ in range(3): bad(stub, 'ServiceUnavailable', 'busy', 503)
    with pytest.raises(EndpointError) as e: predictor.predict(PHOTO)
    assert e.value.status == 503


def test_many_keep_their_order_and_their_records(asked):
    predictor, stub = asked
    with pytest.raises(ValueError): list(predictor.predict_many([PHOTO], [1, 2]))
    assert isinstance(next(iter(predictor.predict_many(['nowhere.jpg']))), DataError)


def test_no_region_is_one_line(monkeypatch):
    for name in ('AWS_REGION', 'AWS_DEFAULT_REGION'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('AWS_CONFIG_FILE', '/dev/null')
    with pytest.raises(ConfigError, match='set AWS_DEFAULT_REGION'): BinPredictor('bins', boto3.Session())
