"The emulated AWS over HTTP: what moto still lacks, jobs under the container contract, endpoints, pipelines, faults, and nothing left behind."
import io, json, os, re, subprocess, sys, tarfile, threading, time, urllib.error, urllib.request, zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")
from botocore.exceptions import ClientError

from bin_counter.core import ConfigError, unpack_tar
from bin_counter.emulator import MOTO_LACKS, MOTO_LIES, OPERATIONS, Emulator, moto_instead
from emulated import ROLE, wait_for

OURS, AWSS = 'bin-counter:1', '763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.13.0-cpu'
SETTINGS = dict(grace=1.5, pace=.02, sync=.2, spot_wait=10, capture=.2, start=30, invoke=3)

TRAINER = '''
import json, os, pathlib, signal, sys, time
ml = pathlib.Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'))
hps, hosts = (json.loads((ml/'input/config'/f'{n}.json').read_text()) for n in ('hyperparameters', 'resourceconfig'))
saved, stop = ml/'checkpoints/epoch', []
if hps.get('deaf'): signal.signal(signal.SIGTERM, signal.SIG_IGN)
else: signal.signal(signal.SIGTERM, lambda *a: stop.append(1))
first = int(saved.read_text()) + 1 if saved.exists() else 1
print('begins', json.dumps(dict(first=first, host=hosts['current_host'], files=sorted(p.name for p in (ml/'input/data').rglob('*') if p.is_file()), job=os.environ['TRAINING_JOB_NAME'])), flush=True)
for epoch in range(first, int(hps['epochs']) + 1):
    time.sleep(float(hps.get('seconds', .05)))
    print(f'epoch {epoch}/{hps["epochs"]}  valid_loss {1/epoch:.4f}', flush=True)
    (ml/'checkpoints/part').write_text(str(epoch))
    os.replace(ml/'checkpoints/part', saved)
    if hps.get('bytes'): (ml/'model/big').write_bytes(bytes(int(hps['bytes'])))
    if stop: print('told to stop', flush=True), sys.exit(0)
(ml/'model/model.pth').write_text(str(epoch))
(ml/'output/data/history.csv').write_text('epoch')
'''

SERVER = '''
import json, os, pathlib, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
model = pathlib.Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'))/'model'
word = (model/'word').read_text()
class Fake(BaseHTTPRequestHandler):
    def say(self, status, body, **headers):
        self.send_response(status)
        for k, v in {**headers, 'content-length': str(len(body))}.items(): self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self): self.say(503 if word == 'sick' else 200, b'')
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length'] or 0))
        if body.startswith(b'status '): return self.say(int(body[7:10]), b'{"error": "as you wished"}')
        if body == b'sleep': time.sleep(10)
        if body == b'die': os._exit(1)
        said = dict(word=word, bytes=len(body), sum=sum(body) % 251, kind=self.headers.get('content-type'), accept=self.headers.get('accept'))
        self.say(200, json.dumps(said).encode(), content_type='application/json', X_Amzn_SageMaker_Custom_Attributes='seen=' + self.headers.get('X-Amzn-SageMaker-Custom-Attributes', ''))
    def log_message(self, *args): pass
ThreadingHTTPServer(('127.0.0.1', int(os.environ['SAGEMAKER_BIND_TO_PORT'])), Fake).serve_forever()
'''


@pytest.fixture(scope='module')
def fakes(tmp_path_factory):
    "A trainer and a server that need nothing but Python"
    out = tmp_path_factory.mktemp('fakes')
    (out/'trainer.py').write_text(TRAINER)
    (out/'server.py').write_text(SERVER)
    return {'fake*': dict(train=['python', str(out/'trainer.py')], serve=['python', str(out/'server.py')])}


@pytest.fixture(scope='module')
def aws(tmp_path_factory, fakes):
    "One emulator for all tests; each test uses names of its own"
    with Emulator(tmp_path_factory.mktemp('aws'), settings=SETTINGS, images=fakes) as aws:
        aws.client('s3').create_bucket(Bucket='bins')
        yield aws


@pytest.fixture
def faults(aws):
    "Faults for one test"
    yield aws.faults
    aws.faults(**dict.fromkeys(('s3', 'throttle', 'expire', 'deny', 'quota', 'disk', 'interrupt')))


@pytest.fixture
def sm(aws): return aws.client('sagemaker')


@pytest.fixture
def s3(aws): return aws.client('s3')


def needs_namespaces(aws):
    if aws.mode != 'namespaces': pytest.skip('this machine permits no namespaces: run as root on Linux')


def read(s3, key, bucket='bins'): return s3.get_object(Bucket=bucket, Key=key)['Body'].read()
def keys(s3, prefix): return [o['Key'] for o in s3.list_objects_v2(Bucket='bins', Prefix=prefix).get('Contents', [])]


def channel(name, **more): return dict(ChannelName=name, DataSource=dict(S3DataSource=dict(S3DataType='S3Prefix', S3Uri=f's3://bins/{name}/', **more)))


def training(name, hosts=1, image='fake:1', hps={}, algorithm={}, **more):
    "A CreateTrainingJob request"
    metrics = [dict(Name='valid:loss', Regex='valid_loss ([0-9.]+)')]
    return dict(TrainingJobName=name, RoleArn=ROLE, AlgorithmSpecification=dict(TrainingImage=image, TrainingInputMode='File', MetricDefinitions=metrics) | algorithm, HyperParameters=dict(epochs='2') | hps,
                OutputDataConfig=dict(S3OutputPath='s3://bins/out'), ResourceConfig=dict(InstanceType='ml.m5.large', InstanceCount=hosts, VolumeSizeInGB=30), StoppingCondition=dict(MaxRuntimeInSeconds=600)) | more


def ended(sm, name):
    "Description of a training job, once it has ended"
    return wait_for(lambda: (d := sm.describe_training_job(TrainingJobName=name))['TrainingJobStatus'] not in ('InProgress', 'Stopping') and d, 90, f'the end of {name}')


def train(sm, name, *args, **more):
    sm.create_training_job(**training(name, *args, **more))
    return ended(sm, name)


def lines(aws, name, region=''):
    "What a training job printed, stream by stream"
    logs, group = aws.client('logs', region), '/aws/sagemaker/TrainingJobs'
    try: streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f'{name}/')['logStreams']
    except logs.exceptions.ResourceNotFoundException: return [] # the first job of all makes the group
    return [e['message'] for s in streams for e in logs.get_log_events(logGroupName=group, logStreamName=s['logStreamName'], startFromHead=True)['events']]


def begins(printed): return [json.loads(l[7:]) for l in printed if l.startswith('begins ')]


# what moto does, and does not

def _methods():
    from moto.core.utils import camelcase_to_underscores
    from moto.sagemaker.responses import SageMakerResponse
    return {o for o in OPERATIONS if hasattr(SageMakerResponse, camelcase_to_underscores(o))}


@pytest.mark.parametrize('operation', MOTO_LACKS)
def test_moto_still_lacks(operation): assert operation not in _methods(), 'moto has caught up: see whether its own will do'


def test_every_answer_of_ours_is_explained():
    assert set(MOTO_LACKS) | set(MOTO_LIES) <= set(OPERATIONS)
    for operation in _methods() - set(MOTO_LIES):
        made = moto_instead(operation).removeprefix('goes with ')
        assert made in MOTO_LIES or operation.endswith('Tags')


def _processing(name): return dict(ProcessingJobName=name, RoleArn=ROLE, AppSpecification=dict(ImageUri='i'), ProcessingResources=dict(ClusterConfig=dict(InstanceCount=1, InstanceType='ml.m5.large', VolumeSizeInGB=9)))
def _container(key='no.tar.gz'): return dict(Image='fake:1', ModelDataUrl=f's3://bins/{key}')
def _variant(model='m', **more): return dict(VariantName='v', ModelName=model, InstanceType='ml.m5.large', InitialInstanceCount=1, **more)
def _tuning(name): return dict(HyperParameterTuningJobName=name, HyperParameterTuningJobConfig=dict(Strategy='Random', ResourceLimits=dict(MaxNumberOfTrainingJobs=2, MaxParallelTrainingJobs=2)))
TRANSFORM = dict(ModelName='m', TransformResources=dict(InstanceType='ml.m5.large', InstanceCount=1), TransformOutput=dict(S3OutputPath='s3://bins/t'), TransformInput=dict(DataSource=dict(S3DataSource=dict(S3DataType='S3Prefix', S3Uri='s3://bins/no'))))
TOKEN = dict(ClientRequestToken='x'*32)


