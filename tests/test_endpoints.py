"Endpoints against the emulated AWS: deployed, asked, updated under guard, taken back, scaled; and what happens when AWS refuses or the power goes."
import io, json, os, subprocess, sys, tarfile, threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")

from bin_counter.client import BinPredictor, EndpointError
from bin_counter.cloud import CloudError, check_requests, unknown
from bin_counter.core import ConfigError, bytes_hash
from bin_counter.emulator import Emulator
from bin_counter.endpoints import (VARIANT, Hosting, RolledBack, ask_later, autoscale, current_hosting, deploy, endpoint_plan, find_endpoint, late_answer, our_configs, rollback,
                                   stop_autoscaling, update, update_plan, wait_for_endpoint)
from emulated import ACCOUNT, CLIENTS, ROLE, at, quiet, wait_for

ROOT = Path(__file__).parents[1]
SETTINGS = dict(grace=1.5, pace=.002, sync=.2, capture=.1, start=20, invoke=3)
PHOTO = b'\xff\xd8photo'

SERVER = '''
import json, os, pathlib, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
model = pathlib.Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'))/'model'
word = (model/'word').read_text()
if word == 'dead': sys.exit('card.json is missing: build the package again')
if word == 'slow': time.sleep(2)
class Fake(BaseHTTPRequestHandler):
    def say(self, status, body):
        self.send_response(status)
        self.send_header('content-length', str(len(body)))
        self.send_header('content-type', 'application/json')
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self): self.say(200, b'')
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length'] or 0))
        if body == b'bad': return self.say(415, b'{"error": "no photo"}')
        self.say(200, json.dumps(dict(word=word, bytes=len(body))).encode())
    def log_message(self, *args): pass
ThreadingHTTPServer(('127.0.0.1', int(os.environ['SAGEMAKER_BIND_TO_PORT'])), Fake).serve_forever()
'''


@pytest.fixture(scope='module')
def aws(tmp_path_factory):
    "One emulator for all tests; each test has a project of its own"
    out = tmp_path_factory.mktemp('aws')
    (out/'server.py').write_text(SERVER)
    with Emulator(out/'work', settings=SETTINGS, images={'*bin-counter*': dict(serve=['python', str(out/'server.py')])}) as aws, aws.active():
        CLIENTS.clear()
        yield aws


@pytest.fixture
def faults(aws):
    yield aws.faults
    aws.faults(**dict.fromkeys(('throttle', 'expire', 'deny', 'quota')))


@pytest.fixture
def packages(tmp_path):
    "Archives that the fake server opens, by the word in them"
    def one(word):
        path = tmp_path/f'{word}.tar.gz'
        if path.exists(): return path # another archive would have another hash
        with tarfile.open(path, 'w:gz') as t:
            info = tarfile.TarInfo('word')
            info.size = len(word)
            t.addfile(info, io.BytesIO(word.encode()))
        return path
    return one


def word(project, session=None): return BinPredictor(project.endpoint, tries=1).predict(PHOTO)['word']


def of(aws, project):
    "What there is of a project: kinds and names, without the bucket and the log"
    return {(r['kind'], r['name']) for r in aws.inventory()['resources'] if project.name in r['name'] and r['kind'] not in ('Buckets', 'logGroups')}


def remove(aws, project):
    "Only the endpoint: the next chapter's tests remove the rest"
    sm = aws.client('sagemaker')
    for e in sm.list_endpoints(NameContains=project.name)['Endpoints']: sm.delete_endpoint(EndpointName=e['EndpointName'])


# ---------------------------------------------------------------- plans

REGISTERED = 'arn:aws:sagemaker:eu-west-1:123456789012:model-package/bins-counters/3'

@pytest.mark.parametrize('model', ['s3://b-u-c/k/model.tar.gz', REGISTERED])
@pytest.mark.parametrize('hosting', [dict(), dict(capture=100, count=3, instance='ml.g5.xlarge'), dict(kind='serverless', memory=6144, concurrency=200), dict(kind='async', ok_topic='arn:aws:sns:eu-west-1:123456789012:ok'), dict(hosts=('photos.example.com',))],
                         ids=lambda h: '-'.join(map(str, h.values())) or 'usual')
