"Plans of jobs: who and where, requests that AWS's description allows and that run on the emulated AWS, and what they cost before and after."
import io, json, tarfile, time
from dataclasses import replace
from datetime import datetime

import pytest

pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")

from bin_counter.cloud import CloudError, check_requests, fill, unknown
from bin_counter.core import BinCounterError, ConfigError, write_json
from bin_counter.emulator import Emulator, emulator_env
from bin_counter.plans import *
from bin_counter.plans import DISTRIBUTED, REGISTRIES, SPOT_SAVES, TORCH
from bin_counter.prices import PRICES, Price, total

ACCOUNT, ROLE = '123456789012', 'arn:aws:iam::123456789012:role/service-role/jobs'
FAKE = Project('bins', account=ACCOUNT, role=ROLE, training_image='fake:1', image='fake:1')
REAL = replace(FAKE, training_image='', image='')
HASH = '0123456789abcdef'

TRAIN = '''
import json, os, pathlib, sys, time
ml = pathlib.Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'))
hps = json.loads((ml/'input/config/hyperparameters.json').read_text())
print('sees', json.dumps(dict(quiet=os.environ['BIN_COUNTER_PROGRESS'], more=os.environ.get('MORE'), hps=hps, files=sorted(str(p.relative_to(ml/'input/data')) for p in (ml/'input/data').rglob('*') if p.is_file()))), flush=True)
time.sleep(.5)
loss = abs(float(hps.get('lr', 0)) - .001)
print(f'epoch 1/1  train_loss 2.0  valid_loss {loss:.6f}  valid_accuracy 0.5  valid_mae 0.7  1.0 s', flush=True)
(ml/'model/model.pth').write_text('w')
'''
WORK = '''
import os, pathlib, sys
ml = pathlib.Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'))/'processing'
for p in (ml/'input/photos').rglob('*.jpg'): (ml/'output/seen'/p.name).write_text(' '.join(sys.argv[1:]))
'''
SERVE = '''
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Fake(BaseHTTPRequestHandler):
    def say(self, body):
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self): self.say(b'')
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length'] or 0))
        self.say(f"{len(body)},{self.headers['content-type']},{self.headers['accept']}".encode())
    def log_message(self, *args): pass
ThreadingHTTPServer(('127.0.0.1', int(os.environ['SAGEMAKER_BIND_TO_PORT'])), Fake).serve_forever()
'''


@pytest.fixture(scope='module')
def aws(tmp_path_factory):
    "One emulated AWS with a dataset in it; images named fake are scripts that need nothing but Python"
    scripts = tmp_path_factory.mktemp('scripts')
    for name, text in dict(train=TRAIN, work=WORK, serve=SERVE).items(): (scripts/f'{name}.py').write_text(text)
    images = {'fake*': {k: ['python', str(scripts/f'{n}.py')] for k, n in dict(train='train', serve='serve', process='work').items()}}
    with Emulator(tmp_path_factory.mktemp('aws'), settings=dict(pace=.02, grace=1, sync=.2, start=30), images=images) as aws:
        s3 = aws.client('s3')
        s3.create_bucket(Bucket=FAKE.bucket)
        for key in ('splits/splits.csv', *(f'data/bin-images/{i}.jpg' for i in range(4)), 'data/LICENCE.txt'): s3.put_object(Bucket=FAKE.bucket, Key=f'data/{HASH}/{key}', Body=b'x'*7)
        s3.put_object(Bucket=FAKE.bucket, Key=f'data/{HASH}0/data/bin-images/9.jpg', Body=b'of another dataset')
        aws.work_py = str(scripts/'work.py')
        yield aws


def archive(**files):
    "A model.tar.gz or sourcedir.tar.gz"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as t:
        for name, text in files.items():
            info = tarfile.TarInfo(name.replace('_', '.'))
            info.size = len(text)
            t.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def carry_out(aws, plan, **known):
    "Send a plan's one request"
    check_requests(plan)
    step = plan.steps[0]
    request = fill(step.request, dict(now=f'{time.time_ns()}', **known))
    assert not unknown(request)
    from botocore import xform_name
    getattr(aws.client('sagemaker'), xform_name(step.operation))(**request)
    return request


def ended(ask, key, **name):
    "A job's description, once it has ended"
    end = time.monotonic() + 240 # jobs of several hosts queue for one port of this machine
    while (d := ask(**name))[key] in ('InProgress', 'Stopping'):
        assert time.monotonic() < end, 'waited 240 s'
        time.sleep(.1)
    return d