def _refuses(call, *args, **kwargs):
    try: call(*args, **kwargs)
    except (ClientError, NotImplementedError): return True
    return False


def _lie_training(sm, s3):
    sm.create_training_job(**training('t'))
    return sm.describe_training_job(TrainingJobName='t')['TrainingJobStatus'] == 'Completed' and not s3.list_objects_v2(Bucket='bins').get('Contents')

def _lie_tuning(sm, s3):
    sm.create_hyper_parameter_tuning_job(**_tuning('h'))
    return sm.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName='h')['HyperParameterTuningJobStatus'] == 'Completed' and not sm.list_training_jobs()['TrainingJobSummaries']

def _lie_processing(sm, s3):
    sm.create_processing_job(**_processing('p'))
    return sm.describe_processing_job(ProcessingJobName='p')['ProcessingJobStatus'] == 'Completed'

def _lie_transform(sm, s3):
    sm.create_transform_job(TransformJobName='t', **TRANSFORM)
    return sm.describe_transform_job(TransformJobName='t')['TransformJobStatus'] == 'Completed' and not s3.list_objects_v2(Bucket='bins').get('Contents')

def _lie_model(sm, s3):
    for image in ('first', 'second'): sm.create_model(ModelName='m', PrimaryContainer=dict(Image=image, ModelDataUrl='s3://bins/no.tar.gz'), ExecutionRoleArn=ROLE)
    return sm.describe_model(ModelName='m')['PrimaryContainer']['Image'] == 'second'

def _lie_config(sm, s3):
    sm.create_model(ModelName='m', PrimaryContainer=_container(), ExecutionRoleArn=ROLE)
    sm.create_endpoint_config(EndpointConfigName='c', ProductionVariants=[_variant()], ExecutionRoleArn=ROLE)
    return 'ExecutionRoleArn' not in sm.describe_endpoint_config(EndpointConfigName='c')

def _lie_endpoint(sm, s3):
    _lie_config(sm, s3)
    sm.create_endpoint(EndpointName='e', EndpointConfigName='c')
    return sm.describe_endpoint(EndpointName='e')['EndpointStatus'] == 'InService'

def _lie_group(sm, s3):
    sm.create_model_package_group(ModelPackageGroupName='g')
    return _refuses(sm.delete_model_package_group, ModelPackageGroupName='g')

def _lie_package(sm, s3):
    sm.create_model_package_group(ModelPackageGroupName='g')
    return not _refuses(sm.create_model_package, ModelPackageGroupName='g', InferenceSpecification=dict(Containers=[_container()]))

def _lie_pipeline(sm, s3): return not _refuses(sm.create_pipeline, PipelineName='p', PipelineDefinition='{"x": 1}', RoleArn=ROLE, **TOKEN)

def _lie_execution(sm, s3):
    _lie_pipeline(sm, s3)
    arn = sm.start_pipeline_execution(PipelineName='p', **TOKEN)['PipelineExecutionArn']
    return sm.describe_pipeline_execution(PipelineExecutionArn=arn)['PipelineExecutionStatus'] == 'Succeeded'

LIES = dict(CreateTrainingJob=_lie_training, CreateHyperParameterTuningJob=_lie_tuning, CreateProcessingJob=_lie_processing, CreateTransformJob=_lie_transform, CreateModel=_lie_model, CreateEndpointConfig=_lie_config,
            CreateEndpoint=_lie_endpoint, CreateModelPackageGroup=_lie_group, CreateModelPackage=_lie_package, CreatePipeline=_lie_pipeline, StartPipelineExecution=_lie_execution)


@pytest.mark.parametrize('operation', MOTO_LIES)
def test_moto_still_lies(operation):
    import boto3
    from moto import mock_aws
    with mock_aws():
        given = dict(region_name='us-east-1', aws_access_key_id='x', aws_secret_access_key='x')
        s3 = boto3.client('s3', **given)
        s3.create_bucket(Bucket='bins')
        assert LIES[operation](boto3.client('sagemaker', **given), s3), 'moto has caught up: see whether its own will do'


# requests

def post(aws, operation, params):
    "A request to SageMaker, as no client would send it: status and answer"
    head = {'X-Amz-Target': f'SageMaker.{operation}', 'Content-Type': 'application/x-amz-json-1.1', 'Authorization': 'AWS4-HMAC-SHA256 Credential=x/20261121/us-east-1/sagemaker/aws4_request'}
    request = urllib.request.Request(aws.url, json.dumps(params).encode(), head)
    try: r = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20)
    except urllib.error.HTTPError as e: r = e
    with r: return r.status, json.loads(r.read())


@pytest.mark.parametrize('operation, params, code, said', [
    ('CreateTrainingJob', {}, 'ValidationException', "3 validation errors detected: Value null at 'trainingJobName'"),
    ('CreateTrainingJob', training('bad_name'), 'ValidationException', 'regular expression pattern'),
    ('CreateTrainingJob', training('N', image=7), 'ValidationException', "'algorithmSpecification.trainingImage' is a int, a string is wanted"),
    ('CreateTrainingJob', training('n'*64), 'ValidationException', 'length less than or equal to 63'),
    ('CreateTrainingJob', training('N', Surprise=1), 'ValidationException', 'Unknown parameter in input: "Surprise"'),
    ('CreateTrainingJob', training('N', hosts=0), 'ValidationException', 'value greater than or equal to'),
    ('CreateTrainingJob', training('N', algorithm=dict(TrainingInputMode='Disk')), 'ValidationException', 'enum value set: [Pipe, File, FastFile]'),
    ('CreateTrainingJob', training('N', StoppingCondition=dict(MaxRuntimeInSeconds=60, MaxWaitTimeInSeconds=90)), 'ValidationException', 'only allowed when EnableManagedSpotTraining'),
    ('CreateTrainingJob', training('N', algorithm=dict(MetricDefinitions=[dict(Name='a', Regex='(')])), 'ValidationException', 'Regex of metric a is invalid'),
    ('CreateTrainingJob', training('N', InputDataConfig=[channel('a'), channel('a')]), 'ValidationException', 'Channel names must be unique'),
    ('CreateTrainingJob', training('N', InputDataConfig=[dict(ChannelName='a', DataSource=dict(FileSystemDataSource=dict(FileSystemId='fs-12345678901', FileSystemAccessMode='ro', FileSystemType='EFS', DirectoryPath='/')))]), 'ValidationException', 'not emulated'),
    ('CreateModel', dict(ModelName='m', ExecutionRoleArn=ROLE, PrimaryContainer=_container()), 'ValidationException', 'Could not find model data at s3://bins/no.tar.gz'),
    ('CreateModel', dict(ModelName='m', ExecutionRoleArn=ROLE, Containers=[dict(Image='a'), dict(Image='b')]), 'ValidationException', 'not emulated: a model of several containers'),
    ('CreateEndpointConfig', dict(EndpointConfigName='c', ProductionVariants=[_variant('none')]), 'ValidationException', 'Could not find model "arn:aws:sagemaker:us-east-1:123456789012:model/none"'),
    ('CreateEndpoint', dict(EndpointName='e', EndpointConfigName='none'), 'ValidationException', 'Could not find endpoint configuration'),
    ('DescribeEndpoint', dict(EndpointName='none'), 'ValidationException', 'Could not find endpoint "arn:aws:sagemaker:us-east-1:123456789012:endpoint/none"'),
    ('DescribeTrainingJob', dict(TrainingJobName='none'), 'ValidationException', 'Requested resource not found.'),
    ('DescribeProcessingJob', dict(ProcessingJobName='none'), 'ValidationException', 'Could not find requested job with name: none'),
    ('DescribePipeline', dict(PipelineName='none'), 'ResourceNotFound', 'does not exist'),
    ('CreateHyperParameterTuningJob', _tuning('h'), 'ValidationException', 'several definitions'),
    ('CreateLabelingJob', {}, 'ValidationException', 'not emulated: the operation CreateLabelingJob'),
    ('CreateTransformJob', dict(TransformJobName='t', **TRANSFORM, DataProcessing=dict(InputFilter='$')), 'ValidationException', 'not emulated: filters'),
])
def test_what_is_wrong_is_refused(aws, operation, params, code, said):
    "By the server, whatever the client checked"
    status, answer = post(aws, operation, params)
    assert (status, answer['__type']) == (400, code) and said in answer['message']