def test_every_request_is_one_that_aws_describes(hosting, model):
    plans = [plan for region in ('eu-west-1', 'cn-north-1') for plan in (endpoint_plan(at('bins', region=region), model, **hosting), update_plan(at('bins', region=region), model, errors=1, **hosting))]
    steps = tuple(s for p in plans for s in p.steps)
    assert check_requests(replace(plans[0], steps=steps)) == len(steps) and unknown([s.request for s in steps]) == []
    assert {s.operation for s in steps if 'Tags' in s.request or 'tags' in s.request} == {s.operation for s in steps if s.operation.startswith(('Create', 'PutMetricAlarm'))}


@pytest.mark.parametrize('hosting, said', [
    (dict(kind='batch'), 'choose realtime, serverless, async'), (dict(instance='c5.large'), 'write it as ml.c5.large'), (dict(count=0), 'one machine or more'), (dict(capture=101), '0 to 100'), (dict(kind='serverless', concurrency=201), 'at most 200'),
    (dict(kind='serverless', memory=3000), '1024, 2048'), (dict(kind='serverless', count=2), 'no machines')])
def test_settings_that_make_no_sense(hosting, said):
    with pytest.raises(ConfigError, match=said): endpoint_plan(at('bins'), 's3://b-u-c/model.tar.gz', **hosting)


def test_names_tell_contents_apart():
    def names(*args, **more): return {s.request[k] for s in endpoint_plan(*args, **more).steps for k in ('ModelName', 'EndpointConfigName') if s.operation == f'Create{k[:-4]}'}
    a = names(at('bins'), 's3://b-u-c/1/model.tar.gz')
    assert a == names(at('bins'), 's3://b-u-c/1/model.tar.gz') and all(n.startswith('bins-') for n in a)
    for other in (names(at('bins'), 's3://b-u-c/2/model.tar.gz'), names(at('bins', image=f'{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/bin-counter:2'), 's3://b-u-c/1/model.tar.gz')): assert not a & other
    assert len(a & names(at('bins'), 's3://b-u-c/1/model.tar.gz', capture=5)) == 1


def test_a_canary_is_at_most_half_of_the_fleet():
    def route(**h): return next(s.request.get('DeploymentConfig') for s in update_plan(at('bins'), 's3://b-u-c/model.tar.gz', **h).steps if s.operation == 'UpdateEndpoint')
    for n in (2, 3, 8): assert route(count=n)['BlueGreenUpdatePolicy']['TrafficRoutingConfiguration']['CanarySize'] == dict(Type='INSTANCE_COUNT', Value=1)
    one = route(count=1)
    assert one['BlueGreenUpdatePolicy']['TrafficRoutingConfiguration']['Type'] == 'ALL_AT_ONCE' and len(one['AutoRollbackConfiguration']['Alarms']) == 3
    assert route(kind='serverless') is None


def test_plans_need_no_account_no_network_and_no_boto3(tmp_path):
    code = ("import sys\nfrom bin_counter.endpoints import autoscaling_plan, endpoint_plan, update_plan\nfrom bin_counter.plans import Project\nfor p in (endpoint_plan, update_plan): print(p(Project('bins'), 's3://b-u-c/model.tar.gz', kind='async'))\n"
            "print(autoscaling_plan(Project('bins')))\nprint([m for m in ('boto3', 'botocore', 'numpy', 'matplotlib') if m in sys.modules])")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=dict(PATH=os.environ['PATH'], HOME=str(tmp_path), HTTPS_PROXY='http://127.0.0.1:9', PYTHONPATH=str(ROOT)), cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == '[]' and 'whether anybody asks or not' in out.stdout


# ---------------------------------------------------------------- deploy, update, back