def printed(aws, job):
    logs = aws.client('logs')
    streams = logs.describe_log_streams(logGroupName='/aws/sagemaker/TrainingJobs', logStreamNamePrefix=f'{job}/')['logStreams']
    return [e['message'] for s in streams for e in logs.get_log_events(logGroupName='/aws/sagemaker/TrainingJobs', logStreamName=s['logStreamName'], startFromHead=True)['events']]


# ---- who and where

@pytest.mark.parametrize('given, said', [
    (dict(name='bi'), 'use 3 to 20'), (dict(name='Bins'), 'use 3 to 20'), (dict(name='b'*21), 'use 3 to 20'), (dict(name='1bins'), 'use 3 to 20'), (dict(name='bins-'), 'use 3 to 20'), (dict(name='my_bins'), 'use 3 to 20'),
    (dict(region='Ireland'), 'write it as us-east-1'), (dict(account='1234'), 'write twelve digits'), (dict(role='jobs'), 'give its ARN'), (dict(role='arn:aws:iam::123456789012:user/me'), 'give its ARN'),
    (dict(account='1'*12, role=ROLE), 'of another account than 111111111111'), (dict(bucket='s3://bins'), 'without s3://'), (dict(bucket='Bins'), 'use 3 to 63'), (dict(bucket='a..b'), 'use 3 to 63')])
def test_a_project_that_cannot_be_is_refused(given, said):
    with pytest.raises(ConfigError, match=said): Project(**{'name': 'bins', **given})


@pytest.mark.parametrize('role', [ROLE, 'arn:aws:iam::123456789012:role/plain', 'arn:aws:iam::123456789012:role/a/b/c@d', '${role}', 'arn:aws-cn:iam::123456789012:role/x', 'arn:aws-us-gov:iam::123456789012:role/x'])
def test_roles_of_every_path_are_taken(role): assert Project(account=ACCOUNT, role=role).role == role


def test_names_and_addresses():
    p = Project('bins', 'cn-north-1', ACCOUNT)
    assert (p.endpoint, p.package_group, p.pipeline, p.schedule, p.promoter) == ('bins-counter', 'bins-counters', 'bins-retrain', 'bins-monitor', 'bins-promote')
    assert p.arn('pipeline', 'x') == f'arn:aws-cn:sagemaker:cn-north-1:{ACCOUNT}:pipeline/x' and p.arn('bucket', p.bucket) == 'arn:aws-cn:s3:::bins-123456789012-cn-north-1'
    assert p.arn('function', p.promoter) == f'arn:aws-cn:lambda:cn-north-1:{ACCOUNT}:function:bins-promote'
    assert p.image.startswith(f'{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn/bin-counter:')
    assert p.tags == [dict(Key='bin_counter', Value='bins')] and p.uri('a', 'b') == 's3://bins-123456789012-cn-north-1/a/b'
    assert unknown([Project().bucket, Project().role, Project().image, Project().arn('endpoint', 'e')]) == ['account', 'role']
    assert fill(Project().bucket, dict(account=ACCOUNT)) == Project(account=ACCOUNT).bucket


@pytest.mark.parametrize('kind, most', [('tune', 32), ('train', 63), ('transform', 63), ('evaluate', 63)])
def test_names_of_jobs_are_short_enough(kind, most):
    for name in ('bins', 'a-name-of-20-letters', 'ten-chars-x'):
        made = job_name(Project(name), kind, datetime(2026, 11, 21, 1, 2, 3))
        assert len(made) <= most and made.endswith(f'-{kind}-20261121-010203') and '--' not in made


@pytest.fixture
def signed_in(aws, monkeypatch):
    "boto3 talks to the emulated AWS, as whoever `who` says"
    import boto3
    with emulator_env(aws):
        iam = boto3.client('iam')
        for name, service in (('jobs', 'sagemaker'), ('people', 'ec2')):
            policy = dict(Version='2012-10-17', Statement=[dict(Effect='Allow', Principal=dict(Service=f'{service}.amazonaws.com'), Action='sts:AssumeRole')])
            try: iam.create_role(RoleName=name, Path='/service-role/', AssumeRolePolicyDocument=json.dumps(policy))
            except iam.exceptions.EntityAlreadyExistsException: pass
        def who(role=''):
            if not role: return boto3.Session(region_name='us-east-1')
            c = boto3.client('sts').assume_role(RoleArn=f'arn:aws:iam::{ACCOUNT}:role/service-role/{role}', RoleSessionName='me')['Credentials']
            return boto3.Session(c['AccessKeyId'], c['SecretAccessKey'], c['SessionToken'], region_name='us-east-1')
        yield who