def test_services_of_moto_are_checked_as_well(aws):
    scaling = aws.client('application-autoscaling', parameter_validation=False)
    with pytest.raises(ClientError, match='enum value set'): scaling.register_scalable_target(ServiceNamespace='sagemaker', ResourceId='endpoint/e/variant/v', ScalableDimension='sagemaker:variant:Size')
    target = dict(ServiceNamespace='sagemaker', ResourceId='endpoint/e/variant/v', ScalableDimension='sagemaker:variant:DesiredInstanceCount')
    scaling.register_scalable_target(MinCapacity=1, MaxCapacity=2, **target)
    assert 'endpoint/e/variant/v' in [r['name'] for r in aws.inventory()['resources']]
    scaling.deregister_scalable_target(**target)


def test_regions_are_apart_and_tags_stay(aws):
    near, far = (aws.client('sagemaker', r) for r in ('us-east-1', 'eu-west-1'))
    arn = far.create_model_package_group(ModelPackageGroupName='apart', Tags=[dict(Key='project', Value='bins')])['ModelPackageGroupArn']
    assert ':eu-west-1:' in arn
    with pytest.raises(ClientError, match='does not exist'): near.describe_model_package_group(ModelPackageGroupName='apart')
    far.add_tags(ResourceArn=arn, Tags=[dict(Key='owner', Value='me'), dict(Key='project', Value='counts')])
    far.delete_tags(ResourceArn=arn, TagKeys=['owner'])
    assert far.list_tags(ResourceArn=arn)['Tags'] == [dict(Key='project', Value='counts')]
    far.delete_model_package_group(ModelPackageGroupName='apart')


def test_lists_come_in_pages(aws, sm, s3):
    for i in range(5): sm.create_model(ModelName=f'paged-{i}', PrimaryContainer=dict(Image='fake:1'), ExecutionRoleArn=ROLE)
    pages = list(sm.get_paginator('list_models').paginate(NameContains='paged', SortBy='Name', SortOrder='Ascending', PaginationConfig=dict(PageSize=2)))
    assert [[m['ModelName'][-1] for m in p['Models']] for p in pages] == [['0', '1'], ['2', '3'], ['4']]


# training

def test_a_job_leaves_what_sagemaker_would(aws, sm, s3):
    "Two hosts with a channel each in full and in shares; logs while it runs; metrics, model and output"
    for i in range(5): s3.put_object(Bucket='bins', Key=f'photos/{i}.jpg', Body=b'x')
    s3.put_object(Bucket='bins', Key='splits/splits.csv', Body=b'id')
    sm.create_training_job(**training('full', hosts=2, hps=dict(epochs='6', seconds='.4'), InputDataConfig=[channel('splits'), channel('photos', S3DataDistributionType='ShardedByS3Key')], Environment=dict(BINS='1')))
    wait_for(lambda: any('epoch 1/6' in l for l in lines(aws, 'full')))
    assert sm.describe_training_job(TrainingJobName='full')['TrainingJobStatus'] == 'InProgress'
    job = ended(sm, 'full')
    assert job['TrainingJobStatus'] == 'Completed', job
    said = begins(lines(aws, 'full'))
    assert [b['files'] for b in said] == [['0.jpg', '2.jpg', '4.jpg', 'hyperparameters.json', 'inputdataconfig.json', 'resourceconfig.json', 'splits.csv'][:3] + ['splits.csv'], ['1.jpg', '3.jpg', 'splits.csv']]
    assert {b['job'] for b in said} == {'full'} and len({b['host'] for b in said}) == 2
    assert [(m['MetricName'], round(m['Value'], 4)) for m in job['FinalMetricDataList']] == [('valid:loss', .1667)]
    with tarfile.open(fileobj=io.BytesIO(read(s3, 'out/full/output/model.tar.gz'))) as t: assert t.getnames() == ['model.pth']
    with tarfile.open(fileobj=io.BytesIO(read(s3, 'out/full/output/output.tar.gz'))) as t: assert t.getnames() == ['history.csv']
    assert [t['Status'] for t in job['SecondaryStatusTransitions']] == ['Starting', 'Downloading', 'Training', 'Uploading', 'Completed']
    assert job['TrainingTimeInSeconds'] == job['BillableTimeInSeconds'] >= 3
    seen = aws.client('cloudwatch').get_metric_statistics(Namespace='/aws/sagemaker/TrainingJobs', MetricName='valid:loss', Dimensions=[dict(Name='TrainingJobName', Value='full')], Period=3600, Statistics=['SampleCount'],
                                                          StartTime=time.time() - 3600, EndTime=time.time() + 3600)['Datapoints']
    assert sum(p['SampleCount'] for p in seen) == 12
    assert not list((aws.work/'jobs').rglob('*.jpg')), 'the data of a job that is done is removed'


def test_a_spot_job_survives_the_loss_of_its_machine(aws, sm, s3, faults):
    faults(interrupt=[dict(job='spot', line='epoch 3/')])
    job = train(sm, 'spot', hps=dict(epochs='8', seconds='.25'), EnableManagedSpotTraining=True, StoppingCondition=dict(MaxRuntimeInSeconds=60, MaxWaitTimeInSeconds=120), CheckpointConfig=dict(S3Uri='s3://bins/checkpoints/spot'))
    assert (job['TrainingJobStatus'], job.get('FailureReason')) == ('Completed', None)
    printed = lines(aws, 'spot')
    assert 'told to stop' in printed
    first, second = begins(printed)
    assert (first['first'], 4 <= second['first'] <= 6) == (1, True), 'what was saved after the signal is in S3 as well'
    assert [t['Status'] for t in job['SecondaryStatusTransitions']] == ['Starting', 'Downloading', 'Training', 'Interrupted', 'Starting', 'Downloading', 'Training', 'Uploading', 'Completed']
    assert job['BillableTimeInSeconds'] < job['TrainingTimeInSeconds']
    assert read(s3, 'checkpoints/spot/epoch') == b'8' and b'8' in tarfile.open(fileobj=io.BytesIO(read(s3, 'out/spot/output/model.tar.gz'))).extractfile('model.pth').read()


@pytest.mark.parametrize('hps, more, status', [
    (dict(deaf='1'), dict(StoppingCondition=dict(MaxRuntimeInSeconds=1)), ('Stopped', 'MaxRuntimeExceeded')), # does not listen: killed when the grace is over
    ({}, dict(StoppingCondition=dict(MaxRuntimeInSeconds=1, MaxWaitTimeInSeconds=1), EnableManagedSpotTraining=True), ('Stopped', 'MaxWaitTimeExceeded')),
], ids=['runtime', 'wait'])
def test_time_limits_end_a_job(aws, sm, faults, hps, more, status):
    name = status[1].lower()
    if 'Wait' in status[1]: faults(interrupt=[dict(job=name, after=.2, times=99)])
    began = time.monotonic()
    job = train(sm, name, hps=dict(epochs='1000', seconds='.1') | hps, **more)
    assert (job['TrainingJobStatus'], job['SecondaryStatus']) == status
    assert time.monotonic() - began < 30


def test_a_full_disk_fails_the_job_that_filled_it(aws, sm, faults):
    needs_namespaces(aws)
    faults(disk=[dict(job='fills', bytes=100_000)])
    assert 'exit code: 1' in train(sm, 'fills', hps=dict(bytes='200000'))['FailureReason']
    assert any('No space left on device' in l for l in lines(aws, 'fills'))