def test_from_a_file_to_an_answer_and_to_the_next_model(aws, packages):
    "Deploy, ask, capture; again changes nothing; a canary; settings alone; the way back"
    project, s3, sm = at('steady'), aws.client('s3'), aws.client('sagemaker')
    said = []
    done = deploy(project, packages('first'), quiet(project, said), capture=100, count=2)
    assert word(project) == 'first' and 'costs $0.2040 an hour' in str(done)
    key = f'packages/{bytes_hash(packages("first").read_bytes())[:16]}/model.tar.gz'
    assert s3.head_object(Bucket=project.bucket, Key=key) and s3.get_public_access_block(Bucket=project.bucket)['PublicAccessBlockConfiguration']['BlockPublicAcls']
    wait_for(lambda: s3.list_objects_v2(Bucket=project.bucket, Prefix=f'captured/{project.endpoint}/{VARIANT}/').get('Contents'), why='a captured request')
    assert sm.list_tags(ResourceArn=find_endpoint(quiet(project), project.endpoint)['EndpointArn'])['Tags'] == project.tags
    before, told = of(aws, project), []
    assert deploy(project, packages('first'), quiet(project, told), capture=100, count=2) == done and of(aws, project) == before and 'in service with it already' in told[-1]
    with pytest.raises(CloudError, match='update it instead'): deploy(project, packages('second'), quiet(project))

    moved = update(project, packages('second'), quiet(project), bake=60)
    assert word(project) == 'second' and moved.before == done.config and 'kept as the way back' in str(moved)
    _, h = current_hosting(quiet(project), moved.config)
    assert (h.capture, h.count) == (100, 2)
    assert update(project, packages('second'), quiet(project)).before == ''
    third = update(project, aws=quiet(project), capture=5, bake=60)
    assert word(project) == 'second' and current_hosting(quiet(project), third.config)[1].capture == 5
    assert {c['EndpointConfigName'] for c in our_configs(quiet(project), project)} == {moved.config, third.config}
    assert len([1 for kind, _ in of(aws, project) if kind == 'Model']) == 1, 'the model that nothing uses is gone'

    fourth = update(project, packages('first'), quiet(project), bake=60)
    assert rollback(project, quiet(project)).config == third.config and word(project) == 'second'
    assert rollback(project, quiet(project)).config == fourth.config and word(project) == 'first', 'and forward again'
    with pytest.raises(CloudError, match='cannot become serverless'): update(project, aws=quiet(project), kind='serverless')
    remove(aws, project)
    with pytest.raises(CloudError, match='deploy it first'): rollback(project, quiet(project))


def test_an_alarm_takes_an_update_back(aws, packages):
    "During the canary; with one clear line, and nothing of the new model left"
    project, alarms = at('guarded'), aws.client('cloudwatch')
    first = deploy(project, packages('first'), quiet(project), count=2)
    before = of(aws, project)
    def ring():
        wait_for(lambda: any(word(project) == 'second' for _ in range(4)), why='the canary')
        alarms.set_alarm_state(AlarmName=f'{project.endpoint}-5xx', StateValue='ALARM', StateReason='a test')
    ringing = threading.Thread(target=ring)
    ringing.start()
    with pytest.raises(RolledBack) as e: update(project, packages('second'), quiet(project), bake=3600)
    ringing.join()
    assert f'went back to {first.config}' in str(e.value) and f'{project.endpoint}-5xx' in str(e.value) and '\n' not in str(e.value)
    assert word(project) == 'first' and {x for x in of(aws, project) if x[0] != 'MetricAlarms'} == before
    with pytest.raises(CloudError, match='rings already'): update(project, packages('second'), quiet(project))
    alarms.set_alarm_state(AlarmName=f'{project.endpoint}-5xx', StateValue='OK', StateReason='a test')
    update(project, packages('second'), quiet(project), bake=60)
    assert word(project) == 'second'
    remove(aws, project)


@pytest.mark.parametrize('how', ['deploy', 'update'])
def test_a_server_that_dies_is_told_with_its_last_words(aws, packages, how):
    project = at(f'dying-{how}')
    if how == 'update': deploy(project, packages('first'), quiet(project))
    before = of(aws, project)
    with pytest.raises(CloudError) as e: globals()[how](project, packages('dead'), quiet(project))
    assert 'ping health check' in str(e.value) and 'card.json is missing' in str(e.value) and '\n' not in str(e.value)
    assert {x for x in of(aws, project) if x[0] != 'MetricAlarms'} == before
    if how == 'update': assert word(project) == 'first'
    remove(aws, project)