def test_a_user_must_name_a_role_and_is_believed(signed_in, tmp_path):
    with pytest.raises(CloudError, match='which is no role: give the role that jobs shall run under with --role arn:aws:iam::ACCOUNT:role/NAME'): find_project('bins', session=signed_in(), metadata=tmp_path/'none')
    p = find_project('bins', 'arn:aws:iam::123456789012:role/service-role/nobody-can-look-it-up', session=signed_in(), metadata=tmp_path/'none')
    assert (p.account, p.region, p.bucket, p.role) == (ACCOUNT, 'us-east-1', f'bins-{ACCOUNT}-us-east-1', 'arn:aws:iam::123456789012:role/service-role/nobody-can-look-it-up')
    with pytest.raises(ConfigError, match='of another account'): find_project('bins', ROLE.replace(ACCOUNT, '1'*12), session=signed_in())
    with pytest.raises(ConfigError, match='use 3 to 20'): find_project('Bins', session='never asked')


def test_an_assumed_role_is_found_with_its_path(signed_in, tmp_path):
    assert find_project('bins', bucket='my-bucket', region='eu-west-1', session=signed_in('jobs'), metadata=tmp_path/'none') == Project('bins', 'eu-west-1', ACCOUNT, ROLE, 'my-bucket')
    with pytest.raises(CloudError, match='SageMaker may not assume the role of these credentials, arn:aws:iam::123456789012:role/service-role/people: give the role'): find_project('bins', session=signed_in('people'), metadata=tmp_path/'none')


class Answers:
    "Answers of AWS by operation; an exception is raised"
    def __init__(self, **answers): self.answers, self.asked = answers, []
    def ask(self, service, operation, **request):
        self.asked.append((operation, request))
        answer = self.answers[operation]
        if isinstance(answer, Exception): raise answer
        return answer


DENIED = CloudError('access denied: you need sagemaker:DescribeDomain')

@pytest.mark.parametrize('file, answers, found', [
    (dict(ExecutionRoleArn=ROLE, DomainId='d'), {}, ROLE),
    (dict(DomainId='d', UserProfileName='me'), dict(DescribeUserProfile=dict(UserSettings=dict(ExecutionRole=ROLE))), ROLE),
    (dict(DomainId='d', UserProfileName='me'), dict(DescribeUserProfile={}, DescribeDomain=dict(DefaultUserSettings=dict(ExecutionRole=ROLE))), ROLE),
    (dict(DomainId='d', SpaceName='s'), dict(DescribeDomain=dict(DefaultSpaceSettings=dict(ExecutionRole=ROLE), DefaultUserSettings=dict(ExecutionRole='other'))), ROLE),
    (dict(ResourceName='notebook'), dict(DescribeNotebookInstance=dict(RoleArn=ROLE)), ROLE),
    (dict(ResourceName='notebook'), dict(DescribeNotebookInstance=DENIED), 'the role of this notebook cannot be looked up .access denied: you need sagemaker:DescribeDomain.: give the role'),
    (None, dict(GetCallerIdentity=dict(Arn='arn:aws:sts::1:assumed-role/x/y')), 'which is no role'),
    (None, dict(GetCallerIdentity=dict(Arn=f'arn:aws:sts::{ACCOUNT}:assumed-role/x/y'), GetRole=DENIED), 'the role x, whose path is not known .* give the role'),
    (None, dict(GetCallerIdentity=dict(Arn=f'arn:aws:iam::{ACCOUNT}:root')), 'which is no role: give the role'),
    (None, dict(GetCallerIdentity=dict(Arn=f'arn:aws:sts::{ACCOUNT}:federated-user/me')), 'which is no role: give the role')])
def test_a_role_is_found_or_asked_for_in_one_line(tmp_path, file, answers, found):
    path = tmp_path/'resource-metadata.json'
    if file is not None: write_json(path, file)
    if found == ROLE: assert find_role(Answers(**answers), metadata=path) == ROLE
    else:
        with pytest.raises(CloudError, match=found) as e: find_role(Answers(**answers), metadata=path)
        assert '\n' not in str(e.value)
    quiet = Answers()
    assert find_role(quiet, ROLE, path) == ROLE and not quiet.asked