def test_an_aws_image_has_not_this_package_and_pip_stays_inside(aws, sm, s3, tmp_path):
    needs_namespaces(aws)
    wheel = tmp_path/'inner_only-1.0-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as z:
        for name, text in (('inner_only.py', 'x = 1'), ('inner_only-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: inner_only\nVersion: 1.0\n'), ('inner_only-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n'), ('inner_only-1.0.dist-info/RECORD', '')):
            z.writestr(name, text)
    s3.upload_file(str(wheel), 'bins', f'wheels/{wheel.name}')
    look = f'pip install -q --no-index /opt/ml/input/data/wheels/{wheel.name} && python -c "import inner_only, numpy; print(inner_only.__file__)"; python -c "import bin_counter.core" && echo FOUND; hostname; echo $$; touch /opt/ml/mine; true'
    for name, image, found in (('theirs', AWSS, False), ('ours', OURS, True)):
        job = train(sm, name, image=image, algorithm=dict(ContainerEntrypoint=['sh', '-c', look]), InputDataConfig=[channel('wheels')])
        printed = lines(aws, name)
        assert job['TrainingJobStatus'] == 'Completed', printed
        assert ('FOUND' in printed) == found and printed[-2:] == ['algo-1', '1']
        assert f'/{name}/' in printed[0]
    assert subprocess.run([sys.executable, '-c', 'import inner_only'], capture_output=True).returncode
    assert not Path('/opt/ml/mine').exists()


@pytest.mark.parametrize('mode', ['auto', 'folders'])
def test_the_classic_toolkit(mode, aws, tmp_path, monkeypatch, request):
    "AWS's own training toolkit, in namespaces and in plain folders, with a failure's text"
    pytest.importorskip('sagemaker_training', reason="AWS's toolkit is not installed: pip install sagemaker-training")
    own = aws
    if mode == 'folders':
        own = Emulator(tmp_path/'folders', mode='folders', settings=SETTINGS).__enter__()
        request.addfinalizer(lambda: own.__exit__(None, None, None))
        own.client('s3').create_bucket(Bucket='bins')
    elif aws.mode != 'namespaces': pytest.skip('this machine permits no namespaces')
    script = '''
import os, json
hps = json.loads(os.environ['SM_HPS'])
print(f'valid_loss {hps["lr"]}') # one text: the toolkit makes lines of the pieces that print would write
print(f"checkpoints in {os.environ.get('SM_CHECKPOINT_DIR', '/opt/ml/checkpoints')}")
if hps['lr'] > 1: raise ValueError('too fast')
open(os.path.join(os.environ['SM_MODEL_DIR'], 'model.pth'), 'w').write('w')
'''
    with tarfile.open(tmp_path/'sourcedir.tar.gz', 'w:gz') as t:
        (tmp_path/'train.py').write_text(script)
        t.add(tmp_path/'train.py', 'train.py')
    s3, sm, name = own.client('s3'), own.client('sagemaker'), f'classic-{mode}'
    s3.upload_file(str(tmp_path/'sourcedir.tar.gz'), 'bins', 'source/sourcedir.tar.gz')
    s3.put_object(Bucket='bins', Key='photos/0.jpg', Body=b'x')
    hps = dict(sagemaker_program='train.py', sagemaker_submit_directory='s3://bins/source/sourcedir.tar.gz', lr='2' if mode == 'folders' else '0.5')
    before = Path('/opt/ml').exists()
    job = train(sm, name, image=AWSS, hps=hps, InputDataConfig=[channel('photos')])
    assert Path('/opt/ml').exists() == before, 'the machine itself is left alone'
    printed = lines(own, name)
    place = next((l for l in printed if l.startswith('checkpoints in ')), '').removeprefix('checkpoints in ')
    assert place == '/opt/ml/checkpoints' if mode == 'auto' else place.startswith(str(own.work)), printed
    if mode == 'folders': assert 'ExecuteUserScriptError' in job['FailureReason'] and 'too fast' in job['FailureReason']
    else: assert job.get('FinalMetricDataList', [{}])[0].get('Value') == .5, (job, lines(own, name))


@pytest.mark.parametrize('hosts', [1, 2])
def test_the_stand_in_shows_a_script_what_the_toolkit_shows(aws, tmp_path, fakes, hosts):
    "The same job under AWS's toolkit and under ours, alone and under torchrun: variables, arguments and the text of a failure"
    own, theirs = [], None
    script = """
import json, os, sys
print('sees ' + json.dumps({k: v for k, v in os.environ.items() if k.startswith('SM_')} | dict(args=sys.argv[1:], world=os.environ.get('WORLD_SIZE'), rank=os.environ.get('RANK'), port=os.environ['MASTER_PORT'])))
if json.loads(os.environ['SM_HPS'])['lr'] > 1: raise ValueError('too fast')
open(os.path.join(os.environ['SM_MODEL_DIR'], 'model.pth'), 'w').write('w')
"""
    with tarfile.open(tmp_path/'sourcedir.tar.gz', 'w:gz') as t:
        (tmp_path/'train.py').write_text(script)
        t.add(tmp_path/'train.py', 'train.py')
    hps = dict(sagemaker_program='"train.py"', sagemaker_submit_directory='"s3://bins/source/sourcedir.tar.gz"', arch='"resnet18"', **(dict(sagemaker_torch_distributed_enabled='true') if hosts == 2 else {}))

    def run(toolkit):
        with Emulator(tmp_path/f'toolkit-{toolkit}', settings=SETTINGS | dict(toolkit=toolkit), images=fakes) as cloud:
            s3, sm = cloud.client('s3'), cloud.client('sagemaker')
            s3.create_bucket(Bucket='bins')
            s3.upload_file(str(tmp_path/'sourcedir.tar.gz'), 'bins', 'source/sourcedir.tar.gz')
            s3.put_object(Bucket='bins', Key='photos/0.jpg', Body=b'x')
            good, bad = (train(sm, n, hosts, image=AWSS, hps=hps | dict(lr=lr), InputDataConfig=[channel('photos')]) for n, lr in (('good', '0.5'), ('bad', '2')))
            return good, bad, sorted((json.loads(l[5:]) for l in lines(cloud, 'good') if l.startswith('sees ')), key=lambda seen: seen['SM_CURRENT_HOST'])

    good, bad, own = run(False)
    assert good['TrainingJobStatus'] == 'Completed' and len(own) == hosts
    assert 'ExecuteUserScriptError' in bad['FailureReason'] and 'too fast' in bad['FailureReason']
    if hosts == 2: assert {(seen['world'], seen['rank']) for seen in own} == {('2', '0'), ('2', '1')}
    pytest.importorskip('sagemaker_training', reason="AWS's toolkit is not installed: pip install sagemaker-training (it needs a C compiler)")
    good, bad, theirs = run(True)
    assert good['TrainingJobStatus'] == 'Completed' and 'ExecuteUserScriptError' in bad['FailureReason'] and 'too fast' in bad['FailureReason']
    for ours, aws_s in zip(own, theirs):
        apart = {k: (v, aws_s.get(k)) for k, v in ours.items() if aws_s.get(k) != v and k not in ('SM_OUTPUT_INTERMEDIATE_DIR',) and str(tmp_path) not in v}
        assert not apart


@pytest.fixture(scope='module')
def sdk(aws, tmp_path_factory):
    "SDK v3's ModelTrainer against the emulator"
    pytest.importorskip('sagemaker.train', reason="the SageMaker SDK is not installed: pip install 'bin_counter[aws]'")
    needs_namespaces(aws)
    source = tmp_path_factory.mktemp('source')
    (source/'train.py').write_text('''
import json, os
world = int(os.environ.get('WORLD_SIZE', 1))
if world > 1:
    import torch, torch.distributed as dist
    dist.init_process_group('gloo')
    t = torch.ones(1)
    dist.all_reduce(t)
    print('together', int(t), flush=True)
    dist.barrier() # rank 0 keeps the meeting point, so nobody leaves before all are done
    dist.destroy_process_group()
print('valid_loss', json.loads(os.environ['SM_HPS'])['lr'], os.listdir(os.environ['SM_CHANNEL_PHOTOS']))
open(os.path.join(os.environ['SM_MODEL_DIR'], 'model.pth'), 'w').write('w')
''')
    with aws.active():
        import boto3
        from sagemaker.core.helper.session_helper import Session
        from sagemaker.core.shapes import MetricDefinition
        from sagemaker.core.training.configs import Compute, InputData, OutputDataConfig, SourceCode, StoppingCondition
        from sagemaker.train import ModelTrainer
        from sagemaker.train.distributed import Torchrun
        aws.client('s3').put_object(Bucket='bins', Key='photos/0.jpg', Body=b'x')
        aws.client('iam').create_role(RoleName='bins', AssumeRolePolicyDocument=json.dumps(dict(Version='2012-10-17', Statement=[dict(Effect='Allow', Principal=dict(Service='sagemaker.amazonaws.com'), Action='sts:AssumeRole')])))
        session = Session(boto_session=boto3.Session(region_name='us-east-1'), default_bucket='bins')

        def fit(hosts):
            torchrun = Torchrun(process_count_per_node=1) if hosts > 1 else None
            trainer = ModelTrainer(sagemaker_session=session, role=ROLE, training_image=AWSS, base_job_name=f'sdk-{hosts}', source_code=SourceCode(source_dir=str(source), entry_script='train.py'), distributed=torchrun,
                                   compute=Compute(instance_type='ml.m5.large', instance_count=hosts, volume_size_in_gb=30), stopping_condition=StoppingCondition(max_runtime_in_seconds=300), hyperparameters=dict(lr=.25),
                                   output_data_config=OutputDataConfig(s3_output_path='s3://bins/out')).with_metric_definitions([MetricDefinition(name='valid:loss', regex='valid_loss ([0-9.]+)')])
            trainer.train(input_data_config=[InputData(channel_name='photos', data_source='s3://bins/photos')], wait=False, logs=False)
            return trainer._latest_training_job.training_job_name
        yield fit