def test_serverless_takes_less(aws, packages):
    project = at('seldom')
    done = deploy(project, packages('first'), quiet(project), kind='serverless', memory=1024, concurrency=2)
    assert word(project) == 'first' and 'costs nothing while nobody asks' in str(done)
    with pytest.raises(EndpointError, match='4194304'): BinPredictor(project.endpoint, tries=1).predict(b'\xff\xd8' + bytes(5_000_000))
    moved = update(project, packages('second'), quiet(project))
    assert word(project) == 'second' and current_hosting(quiet(project), moved.config)[1] == Hosting('serverless', memory=1024, concurrency=2)
    assert not [1 for kind, _ in of(aws, project) if kind == 'MetricAlarms']
    with pytest.raises(ConfigError, match='scales by itself'): autoscale(project, quiet(project))
    remove(aws, project)


def test_asynchronous_answers_come_to_the_bucket(aws, packages):
    project = at('later')
    deploy(project, packages('first'), quiet(project), kind='async', concurrency=2)
    assert late_answer(project, ask_later(project, bytes(6_000_000), quiet(project)), quiet(project), 20) == dict(word='first', bytes=6_000_000)
    with pytest.raises(ConfigError, match='at most 6 MB'): ask_later(project, bytes(7_000_000), quiet(project))
    with pytest.raises(CloudError, match='not counted.*no photo'): late_answer(project, ask_later(project, b'bad', quiet(project)), quiet(project), 20)
    plan = autoscale(project, quiet(project), per_machine=5)
    assert len(plan.steps) == 4
    alarm = aws.client('cloudwatch').describe_alarms(AlarmNames=[f'{project.endpoint}-waiting'])['MetricAlarms'][0]
    assert alarm['AlarmActions'][0].endswith(f'policyName/{project.endpoint}-wake')
    assert set(stop_autoscaling(project, quiet(project))) == {f'{project.endpoint}-follow', f'{project.endpoint}-wake'}
    assert not [x for x in of(aws, project) if x[0] in ('ScalableTargets', 'MetricAlarms')]
    remove(aws, project)


def test_autoscaling_comes_survives_an_update_and_goes(aws, packages):
    project, scaling = at('busy'), aws.client('application-autoscaling')
    with pytest.raises(CloudError, match='deploy it first'): autoscale(project, quiet(project))
    deploy(project, packages('first'), quiet(project))
    for high in (3, 5): autoscale(project, quiet(project), high=high, per_machine=300)
    target = scaling.describe_scalable_targets(ServiceNamespace='sagemaker', ResourceIds=[f'endpoint/{project.endpoint}/variant/{VARIANT}'])['ScalableTargets'][0]
    assert (target['MinCapacity'], target['MaxCapacity']) == (1, 5)
    policy = scaling.describe_scaling_policies(ServiceNamespace='sagemaker', ResourceId=target['ResourceId'])['ScalingPolicies']
    assert [p['TargetTrackingScalingPolicyConfiguration']['TargetValue'] for p in policy] == [300]
    aws.client('sagemaker').update_endpoint_weights_and_capacities(EndpointName=project.endpoint, DesiredWeightsAndCapacities=[dict(VariantName=VARIANT, DesiredInstanceCount=4)])
    assert deploy(project, packages('first'), quiet(project)).usd_hour == pytest.approx(4*.102), 'as many as there are now'
    said = []
    update(project, packages('second'), quiet(project, said), bake=60)
    assert word(project) == 'second'
    stop_autoscaling(project, quiet(project))
    assert stop_autoscaling(project, quiet(project)) == [] and not [x for x in of(aws, project) if x[0] == 'ScalableTargets']
    remove(aws, project)


# ---------------------------------------------------------------- what goes wrong