def test_a_damaged_file_of_the_notebook_is_said(tmp_path):
    (tmp_path/'m.json').write_text('{')
    with pytest.raises(BinCounterError, match='m.json is not valid JSON'): find_role(Answers(), metadata=tmp_path/'m.json')


# ---- images

def test_images_are_those_of_the_sdk():
    image_uris = pytest.importorskip('sagemaker.core.image_uris', reason="the SDK is not installed: pip install 'bin_counter[aws]'")
    try: image_uris.retrieve('pytorch-amzn2023', 'us-east-1', version=TORCH, instance_type='ml.m5.xlarge', image_scope='training')
    except (OSError, ValueError) as e: pytest.skip(f'this SDK is older than the image, and has no entry for it: {e}')
    for instance in ('ml.m5.xlarge', 'ml.c5.2xlarge', 'ml.t3.medium', 'ml.g4dn.xlarge', 'ml.g5.12xlarge', 'ml.g6e.xlarge', 'ml.gr6.4xlarge', 'ml.p4d.24xlarge', 'ml.p5.48xlarge'):
        for region in REGISTRIES if instance in ('ml.m5.xlarge', 'ml.g5.12xlarge') else ['us-east-1']:
            assert training_image(Project(region=region), instance) == image_uris.retrieve('pytorch-amzn2023', region, version=TORCH, instance_type=instance, image_scope='training')
    for instance in ('ml.c7g.xlarge', 'ml.c6gn.xlarge', 'ml.trn1.2xlarge', 'ml.inf1.xlarge'):
        with pytest.raises(ValueError): image_uris.retrieve('pytorch-amzn2023', 'us-east-1', version=TORCH, instance_type=instance, image_scope='training')
        with pytest.raises(ConfigError, match='does not run on its processors'): training_image(Project(), instance)


def test_an_own_image_goes_first():
    assert training_image(Project(training_image='mine:1', region='xx-nowhere-1'), 'ml.c7g.xlarge') == 'mine:1'
    with pytest.raises(ConfigError, match='not known for xx-nowhere-1: name one with --training-image'): training_image(Project(region='xx-nowhere-1'))


# ---- requests

MACHINES = [Machines(), Machines('ml.g4dn.xlarge', 4, spot=True), Machines('ml.g5.12xlarge', volume_gb=200, max_hours=8.5), Machines('ml.m5.xlarge', 2, spot=True, wait_hours=4)]

@pytest.mark.parametrize('m', MACHINES, ids=str)
@pytest.mark.parametrize('project', [Project(), REAL], ids=['open', 'known'])
def test_requests_are_what_aws_describes(project, m):
    plans = [training_plan(project, 's3://b/data/1', dict(epochs=2, views=('plain',)), m, sharded=True, mode='FastFile', env=dict(A='1')),
             tuning_plan(project, 's3://b/data/1', dict(epochs=2), dict(lr='1e-4..1e-2', batch_size='16..64', arch='resnet18|resnet34'), machines=m)]
    calm = replace(m, spot=False, wait_hours=0.)
    plans += [processing_plan(project, 'shards', ['python', '-m', 'x'], calm, [Input('a', 's3://b/a', True), Input('b', 's3://b/b.json')], [Output('o', 's3://b/o', True)], ['--side', '224']),
              transform_plan(project, 'model', 's3://b/in', 's3://b/out', calm)]
    for plan in plans:
        assert check_requests(plan) == 1 and plan.per == 'run' and 'a month' not in str(plan) and ('what it costs a run:' in str(plan)) == (f'sagemaker.{m.instance}' in PRICES)
        request = plan.steps[0].request
        assert request['Tags'] == project.tags and set(unknown(request)) <= {'account', 'role', 'now', 'code'}
        parts = request.get('TrainingJobDefinition', request)
        assert parts.get('Environment')['BIN_COUNTER_PROGRESS'] == '0' and json.loads(json.dumps(plan.to_dict()))['per'] == 'run'
    for parts in (plans[0].steps[0].request, plans[1].steps[0].request['TrainingJobDefinition']):
        hps, stop = {**parts.get('HyperParameters', {}), **parts.get('StaticHyperParameters', {})}, parts['StoppingCondition']
        assert (hps.get(DISTRIBUTED) == 'true') == (m.count > 1 or m.instance == 'ml.g5.12xlarge') and hps['epochs'] == '2' and json.loads(hps['sagemaker_program']) == 'train.py'
        assert parts['EnableManagedSpotTraining'] == m.spot == ('CheckpointConfig' in parts) == ('MaxWaitTimeInSeconds' in stop)
        assert stop['MaxRuntimeInSeconds'] == m.max_hours*3600 and stop.get('MaxWaitTimeInSeconds', 10**9) >= stop['MaxRuntimeInSeconds']
        assert [m['Name'] for m in parts['AlgorithmSpecification']['MetricDefinitions']] == ['train_loss', 'valid_loss', 'valid_accuracy', 'valid_mae']