@pytest.mark.parametrize('hosts', [1, 2])
def test_model_trainer_of_the_sdk(aws, sm, sdk, hosts):
    name = sdk(hosts)
    job = ended(sm, name)
    printed = lines(aws, name)
    assert job['TrainingJobStatus'] == 'Completed', (job.get('FailureReason'), '\n'.join(printed[-60:]))
    assert job['FinalMetricDataList'][0]['Value'] == .25
    assert sum('together 2' in l for l in printed) == (2 if hosts == 2 else 0)


# tuning and processing

def test_tuning_keeps_to_its_limits_and_can_be_stopped(aws, sm):
    objective, ranges = dict(Type='Minimize', MetricName='valid:loss'), dict(IntegerParameterRanges=[dict(Name='epochs', MinValue='2', MaxValue='9')])
    definition = {k: v for k, v in training('x', hps={}).items() if k not in ('TrainingJobName', 'HyperParameters')}
    sm.create_hyper_parameter_tuning_job(HyperParameterTuningJobName='search', TrainingJobDefinition=dict(definition, StaticHyperParameters=dict(seconds='.2')), HyperParameterTuningJobConfig=dict(
        Strategy='Bayesian', HyperParameterTuningJobObjective=objective, ParameterRanges=ranges, ResourceLimits=dict(MaxNumberOfTrainingJobs=50, MaxParallelTrainingJobs=2)))
    seen = []
    def done():
        said = sm.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName='search')
        seen.append(said['TrainingJobStatusCounters']['InProgress'])
        return said['TrainingJobStatusCounters']['Completed'] >= 2 and said
    said = wait_for(done)
    assert max(seen) == 2
    assert said['BestTrainingJob']['FinalHyperParameterTuningJobObjectiveMetric']['Value'] <= .5
    assert sm.describe_training_job(TrainingJobName=said['BestTrainingJob']['TrainingJobName'])['TuningJobArn'] == said['HyperParameterTuningJobArn']
    sm.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName='search')
    said = wait_for(lambda: (d := sm.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName='search'))['HyperParameterTuningJobStatus'] == 'Stopped' and d)
    assert said['TrainingJobStatusCounters']['Stopped'] >= 1 and said['TrainingJobStatusCounters']['InProgress'] == 0


def test_processing_uploads_while_it_runs_and_stops(aws, sm, s3):
    outputs = [dict(OutputName=n, S3Output=dict(S3Uri=f's3://bins/processed/{n}', LocalPath=f'/opt/ml/processing/{n}', S3UploadMode=m)) for n, m in (('live', 'Continuous'), ('late', 'EndOfJob'))]
    script = 'for d in live late; do echo 1 > /opt/ml/processing/$d/row; done; while true; do sleep .1; done'
    needs_namespaces(aws)
    sm.create_processing_job(**_processing('endless') | dict(AppSpecification=dict(ImageUri=OURS, ContainerEntrypoint=['sh', '-c', script]), ProcessingOutputConfig=dict(Outputs=outputs)))
    wait_for(lambda: keys(s3, 'processed/'))
    assert keys(s3, 'processed/') == ['processed/live/row']
    sm.stop_processing_job(ProcessingJobName='endless')
    wait_for(lambda: sm.describe_processing_job(ProcessingJobName='endless')['ProcessingJobStatus'] == 'Stopped')
    assert keys(s3, 'processed/') == ['processed/late/row', 'processed/live/row']


# endpoints

def archive(word):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode='w:gz') as t:
        info = tarfile.TarInfo('word')
        info.size = len(word)
        t.addfile(info, io.BytesIO(word.encode()))
    return b.getvalue()


@pytest.fixture(scope='module')
def models(aws):
    "Three models: first, second, and one whose server is never well"
    s3, sm = aws.client('s3'), aws.client('sagemaker')
    for word in ('first', 'second', 'sick'):
        s3.put_object(Bucket='bins', Key=f'models/{word}.tar.gz', Body=archive(word))
        sm.create_model(ModelName=word, PrimaryContainer=_container(f'models/{word}.tar.gz'), ExecutionRoleArn=ROLE)
        sm.create_endpoint_config(EndpointConfigName=word, ProductionVariants=[_variant(word, ContainerStartupHealthCheckTimeoutInSeconds=60)])


def endpoint(sm, name, config):
    sm.create_endpoint(EndpointName=name, EndpointConfigName=config)
    return wait_for(lambda: (d := sm.describe_endpoint(EndpointName=name))['EndpointStatus'] != 'Creating' and d)


@pytest.fixture(scope='module')
def counter(aws, models):
    "An endpoint that captures everything"
    sm = aws.client('sagemaker')
    capture = dict(EnableCapture=True, InitialSamplingPercentage=100, DestinationS3Uri='s3://bins/captured', CaptureOptions=[dict(CaptureMode='Input'), dict(CaptureMode='Output')], CaptureContentTypeHeader=dict(JsonContentTypes=['application/json']))
    sm.create_endpoint_config(EndpointConfigName='captured', ProductionVariants=[_variant('first')], DataCaptureConfig=capture)
    said = endpoint(sm, 'counter', 'captured')
    assert said['EndpointStatus'] == 'InService' and said['DataCaptureConfig']['CaptureStatus'] == 'Started'
    return aws.client('sagemaker-runtime', retries=dict(max_attempts=0))


def test_bytes_go_through_and_are_captured(aws, s3, counter):
    photo = bytes(range(256))*20
    said = counter.invoke_endpoint(EndpointName='counter', Body=photo, ContentType='image/jpeg', Accept='application/json', CustomAttributes='recorded=4', InferenceId='00100')
    answer = json.loads(said['Body'].read())
    assert (answer['bytes'], answer['sum'], answer['kind'], answer['accept']) == (len(photo), sum(photo) % 251, 'image/jpeg', 'application/json')
    assert (said['InvokedProductionVariant'], said['CustomAttributes'], said['ContentType']) == ('v', 'seen=recorded=4', 'application/json')
    for _ in range(2): counter.invoke_endpoint(EndpointName='counter', Body=b'{"url": ""}', ContentType='application/json')
    records = wait_for(lambda: (r := [json.loads(l) for k in keys(s3, 'captured/counter/v/') for l in read(s3, k).splitlines()]) and len(r) >= 3 and r)
    assert re.fullmatch(r'captured/counter/v/\d{4}/\d\d/\d\d/\d\d/\d\d-\d\d-\d{3}-[0-9a-f-]+\.jsonl', keys(s3, 'captured/counter/v/')[0])
    one = next(r for r in records if r['eventMetadata'].get('inferenceId') == '00100')
    assert one['captureData']['endpointInput']['encoding'] == 'BASE64' and one['captureData']['endpointOutput']['encoding'] == 'JSON'
    assert one['eventMetadata']['customAttributes'] == ['recorded=4'] and one['eventVersion'] == '0'