KILLED = '''
import os, sys
from bin_counter.cloud import Asker
from bin_counter.endpoints import deploy
from bin_counter.plans import Project
def say(line):
    if sys.argv[3] in line: os.kill(os.getpid(), 9)
deploy(Project(sys.argv[1], account='123456789012', role=sys.argv[4]), sys.argv[2], Asker('us-east-1', None, say, .05))
'''

@pytest.mark.parametrize('line, running', [('the configuration', 0), ('wait until', 1), ('creating', 1)], ids=['before', 'begun', 'waiting'])
def test_a_deployment_that_was_killed_goes_on(aws, packages, line, running):
    project = at(f'killed-{["the", "wai", "cre"].index(line[:3])}')
    out = subprocess.run([sys.executable, '-c', KILLED, project.name, str(packages('slow')), line, ROLE], env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert out.returncode == -9, out.stderr
    assert sum(k == 'Endpoint' for k, _ in of(aws, project)) == running
    before = of(aws, project)
    deploy(project, packages('slow'), quiet(project))
    assert word(project) == 'slow' and before < of(aws, project) or before == of(aws, project)
    assert sorted(k for k, _ in of(aws, project)) == ['Endpoint', 'EndpointConfig', 'Model']
    remove(aws, project)


@pytest.mark.parametrize('fault, said', [
    (dict(deny=['sagemaker:CreateEndpoint']), 'you need sagemaker:CreateEndpoint, ask whoever administers the account'), (dict(deny=['s3:PutObject']), 'you need s3:PutObject'), (dict(deny=['logs:CreateLogGroup']), 'you need logs:CreateLogGroup'),
    (dict(quota={'ml.c5.large': 0}), "'ml.c5.large for endpoint usage' is 0 Instances"), (dict(throttle=dict(actions=['sagemaker:CreateEndpointConfig'])), 'Rate exceeded')], ids=['endpoint', 'bucket', 'log', 'quota', 'throttle'])
def test_a_refusal_is_one_line_and_leaves_nothing(aws, packages, faults, monkeypatch, fault, said, request):
    monkeypatch.setattr('botocore.endpoint.time', SimpleNamespace(sleep=lambda seconds: None)) # boto3 is patient with a throttled request
    project = at(f'refused-{request.node.callspec.id[:8]}')
    faults(**fault)
    with pytest.raises(CloudError) as e: deploy(project, packages('first'), quiet(project))
    assert said in str(e.value) and '\n' not in str(e.value)
    assert of(aws, project) == set()


def test_a_busy_moment_is_waited_out(aws, packages, faults):
    project = at('patient')
    faults(throttle=dict(actions=['sagemaker:*'], times=2))
    deploy(project, packages('first'), quiet(project))
    assert word(project) == 'first'
    remove(aws, project)


def test_credentials_that_run_out_while_waiting(aws, packages, faults):
    "Nothing can be removed then; the line says what costs, and the same command goes on"
    project, said = at('expired'), []
    def say(line):
        said.append(line)
        if 'creating' in line: faults(expire=dict(after=0))
    with pytest.raises(CloudError) as e: deploy(project, packages('slow'), quiet(project, say=say))
    assert 'sign in first' in str(e.value) and f'{project.endpoint} costs by the hour' in str(e.value) and '\n' not in str(e.value)
    faults(expire=None)
    deploy(project, packages('slow'), quiet(project))
    assert word(project) == 'slow' and sorted(k for k, _ in of(aws, project)) == ['Endpoint', 'EndpointConfig', 'Model']
    remove(aws, project)


def test_credentials_that_run_out_while_the_traffic_moves(aws, packages, faults):
    "The update goes on by itself; the same command then finds that it is done"
    project = at('tired')
    deploy(project, packages('first'), quiet(project))
    def say(line):
        if line.endswith('updating'): faults(expire=dict(after=0))
    with pytest.raises(CloudError) as e: update(project, packages('second'), quiet(project, say=say), bake=60)
    assert 'sign in first' in str(e.value) and 'goes on by itself' in str(e.value) and '\n' not in str(e.value)
    faults(expire=None)
    update(project, packages('second'), quiet(project))
    assert word(project) == 'second'
    remove(aws, project)


def test_ctrl_c_leaves_the_endpoint_and_says_so(aws, packages):
    project, said = at('hasty'), []
    def say(line):
        said.append(line)
        if line.endswith('creating'): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): deploy(project, packages('slow'), quiet(project, say=say))
    assert 'goes on by itself' in said[-1]
    assert wait_for_endpoint(quiet(project), project.endpoint)['EndpointStatus'] == 'InService'
    remove(aws, project)