@pytest.mark.parametrize('instance, several', [('ml.g5.xlarge', False), ('ml.g5.16xlarge', False), ('ml.g5.12xlarge', True), ('ml.g4dn.12xlarge', True), ('ml.p3.2xlarge', False), ('ml.p3.8xlarge', True),
                                               ('ml.p4d.24xlarge', True), ('ml.p5.4xlarge', False), ('ml.c5.12xlarge', False), ('ml.m5.24xlarge', False)])
def test_gpus_of_one_machine_train_together(instance, several):
    assert several_gpus(instance) == several == (DISTRIBUTED in training_request(REAL, 's3://b/d', machines=Machines(instance))['HyperParameters'])


def test_machines_that_would_train_alone_are_refused():
    request = training_request(REAL, 's3://b/data/1', machines=Machines(count=2))
    check_together(request)
    for value in (None, 'false'):
        hps = {k: v for k, v in request['HyperParameters'].items() if k != DISTRIBUTED} | ({DISTRIBUTED: value} if value else {})
        with pytest.raises(ConfigError, match='2 machines without sagemaker_torch_distributed_enabled would each train alone'): check_together(dict(request, HyperParameters=hps))
        with pytest.raises(ConfigError, match='would each train alone'): check_together(dict(StaticHyperParameters=hps, ResourceConfig=request['ResourceConfig']))


@pytest.mark.parametrize('plan, said', [
    (lambda: training_plan(REAL, 'bins/data/1'), "data 'bins/data/1': write it as s3://bucket/folder"),
    (lambda: training_plan(REAL, 's3://b/d', dict(epoch=1)), 'no such setting: epoch'),
    (lambda: training_plan(REAL, 's3://b/d', dict(epochs='many')), 'not a valid int'),
    (lambda: training_plan(REAL, 's3://b/d', dict(weights='none', trained='head')), 'would freeze noise'),
    (lambda: training_plan(REAL, 's3://b/d', mode='Pipe'), "choose 'File' or 'FastFile'"),
    (lambda: training_plan(REAL, 's3://b/d', source='sourcedir.tar.gz'), 'source'),
    (lambda: tuning_plan(REAL, 's3://b/d', dict(lr=.1), dict(lr='1e-4..1e-2')), 'lr is given twice'),
    (lambda: tuning_plan(REAL, 's3://b/d', {}, dict(lr='1e-4')), 'there is nothing to search'),
    (lambda: tuning_plan(REAL, 's3://b/d', {}, dict(lr='1e-4..20')), 'lr 20.0: choose 0 to 10'),
    (lambda: tuning_plan(REAL, 's3://b/d', {}, dict(augment='flip|crop')), "augment 'crop'"),
    (lambda: tuning_plan(REAL, 's3://b/d', {}, dict(lr='1e-4..1e-2'), jobs=2, parallel=3), 'no more at a time than there are'),
    (lambda: tuning_plan(REAL, 's3://b/d', {}, dict(lr='1e-4..1e-2'), objective='loss'), 'choose valid_loss, valid_mae, valid_accuracy'),
    (lambda: processing_plan(REAL, 'x', []), 'needs a command'),
    (lambda: processing_plan(REAL, 'x', ['a'], inputs=[Input('a', 's3://b/a')], outputs=[Output('a', 's3://b/o')]), 'give each a name of its own'),
    (lambda: processing_plan(REAL, 'x', ['a'], inputs=[Input('a', 's3://b/a', path='/tmp/a')]), 'must begin with /opt/ml/processing/'),
    (lambda: transform_plan(REAL, 'm', 's3://b/in', 's3://b/out', Machines('ml.c5.xlarge', spot=True)), 'a batch transform cannot run on spot machines'),
    (lambda: transform_plan(REAL, 'm', 's3://b/in', 's3://b/out', concurrent=17), 'no more than 100 MB'),
    (lambda: Machines('m5.xlarge'), 'write it as ml.m5.xlarge'), (lambda: Machines(count=0), 'choose 1 to 100'), (lambda: Machines(hours=5), 'the first may not be above the second'), (lambda: Machines(wait_hours=9), 'wait_hours is for spot')])