@pytest.mark.parametrize('body, code, status, original', [
    (b'status 415', 'ModelError', 424, 415), (b'status 400', 'ModelError', 424, 400), (b'status 503', 'ModelError', 424, 503), (b'sleep', 'ModelError', 424, 0), (b'x'*6_291_457, 'ValidationError', 413, None)],
    ids=['415', '400', '503', 'late', 'large'])
def test_errors_of_an_endpoint(counter, body, code, status, original):
    with pytest.raises(ClientError) as e: counter.invoke_endpoint(EndpointName='counter', Body=body, ContentType='image/jpeg')
    said = e.value.response
    assert (said['Error']['Code'], said['ResponseMetadata']['HTTPStatusCode'], said.get('OriginalStatusCode')) == (code, status, original)
    if original: assert 'as you wished' in said['OriginalMessage'] and f'error ({original}) from primary' in said['Error']['Message']


def test_the_largest_body_is_taken(counter):
    assert json.loads(counter.invoke_endpoint(EndpointName='counter', Body=b'x'*6_291_456, ContentType='image/jpeg')['Body'].read())['bytes'] == 6_291_456


def test_no_such_endpoint(counter):
    with pytest.raises(ClientError, match='Endpoint none of account 123456789012 not found') as e: counter.invoke_endpoint(EndpointName='none', Body=b'x')
    assert e.value.response['Error']['Code'] == 'ValidationError'


def test_an_update_loses_no_request(aws, sm, counter, models):
    "Four callers all the time, from one model to the other and, since the third is sick, no further"
    endpoint(sm, 'steady', 'first')
    words, errors, stop = [], [], threading.Event()
    def ask():
        while not stop.is_set():
            try: words.append(json.loads(counter.invoke_endpoint(EndpointName='steady', Body=b'photo')['Body'].read())['word'])
            except ClientError as e: errors.append(str(e))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4): pool.submit(ask)
        settled = lambda: (d := sm.describe_endpoint(EndpointName='steady'))['EndpointStatus'] == 'InService' and d
        try:
            sm.update_endpoint(EndpointName='steady', EndpointConfigName='second')
            said = wait_for(settled)
            assert said['EndpointConfigName'] == 'second'
            mark = len(words)
            wait_for(lambda: len(words) > mark + 20)
            assert set(words[mark + 10:]) == {'second'} and 'first' in words
        finally: stop.set()
    assert not errors
    sm.create_endpoint_config(EndpointConfigName='sick-soon', ProductionVariants=[_variant('sick')])
    sm.delete_endpoint(EndpointName='steady')


def test_a_fleet_that_is_not_well_is_taken_back(aws, fakes, tmp_path):
    "An endpoint that never comes up has failed; an update that never comes up leaves the old one"
    with Emulator(tmp_path, settings=SETTINGS | dict(start=1.5), images=fakes) as own:
        s3, sm = own.client('s3'), own.client('sagemaker')
        s3.create_bucket(Bucket='bins')
        for word in ('first', 'sick'):
            s3.put_object(Bucket='bins', Key=f'models/{word}.tar.gz', Body=archive(word))
            sm.create_model(ModelName=word, PrimaryContainer=_container(f'models/{word}.tar.gz'), ExecutionRoleArn=ROLE)
            sm.create_endpoint_config(EndpointConfigName=word, ProductionVariants=[_variant(word)])
        said = endpoint(sm, 'never', 'sick')
        assert said['EndpointStatus'] == 'Failed' and 'did not pass the ping health check' in said['FailureReason']
        endpoint(sm, 'counter', 'first')
        sm.update_endpoint(EndpointName='counter', EndpointConfigName='sick')
        said = wait_for(lambda: (d := sm.describe_endpoint(EndpointName='counter'))['EndpointStatus'] == 'InService' and d)
        assert said['EndpointConfigName'] == 'first' and 'ping health check' in said['FailureReason']
        assert json.loads(own.client('sagemaker-runtime').invoke_endpoint(EndpointName='counter', Body=b'x')['Body'].read())['word'] == 'first'


def test_an_alarm_takes_an_update_back(aws, sm, models):
    endpoint(sm, 'guarded', 'first')
    alarms = aws.client('cloudwatch')
    alarms.put_metric_alarm(AlarmName='guard', MetricName='Invocation5XXErrors', Namespace='AWS/SageMaker', Period=60, EvaluationPeriods=1, Threshold=1., ComparisonOperator='GreaterThanThreshold', Statistic='Sum')
    policy = dict(BlueGreenUpdatePolicy=dict(TrafficRoutingConfiguration=dict(Type='CANARY', CanarySize=dict(Type='CAPACITY_PERCENT', Value=20), WaitIntervalInSeconds=3600)), AutoRollbackConfiguration=dict(Alarms=[dict(AlarmName='guard')]))
    with pytest.raises(ClientError, match='Alarms not found: none'):
        sm.update_endpoint(EndpointName='guarded', EndpointConfigName='second', DeploymentConfig=policy | dict(AutoRollbackConfiguration=dict(Alarms=[dict(AlarmName='none')])))
    sm.update_endpoint(EndpointName='guarded', EndpointConfigName='second', DeploymentConfig=policy)
    runtime = aws.client('sagemaker-runtime')
    wait_for(lambda: json.loads(runtime.invoke_endpoint(EndpointName='guarded', Body=b'x')['Body'].read())['word'] == 'second')
    words = [json.loads(runtime.invoke_endpoint(EndpointName='guarded', Body=b'x')['Body'].read())['word'] for _ in range(20)]
    assert words.count('second') == 4
    alarms.set_alarm_state(AlarmName='guard', StateValue='ALARM', StateReason='a test')
    said = wait_for(lambda: (d := sm.describe_endpoint(EndpointName='guarded'))['EndpointStatus'] == 'InService' and d)
    assert said['EndpointConfigName'] == 'first' and 'guard' in said['FailureReason']
    sm.delete_endpoint(EndpointName='guarded')
    alarms.delete_alarms(AlarmNames=['guard'])


def test_a_server_that_dies_is_replaced(aws, sm, counter, models):
    endpoint(sm, 'mortal', 'first')
    with pytest.raises(ClientError, match=r'server error \(503\)'): counter.invoke_endpoint(EndpointName='mortal', Body=b'die')
    def again():
        try: return json.loads(counter.invoke_endpoint(EndpointName='mortal', Body=b'x')['Body'].read())
        except ClientError: return None
    assert wait_for(again)['word'] == 'first'
    sm.delete_endpoint(EndpointName='mortal')


def test_asynchronous_and_serverless(aws, sm, s3, models):
    "Answers and failures in S3, a message on a queue, and the smaller limit of serverless"
    sns, sqs, runtime = aws.client('sns'), aws.client('sqs'), aws.client('sagemaker-runtime')
    topic, queue = sns.create_topic(Name='done')['TopicArn'], sqs.create_queue(QueueName='done')['QueueUrl']
    sns.subscribe(TopicArn=topic, Protocol='sqs', Endpoint=sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=['QueueArn'])['Attributes']['QueueArn'])
    out = dict(S3OutputPath='s3://bins/later', S3FailurePath='s3://bins/failed', NotificationConfig=dict(SuccessTopic=topic, ErrorTopic=topic))
    sm.create_endpoint_config(EndpointConfigName='later', ProductionVariants=[_variant('first')], AsyncInferenceConfig=dict(OutputConfig=out))
    sm.create_endpoint_config(EndpointConfigName='less', ProductionVariants=[dict(VariantName='v', ModelName='first', ServerlessConfig=dict(MemorySizeInMB=2048, MaxConcurrency=2))])
    endpoint(sm, 'later', 'later')
    for name, body in (('good', b'x'*7_000_000), ('bad', b'status 415')): s3.put_object(Bucket='bins', Key=f'asked/{name}', Body=body)
    said = runtime.invoke_endpoint_async(EndpointName='later', InputLocation='s3://bins/asked/bad', ContentType='image/jpeg', InferenceId='7')
    assert said['ResponseMetadata']['HTTPStatusCode'] == 202 and said['InferenceId'] == '7'
    note = wait_for(lambda: sqs.receive_message(QueueUrl=queue).get('Messages'))[0]
    event = json.loads(json.loads(note['Body'])['Message'])
    assert event['invocationStatus'] == 'Failed' and event['inferenceId'] == '7'
    assert b'415' in read(s3, said['FailureLocation'].removeprefix('s3://bins/'))
    endpoint(sm, 'less', 'less')
    with pytest.raises(ClientError, match='the limit is 4194304'): runtime.invoke_endpoint(EndpointName='less', Body=b'x'*4_194_305)
    for name in ('later', 'less'): sm.delete_endpoint(EndpointName=name)