def test_what_is_not_ours_is_left_alone(aws, packages):
    project, sm, s3 = at('theirs'), aws.client('sagemaker'), aws.client('s3')
    s3.create_bucket(Bucket='somebodys')
    s3.upload_file(str(packages('first')), 'somebodys', 'model.tar.gz')
    sm.create_model(ModelName='somebodys', PrimaryContainer=dict(Image='bin-counter:1', ModelDataUrl='s3://somebodys/model.tar.gz'), ExecutionRoleArn=ROLE)
    sm.create_endpoint_config(EndpointConfigName='somebodys', ProductionVariants=[dict(VariantName='v', ModelName='somebodys', InstanceType='ml.c5.large', InitialInstanceCount=1)])
    sm.create_endpoint(EndpointName=project.endpoint, EndpointConfigName='somebodys')
    wait_for_endpoint(quiet(project), project.endpoint)
    for change in (deploy, update):
        with pytest.raises(CloudError, match='not ours to change'): change(project, packages('first'), quiet(project))
    assert find_endpoint(quiet(project), project.endpoint)['EndpointConfigName'] == 'somebodys'
    remove(aws, project)
    mine = at('mine', bucket='somebodys')
    deploy(mine, packages('first'), quiet(mine))
    with pytest.raises(s3.exceptions.ClientError, match='NoSuchTagSet'): s3.get_bucket_tagging(Bucket='somebodys')
    remove(aws, mine)


def test_a_package_that_is_missing_or_strange(aws, tmp_path):
    project = at('nothing')
    with pytest.raises(CloudError, match='make it with bin_package'): deploy(project, tmp_path/'model.tar.gz', quiet(project))
    with pytest.raises(ConfigError, match='give s3://bucket'): deploy(project, 's3://bins-models', quiet(project))
    with pytest.raises(CloudError, match='nothing was made|is removed') as e: deploy(project, 's3://bins-none/model.tar.gz', quiet(project))
    assert 'Could not find model data' in str(e.value) and of(aws, project) == set()
    with pytest.raises(CloudError, match='deploy it first'): update(project, aws=quiet(project))


# ---------------------------------------------------------------- our own container

def test_our_own_server_answers_a_photo(tmp_path, bins, package):
    for part in ('fastapi', 'onnxruntime', 'cv2'): pytest.importorskip(part)
    project = at('real')
    with Emulator(tmp_path/'aws', settings=SETTINGS) as own, own.active():
        CLIENTS.clear()
        deploy(project, package, quiet(project), capture=100)
        photo = next(bins.rglob('*.jp*g'))
        answer = BinPredictor(project.endpoint).predict(photo, recorded=3, explain=True)
        assert answer['recorded'] == 3 and 1 <= answer['count'] <= 5 and answer['heat']['rows']
        with pytest.raises(EndpointError, match='photo'): BinPredictor(project.endpoint, tries=1).predict(b'no photo')
        lines = wait_for(lambda: [json.loads(l) for o in own.client('s3').list_objects_v2(Bucket=project.bucket, Prefix='captured/').get('Contents', []) for l in own.client('s3').get_object(Bucket=project.bucket, Key=o['Key'])['Body'].read().splitlines()])
        assert lines[0]['captureData']['endpointOutput']['encoding'] == 'JSON' and json.loads(lines[0]['captureData']['endpointOutput']['data'])['count'] == answer['count']
        own.client('sagemaker').delete_endpoint(EndpointName=project.endpoint)