def test_what_would_waste_money_is_refused(plan, said):
    with pytest.raises(ConfigError, match=said): plan()


@pytest.mark.parametrize('words', ['1e-4..1e-2', '0.1..0.2', '1e-2..1e-4', '1..1', '0..nan', '1e-3|2e-3', '1e-3|1e-3', '|1', '1e-3', 'a', '1..b'])
@pytest.mark.parametrize('name', ['lr', 'batch_size', 'patience', 'arch', 'nothing'])
def test_ranges_are_read_as_by_bin_tune(name, words):
    "The same words mean the same space, or are refused by both"
    tune = pytest.importorskip('bin_counter.tune')
    def read(how, *args):
        try: return how(*args)
        except ConfigError: return 'refused'
    assert read(parse_range, name, words) == read(tune.parse_dimension, f'{name}={words}')


# ---- on the emulated AWS

def test_a_training_job_on_spot_machines_and_its_bill(aws):
    m = Machines('ml.m5.xlarge', spot=True, hours=.5)
    plan = training_plan(FAKE, FAKE.uri('data', HASH), dict(lr=.002), m, source=FAKE.uri('code', 'x', 'sourcedir.tar.gz'), env=dict(MORE='yes'))
    job = carry_out(aws, plan)['TrainingJobName']
    d = ended(aws.client('sagemaker').describe_training_job, 'TrainingJobStatus', TrainingJobName=job)
    assert d['TrainingJobStatus'] == 'Completed' and d['ModelArtifacts']['S3ModelArtifacts'] == FAKE.uri('jobs', job, 'output', 'model.tar.gz')
    assert {m['MetricName']: m['Value'] for m in d['FinalMetricDataList']} == dict(train_loss=2., valid_loss=.001, valid_accuracy=.5, valid_mae=.7)
    seen = next(json.loads(l[5:]) for l in printed(aws, job) if l.startswith('sees '))
    assert (seen['quiet'], seen['more'], seen['hps']['lr']) == ('0', 'yes', '0.002')
    assert seen['files'] == ['data/LICENCE.txt', *(f'data/bin-images/{i}.jpg' for i in range(4)), 'splits/splits.csv'], 'and none of another dataset, whose hash begins alike'
    row, share = after_cost(d), d['BillableTimeInSeconds']/d['TrainingTimeInSeconds']
    assert row.on_demand == pytest.approx(d['TrainingTimeInSeconds']/3600*.23) and row.usd == pytest.approx(d['BillableTimeInSeconds']/3600*.23) and (share < 1 or d['TrainingTimeInSeconds'] == 1) # the bill is in whole seconds
    table = cost_table([planned_cost(job, m), row])
    assert '~50%' in table and f'{1 - share:.0%}' in table


def test_two_machines_are_one_world_and_share_the_photos(aws):
    "The request of a plan, in the image of AWS"
    program = """import os
from pathlib import Path
os.write(1, f'world {os.environ.get("WORLD_SIZE")} photos {" ".join(sorted(p.stem for p in Path(os.environ["SM_CHANNEL_DATA"]).rglob("*.jpg")))} splits {len(os.listdir(os.environ["SM_CHANNEL_SPLITS"]))}\\n'.encode())
"""
    aws.client('s3').put_object(Bucket=REAL.bucket, Key='code/1/sourcedir.tar.gz', Body=archive(train_py=program))
    plan = training_plan(REAL, REAL.uri('data', HASH), {}, Machines(count=2), 'together', REAL.uri('code', '1', 'sourcedir.tar.gz'), sharded=True)
    carry_out(aws, plan)
    d = ended(aws.client('sagemaker').describe_training_job, 'TrainingJobStatus', TrainingJobName='together')
    assert d['TrainingJobStatus'] == 'Completed', d.get('FailureReason')
    said = [l.split() for l in printed(aws, 'together') if l.startswith('world ')]
    assert [s[1] for s in said] == ['2', '2'] and all(s[-1] == '1' for s in said), 'one world, and all have the split'
    assert sorted(p for s in said for p in s[3:-2]) == ['0', '1', '2', '3'], 'and every photo is on one machine'