# pipelines and schedules

def test_a_pipeline_of_jobs_and_a_function(aws, sm, s3, tmp_path, models):
    "Processing writes a property file, a condition reads it, a Lambda function calls the cloud; two steps run side by side"
    needs_namespaces(aws)
    (tmp_path/'update.py').write_text('import boto3\ndef handler(event, context):\n    found = boto3.client("sagemaker").describe_model(ModelName=event["model"])\n    return dict(status=found["ModelName"], accuracy=event["accuracy"])\n')
    aws.lambdas(update=f'{tmp_path}/update.py:handler')
    report = 'echo "{\\"accuracy\\": {\\"value\\": 0.7}}" > /opt/ml/processing/report/evaluation.json; sleep 1'
    output = dict(Outputs=[dict(OutputName='report', S3Output=dict(S3Uri={'Std:Join': dict(On='/', Values=['s3://bins/reports', {'Get': 'Execution.PipelineExecutionId'}])}, LocalPath='/opt/ml/processing/report', S3UploadMode='EndOfJob'))])
    arguments = {k: v for k, v in _processing('x').items() if k != 'ProcessingJobName'} | dict(AppSpecification=dict(ImageUri=OURS, ContainerEntrypoint=['sh', '-c', report]), ProcessingOutputConfig=output)
    files = [dict(PropertyFileName='Report', OutputName='report', FilePath='evaluation.json')]
    steps = [dict(Name=n, Type='Processing', Arguments=arguments, PropertyFiles=files) for n in ('Evaluate', 'Beside')]
    value = {'Std:JsonGet': dict(PropertyFile={'Get': 'Steps.Evaluate.PropertyFiles.Report'}, Path='accuracy.value')}
    update = dict(Name='Update', Type='Lambda', FunctionArn='arn:aws:lambda:us-east-1:123456789012:function:update', Arguments=dict(model='first', accuracy=value), OutputParameters=[dict(OutputName='status', OutputType='String')])
    steps.append(dict(Name='Better', Type='Condition', Arguments=dict(Conditions=[dict(Type='GreaterThanOrEqualTo', LeftValue=value, RightValue={'Get': 'Parameters.Least'})], IfSteps=[update], ElseSteps=[])))
    definition = dict(Version='2020-12-01', Parameters=[dict(Name='Least', Type='Float', DefaultValue=.5)], Steps=steps)
    sm.create_pipeline(PipelineName='evaluate', RoleArn=ROLE, PipelineDefinition=json.dumps(definition), **TOKEN)
    with pytest.raises(ClientError, match='Unknown parameters: Most'): sm.start_pipeline_execution(PipelineName='evaluate', PipelineParameters=[dict(Name='Most', Value='1')], **TOKEN)
    arn = sm.start_pipeline_execution(PipelineName='evaluate', **TOKEN)['PipelineExecutionArn']
    said = wait_for(lambda: (d := sm.describe_pipeline_execution(PipelineExecutionArn=arn))['PipelineExecutionStatus'] != 'Executing' and d)
    done = {s['StepName']: s for s in sm.list_pipeline_execution_steps(PipelineExecutionArn=arn)['PipelineExecutionSteps']}
    assert said['PipelineExecutionStatus'] == 'Succeeded', done
    assert done['Update']['Metadata']['Lambda']['OutputParameters'] == [dict(Name='status', Value='first')]
    assert done['Beside']['StartTime'] < done['Evaluate']['EndTime'] and done['Better']['Metadata']['Condition']['Outcome'] == 'True'
    assert [e['PipelineExecutionStatus'] for e in sm.list_pipeline_executions(PipelineName='evaluate')['PipelineExecutionSummaries']] == ['Succeeded']


def test_a_pipeline_is_stopped_with_its_job(aws, sm):
    arguments = {k: v for k, v in training('x', hps=dict(epochs='1000', seconds='.1')).items() if k != 'TrainingJobName'}
    sm.create_pipeline(PipelineName='long', RoleArn=ROLE, PipelineDefinition=json.dumps(dict(Version='2020-12-01', Steps=[dict(Name='Train', Type='Training', Arguments=arguments)])), **TOKEN)
    arn = sm.start_pipeline_execution(PipelineName='long', **TOKEN)['PipelineExecutionArn']
    step = lambda: next(iter(sm.list_pipeline_execution_steps(PipelineExecutionArn=arn)['PipelineExecutionSteps']), {})
    name = wait_for(lambda: step().get('Metadata'))['TrainingJob']['Arn'].split('/')[-1]
    wait_for(lambda: sm.describe_training_job(TrainingJobName=name)['SecondaryStatus'] == 'Training')
    sm.stop_pipeline_execution(PipelineExecutionArn=arn, **TOKEN)
    wait_for(lambda: sm.describe_pipeline_execution(PipelineExecutionArn=arn)['PipelineExecutionStatus'] == 'Stopped')
    assert step()['StepStatus'] == 'Stopped' and ended(sm, name)['TrainingJobStatus'] == 'Stopped'


def test_a_schedule_runs_when_asked(aws, sm, s3, counter):
    needs_namespaces(aws)
    counter.invoke_endpoint(EndpointName='counter', Body=b'photo', ContentType='image/jpeg')
    wait_for(lambda: keys(s3, 'captured/counter/'))
    job = dict(RoleArn=ROLE, MonitoringInputs=[dict(EndpointInput=dict(EndpointName='counter', LocalPath='/opt/ml/processing/captured'))], MonitoringResources=dict(ClusterConfig=dict(InstanceCount=1, InstanceType='ml.m5.large', VolumeSizeInGB=9)),
               MonitoringAppSpecification=dict(ImageUri=OURS, ContainerEntrypoint=['sh', '-c', 'cat $(find $dataset_source -name "*.jsonl") | wc -l > $output_path/lines']),
               MonitoringOutputConfig=dict(MonitoringOutputs=[dict(S3Output=dict(S3Uri='s3://bins/monitored', LocalPath='/opt/ml/processing/out'))]))
    sm.create_monitoring_schedule(MonitoringScheduleName='hourly', MonitoringScheduleConfig=dict(ScheduleConfig=dict(ScheduleExpression='cron(0 * ? * * *)'), MonitoringJobDefinition=job))
    assert sm.list_monitoring_executions(MonitoringScheduleName='hourly')['MonitoringExecutionSummaries'] == []
    assert 'hourly' in [r['name'] for r in aws.inventory()['resources'] if r['billable']]
    assert aws.run_schedule('hourly').startswith('model-monitoring-')
    wait_for(lambda: sm.list_monitoring_executions(MonitoringScheduleName='hourly')['MonitoringExecutionSummaries'][0]['MonitoringExecutionStatus'] == 'Completed')
    assert int(read(s3, 'monitored/lines')) >= 1
    sm.delete_monitoring_schedule(MonitoringScheduleName='hourly')
    assert sm.list_monitoring_schedules()['MonitoringScheduleSummaries'] == []


# faults

@pytest.mark.parametrize('service, operation, params, code', [
    ('s3', 'get_object', dict(Bucket='bins', Key='k'), 'AccessDenied'), ('sagemaker', 'list_models', {}, 'AccessDeniedException'), ('iam', 'list_roles', {}, 'AccessDenied'), ('cloudwatch', 'describe_alarms', {}, 'AccessDeniedException'),
    ('logs', 'describe_log_groups', {}, 'AccessDeniedException'), ('sagemaker-runtime', 'invoke_endpoint', dict(EndpointName='counter', Body=b''), 'AccessDeniedException'), ('sts', 'get_caller_identity', {}, 'AccessDenied')])