def test_a_tuning_job_and_its_bill(aws):
    plan = tuning_plan(FAKE, FAKE.uri('data', HASH), dict(epochs=1), dict(lr='1e-4..1e-2', batch_size='16|32', patience='0..3'), 3, 3, Machines('ml.m5.xlarge', spot=True))
    assert [round(c.quantity, 6) for c in plan.charges] == [3.] and '3 runs on 1 x ml.m5.xlarge (spot)' in str(plan)
    name, sm = carry_out(aws, plan, code='x')['HyperParameterTuningJobName'], aws.client('sagemaker')
    d = ended(sm.describe_hyper_parameter_tuning_job, 'HyperParameterTuningJobStatus', HyperParameterTuningJobName=name)
    assert d['HyperParameterTuningJobStatus'] == 'Completed' and d['BestTrainingJob']['FinalHyperParameterTuningJobObjectiveMetric']['MetricName'] == 'valid_loss'
    tried = sm.list_training_jobs_for_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)['TrainingJobSummaries']
    jobs = [sm.describe_training_job(TrainingJobName=t['TrainingJobName']) for t in tried]
    for j in jobs:
        hps = j['HyperParameters']
        assert 1e-4 <= float(hps['lr']) <= 1e-2 and hps['batch_size'] in ('16', '32') and int(hps['patience']) in range(4) and hps['epochs'] == '1'
    row = after_cost(d, jobs=jobs)
    worked, billed = (sum(j[k] for j in jobs) for k in ('TrainingTimeInSeconds', 'BillableTimeInSeconds'))
    assert row.usd == pytest.approx(billed/3600*.23) and row.saved == pytest.approx(1 - billed/worked) and row.machines == '3 jobs of 1 x ml.m5.xlarge (spot)'
    with pytest.raises(ConfigError, match='ran 3 training jobs, 2 are described'): after_cost(d, jobs=jobs[:2])


def test_a_processing_job_shares_the_files_and_has_a_bill(aws):
    plan = processing_plan(FAKE, 'look', ['python', aws.work_py], Machines('ml.c5.xlarge', 2), [Input('photos', FAKE.uri('data', HASH), sharded=True)], [Output('seen', FAKE.uri('seen'))], ['--side', '224'])
    job = carry_out(aws, plan)['ProcessingJobName']
    d = ended(aws.client('sagemaker').describe_processing_job, 'ProcessingJobStatus', ProcessingJobName=job)
    assert d['ProcessingJobStatus'] == 'Completed', d.get('FailureReason')
    s3 = aws.client('s3')
    found = {o['Key']: s3.get_object(Bucket=FAKE.bucket, Key=o['Key'])['Body'].read() for o in s3.list_objects_v2(Bucket=FAKE.bucket, Prefix='seen/')['Contents']}
    assert found == {f'seen/{i}.jpg': b'--side 224' for i in range(4)}, 'none of another dataset, whose hash begins alike'
    row = after_cost(d)
    assert row.usd == row.on_demand == pytest.approx((d['ProcessingEndTime'] - d['ProcessingStartTime']).total_seconds()*2/3600*.204) and row.saved == 0


def test_a_batch_transform_answers_in_csv_one_line_a_photo(aws):
    s3, sm = aws.client('s3'), aws.client('sagemaker')
    s3.put_object(Bucket=FAKE.bucket, Key='packages/1/model.tar.gz', Body=archive(card_json='{}'))
    sm.create_model(ModelName='fake', ExecutionRoleArn=ROLE, PrimaryContainer=dict(Image='fake:1', ModelDataUrl=FAKE.uri('packages', '1', 'model.tar.gz')))
    job = carry_out(aws, transform_plan(FAKE, 'fake', FAKE.uri('data', HASH, 'data', 'bin-images'), FAKE.uri('counted')))['TransformJobName']
    d = ended(sm.describe_transform_job, 'TransformJobStatus', TransformJobName=job)
    assert d['TransformJobStatus'] == 'Completed', d.get('FailureReason')
    found = {o['Key']: s3.get_object(Bucket=FAKE.bucket, Key=o['Key'])['Body'].read() for o in s3.list_objects_v2(Bucket=FAKE.bucket, Prefix='counted/')['Contents']}
    assert found == {f'counted/{i}.jpg.out': b'7,image/jpeg,text/csv\n' for i in range(4)}
    assert after_cost(d).machines == '1 x ml.c5.xlarge'


# ---- costs

def described(**more): return dict(dict(TrainingJobName='t', TrainingJobStatus='Completed', ResourceConfig=dict(InstanceType='ml.m5.xlarge', InstanceCount=3), EnableManagedSpotTraining=True, TrainingTimeInSeconds=500, BillableTimeInSeconds=100), **more)


def test_the_saving_is_that_of_the_documentation():
    "AWS's own example: 100 billable of 500 seconds are 80% saved; both count for every machine"
    row = after_cost(described())
    assert row.saved == pytest.approx(.8) and row.usd == pytest.approx(3*100/3600*.23) and row.hours == pytest.approx(1500/3600)


@pytest.mark.parametrize('d, said', [(described(TrainingJobStatus='InProgress'), 't is InProgress: what it cost is known when it has ended'), (dict(ModelName='m'), 'describes no training, tuning, processing or transform job'),
                                     (described(ResourceConfig=dict(InstanceGroups=[])), 'groups of different machines'),
                                     (dict(HyperParameterTuningJobName='h', HyperParameterTuningJobStatus='InProgress'), 'h is InProgress'),
                                     (dict(HyperParameterTuningJobName='h', HyperParameterTuningJobStatus='Completed', TrainingJobStatusCounters=dict(Completed=2)), 'ran 2 training jobs, 0 are described')])
def test_what_has_no_bill_says_so(d, said):
    with pytest.raises(ConfigError, match=said): after_cost(d)


def test_a_job_that_never_ran_cost_nothing():
    d = described(TrainingJobStatus='Failed')
    for k in ('TrainingTimeInSeconds', 'BillableTimeInSeconds'): del d[k]
    row = after_cost(d)
    assert (row.usd, row.on_demand, row.saved) == (0, 0, 0) and '0.00' in cost_table([row])


def test_a_machine_without_a_price_is_planned_without_a_bill():
    m = Machines('ml.g6.xlarge', spot=True)
    plan = training_plan(REAL, 's3://b/d', machines=m)
    assert not plan.charges and 'no price of sagemaker.ml.g6.xlarge is known' in str(plan) and '--prices' in str(plan)
    row = after_cost(described(ResourceConfig=dict(InstanceType='ml.g6.xlarge', InstanceCount=1)))
    table = cost_table([planned_cost('t', m), row])
    assert row.usd is None and table.count('?') == 5 and 'bring it with a file of prices' in table
    own = PRICES | {'sagemaker.ml.g6.xlarge': Price('SageMaker', 'hour of a machine', 2., '2026-11')}
    assert total(training_plan(REAL, 's3://b/d', machines=m, prices=own).charges) == 2 and after_cost(described(ResourceConfig=dict(InstanceType='ml.g6.xlarge', InstanceCount=1)), own).usd == pytest.approx(2*100/3600)


def test_a_disk_is_paid_where_there_is_one_and_a_price():
    own = PRICES | {'sagemaker.volume': Price('SageMaker', 'GB of a volume for a month', .1, '2026-11')}
    assert [c.usd for c in run_cost(Machines(count=2, hours=3, volume_gb=73), own, jobs=5)] == pytest.approx([2*3*5*.23, .1*73*2*3*5/730])
    assert len(run_cost(Machines('ml.g5.xlarge'), own)) == 1 == len(run_cost(Machines()))
    assert 'without the 30 GB disk' in str(training_plan(REAL, 's3://b/d')) and 'disk' not in str(training_plan(REAL, 's3://b/d', prices=own)) and 'disk' not in str(training_plan(REAL, 's3://b/d', machines=Machines('ml.g5.xlarge')))


def test_the_guess_about_spot_is_called_one_and_is_not_in_the_bill():
    plain, spot = (training_plan(REAL, 's3://b/d', machines=Machines(spot=s)) for s in (False, True))
    assert plain.charges == spot.charges and 'assumption' in str(spot) and 'assumption' not in str(plain)
    assert planned_cost('t', Machines(spot=True)).saved == pytest.approx(SPOT_SAVES) and planned_cost('t', Machines()).saved == 0
    assert planned_cost('t', Machines(count=2, hours=1, max_hours=3), jobs=2).most == pytest.approx(2*2*3*.23)


def test_other_regions_are_told_whose_prices_these_are():
    assert 'those of us-east-1, and differ in eu-west-1' in str(training_plan(Project(region='eu-west-1'), 's3://b/d')) and 'differ in' not in str(training_plan(Project(), 's3://b/d'))


def test_a_bill_of_a_month_reads_as_before():
    from bin_counter.cloud import Plan
    text = str(Plan('s', 'us-east-1', '', (), training_plan(Project(), 's3://b/d').charges))
    assert 'what it costs a month:' in text and 'dollars a month' in text and 'the cost of building' in text