def test_access_is_denied_in_every_dialect(aws, faults, service, operation, params, code):
    action = {'sagemaker-runtime': 'sagemaker'}.get(service, service) + ':' + ''.join(w.title() for w in operation.split('_'))
    faults(deny=[action])
    with pytest.raises(ClientError, match=f'not authorized to perform: {action}') as e: getattr(aws.client(service), operation)(**params)
    assert e.value.response['Error']['Code'] == code
    said = aws.client('iam').simulate_principal_policy(PolicySourceArn=ROLE, ActionNames=[action, 's3:GetBucketLocation'])['EvaluationResults']
    assert [r['EvalDecision'] for r in said] == ['implicitDeny', 'allowed']


@pytest.mark.parametrize('fault, code', [(dict(throttle=dict(actions=['sagemaker:ListModels'])), 'ThrottlingException'), (dict(expire=dict(after=0)), 'ExpiredTokenException')])
def test_requests_can_be_throttled_and_credentials_expire(aws, faults, fault, code):
    faults(**fault)
    with pytest.raises(ClientError) as e: aws.client('sagemaker', retries=dict(max_attempts=0)).list_models()
    assert e.value.response['Error']['Code'] == code


@pytest.mark.parametrize('status, code', [(503, 'SlowDown'), (500, 'InternalError')])
def test_s3_fails_as_often_as_asked(aws, faults, status, code):
    faults(s3=dict(rate=1, status=status, times=2, actions=['s3:PutObject']))
    hasty, patient = aws.client('s3', retries=dict(max_attempts=0)), aws.client('s3')
    with pytest.raises(ClientError, match=code): hasty.put_object(Bucket='bins', Key='faulty', Body=b'x'*100_000)
    patient.put_object(Bucket='bins', Key='faulty', Body=b'whole') # one more failure, then it succeeds
    assert read(patient, 'faulty') == b'whole'


@pytest.mark.parametrize('given, said', [(dict(rain=1), 'no such fault: rain'), (dict(deny='s3:*'), 'a list is wanted'), (dict(interrupt=[dict(job='a')]), 'after how many seconds'), (dict(disk=[dict(job='a')]), 'how many bytes'), (dict(s3=dict(rat=1)), 'unknown rat')])
def test_a_misspelled_fault_is_refused(aws, given, said):
    with pytest.raises(ConfigError, match=said): aws.faults(**given)


# inventory and the end

def test_the_inventory_knows_what_costs_money(aws, sm, models):
    def mine(): return {r['name']: r['why'] for r in aws.inventory()['resources'] if r['billable'] and r['service'] == 'sagemaker' and 'priced' in r['name']}
    endpoint(sm, 'priced', 'first')
    sm.create_training_job(**training('priced-job', hps=dict(epochs='1000')))
    assert mine() == {'priced': '1 x ml.m5.large, by the second', 'priced-job': '1 x ml.m5.large, by the second'}
    sm.delete_endpoint(EndpointName='priced')
    sm.stop_training_job(TrainingJobName='priced-job')
    ended(sm, 'priced-job')
    assert mine() == {}
    names = {(r['service'], r['kind'], r['name']) for r in aws.inventory()['resources']}
    assert {('s3', 'Buckets', 'bins'), ('logs', 'logGroups', '/aws/sagemaker/TrainingJobs'), ('sagemaker', 'Model', 'first')} <= names


def processes(word): return [p for p in Path('/proc').glob('[0-9]*') if word in (p/'cmdline').read_text(errors='replace')] if Path('/proc').is_dir() else []


@pytest.mark.parametrize('how', ['closed', 'killed'])
def test_nothing_outlives_the_emulator(fakes, tmp_path, how):
    "Neither when it is told to end nor when it is killed"
    def alive():
        try: return processes(str(tmp_path))
        except OSError: return alive() # one of them ended while we looked
    own = Emulator(tmp_path/'own', settings=SETTINGS, images=fakes).__enter__()
    if how == 'killed': needs_namespaces(own)
    try:
        own.client('s3').create_bucket(Bucket='bins')
        sm = own.client('sagemaker')
        sm.create_training_job(**training('outlive', hps=dict(epochs='1000', deaf='1')))
        wait_for(lambda: sm.describe_training_job(TrainingJobName='outlive')['SecondaryStatus'] == 'Training' and len(alive()) > 1)
        if how == 'killed': own.process.kill()
    finally: own.__exit__(None, None, None)
    wait_for(lambda: not alive(), 10, 'the processes to go')


def test_it_says_why_it_does_not_start(aws, tmp_path):
    taken = subprocess.run([sys.executable, '-m', 'bin_counter.emulator', '--port', aws.url.rsplit(':', 1)[1], '--work', tmp_path], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))
    assert taken.returncode and 'in use' in taken.stderr and 'Traceback' not in taken.stderr
    with pytest.raises(ConfigError, match="choose 'auto'"): Emulator(tmp_path/'mode', mode='docker').__enter__()


# the project's own entry points

def test_our_own_training_and_server(aws, sm, s3, bins, split, tmp_path):
    "One epoch on drawn bins under AWS's toolkit, then the model behind an endpoint"
    pytest.importorskip('sagemaker_training', reason="AWS's toolkit is not installed: pip install sagemaker-training")
    for part in ('fastai', 'fastapi', 'onnxruntime'): pytest.importorskip(part)
    from bin_counter.package import build_package
    for p in [*bins.rglob('*.jp*g'), *bins.rglob('*.json'), *bins.glob('*.csv')]: s3.upload_file(str(p), 'bins', f'data/{p.relative_to(bins)}')
    s3.upload_file(str(split/'splits.csv'), 'bins', 'splits-own/splits.csv')
    with tarfile.open(tmp_path/'sourcedir.tar.gz', 'w:gz') as t:
        (tmp_path/'run.py').write_text('from bin_counter.train import main\nmain()\n')
        t.add(tmp_path/'run.py', 'run.py')
    s3.upload_file(str(tmp_path/'sourcedir.tar.gz'), 'bins', 'source-own/sourcedir.tar.gz')
    hps = dict(sagemaker_program='run.py', sagemaker_submit_directory='s3://bins/source-own/sourcedir.tar.gz', arch='squeezenet1_1', weights='none', size='32', epochs='1', batch_size='32')
    data, splits = channel('data'), dict(channel('splits-own'), ChannelName='splits')
    job = train(sm, 'own', image=OURS, hps=hps, InputDataConfig=[data, splits])
    assert job['TrainingJobStatus'] == 'Completed', (job.get('FailureReason'), lines(aws, 'own')[-15:])
    with tarfile.open(fileobj=io.BytesIO(read(s3, 'out/own/output/model.tar.gz'))) as t: unpack_tar(t, tmp_path/'run')
    build_package(tmp_path/'run', tmp_path/'model.tar.gz')
    s3.upload_file(str(tmp_path/'model.tar.gz'), 'bins', 'models/own.tar.gz')
    sm.create_model(ModelName='own', PrimaryContainer=dict(Image=OURS, ModelDataUrl='s3://bins/models/own.tar.gz'), ExecutionRoleArn=ROLE)
    sm.create_endpoint_config(EndpointConfigName='own', ProductionVariants=[_variant('own')])
    said = endpoint(sm, 'own', 'own')
    assert said['EndpointStatus'] == 'InService', said
    photo = next(bins.rglob('*.jp*g')).read_bytes()
    answer = aws.client('sagemaker-runtime').invoke_endpoint(EndpointName='own', Body=photo, ContentType='image/jpeg', CustomAttributes='recorded=3')
    assert json.loads(answer['Body'].read())['recorded'] == 3
    sm.delete_endpoint(EndpointName='own')


def test_objects_of_another_process_come_over_http_and_own_ones_by_hand(s3, tmp_path, monkeypatch):
    "The emulator is another process here, so nothing of it lies in this one"
    from bin_counter import emulated_container as C
    s3.put_object(Bucket='bins', Key='far/a/1.jpg', Body=b'photo')
    source = dict(S3Uri='s3://bins/far/')
    assert C._own('bins', 'far/a/1.jpg') is None
    assert C.download(s3, source, tmp_path/'http') == 1 and (tmp_path/'http/a/1.jpg').read_bytes() == b'photo'
    monkeypatch.setattr(C, '_own', lambda bucket, key: f'{bucket}/{key}'.encode())
    C.download(s3, source, tmp_path/'hand')
    assert (tmp_path/'hand/a/1.jpg').read_bytes() == b'bins/far/a/1.jpg'
