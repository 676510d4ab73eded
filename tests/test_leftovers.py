"Everything of a project is found, priced and removed, whatever happens in between; what belongs to others stays."
import io, json, os, subprocess, sys, tarfile, zipfile
from pathlib import Path

import pytest

pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")

from bin_counter.cloud import CloudError
from bin_counter.ec2 import EC2_PRICES
from bin_counter.emulator import Emulator
from bin_counter.endpoints import autoscale, deploy, update
from bin_counter.leftovers import project_status, project_teardown
from bin_counter.prices import PRICES
from emulated import ACCOUNT, CLIENTS, ROLE, at, quiet, wait_for

ROOT = Path(__file__).parents[1]
SETTINGS = dict(grace=.5, pace=.002, sync=.2, capture=.1, start=20)
IMAGE = f'{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/bin-counter:1'
TOKEN = dict(ClientRequestToken='x'*32)

SERVER = '''
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Fake(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()
    def log_message(self, *args): pass
ThreadingHTTPServer(('127.0.0.1', int(os.environ['SAGEMAKER_BIND_TO_PORT'])), Fake).serve_forever()
'''


@pytest.fixture(scope='module')
def aws(tmp_path_factory):
    out = tmp_path_factory.mktemp('aws')
    (out/'server.py').write_text(SERVER)
    forever = ['python', '-c', 'import time; print("begins", flush=True); time.sleep(999)']
    images = {'*bin-counter*': dict(serve=['python', str(out/'server.py')], train=forever, process=forever)}
    with Emulator(out/'work', settings=SETTINGS, images=images) as aws, aws.active():
        CLIENTS.clear()
        yield aws


@pytest.fixture
def faults(aws):
    yield aws.faults
    aws.faults(**dict.fromkeys(('throttle', 'expire', 'deny')))


@pytest.fixture
def package(tmp_path):
    with tarfile.open(tmp_path/'model.tar.gz', 'w:gz') as t: t.addfile(tarfile.TarInfo('word'), io.BytesIO())
    return tmp_path/'model.tar.gz'




HISTORY = ('TrainingJob', 'ProcessingJob', 'TransformJob', 'HyperParameterTuningJob', 'PipelineExecution') # cannot be deleted on AWS either


def of(aws, project):
    "What there is with the project's name, but for what has ended and stays in AWS's lists"
    found = [r for r in aws.inventory()['resources'] if project.name in r['name']]
    return {(r['kind'], r['name']) for r in found if r['billable'] or r['kind'] not in HISTORY}


def train(project, name, **more):
    return dict(TrainingJobName=name, RoleArn=ROLE, AlgorithmSpecification=dict(TrainingImage=IMAGE, TrainingInputMode='File'), OutputDataConfig=dict(S3OutputPath=project.uri('jobs')),
                ResourceConfig=dict(InstanceType='ml.m5.large', InstanceCount=1, VolumeSizeInGB=10), StoppingCondition=dict(MaxRuntimeInSeconds=900)) | more


def everything(aws, project, package):
    "One of each kind"
    sm, tags, n = aws.client('sagemaker'), project.tags, project.name
    deploy(project, package, quiet(project), capture=100)
    autoscale(project, quiet(project))
    update(project, aws=quiet(project), bake=60, capture=50) # alarms, and a second configuration
    sm.create_training_job(**train(project, f'{n}-train'), Tags=tags)
    sm.create_processing_job(ProcessingJobName=f'{n}-evaluate', RoleArn=ROLE, AppSpecification=dict(ImageUri=IMAGE, ContainerEntrypoint=['sleep', '999']), ProcessingResources=dict(ClusterConfig=dict(InstanceCount=2, InstanceType='ml.m5.large', VolumeSizeInGB=9)), Tags=tags)
    definition = {k: v for k, v in train(project, 'x').items() if k != 'TrainingJobName'}
    definition['AlgorithmSpecification'] |= dict(MetricDefinitions=[dict(Name='l', Regex='l ([0-9.]+)')])
    sm.create_hyper_parameter_tuning_job(HyperParameterTuningJobName=f'{n}-tune', TrainingJobDefinition=definition, HyperParameterTuningJobConfig=dict(
        Strategy='Random', HyperParameterTuningJobObjective=dict(Type='Minimize', MetricName='l'), ParameterRanges=dict(IntegerParameterRanges=[dict(Name='e', MinValue='1', MaxValue='9')]), ResourceLimits=dict(MaxNumberOfTrainingJobs=3, MaxParallelTrainingJobs=1)), Tags=tags)
    step = dict(Name='Train', Type='Training', Arguments={k: v for k, v in train(project, 'x', Tags=tags).items() if k != 'TrainingJobName'})
    sm.create_pipeline(PipelineName=project.pipeline, RoleArn=ROLE, PipelineDefinition=json.dumps(dict(Version='2020-12-01', Steps=[step])), **TOKEN, Tags=tags)
    sm.start_pipeline_execution(PipelineName=project.pipeline, **TOKEN)
    sm.create_model_package_group(ModelPackageGroupName=project.package_group, Tags=tags)
    sm.create_model_package(ModelPackageGroupName=project.package_group, InferenceSpecification=dict(Containers=[dict(Image=IMAGE)], SupportedContentTypes=['image/jpeg'], SupportedResponseMIMETypes=['application/json']))
    schedule(aws, project)
    moto(aws, project)


def schedule(aws, project):
    "A schedule whose hour has come"
    aws.client('s3').put_object(Bucket=project.bucket, Key=f'captured/{project.endpoint}/counter/2026/11/21/22/00-00-000-1.jsonl', Body=b'{}')
    job = dict(RoleArn=ROLE, MonitoringInputs=[dict(EndpointInput=dict(EndpointName=project.endpoint, LocalPath='/opt/ml/processing/captured'))], MonitoringResources=dict(ClusterConfig=dict(InstanceCount=1, InstanceType='ml.m5.large', VolumeSizeInGB=9)),
               MonitoringAppSpecification=dict(ImageUri=IMAGE, ContainerEntrypoint=['sleep', '999']), MonitoringOutputConfig=dict(MonitoringOutputs=[dict(S3Output=dict(S3Uri=project.uri('monitor'), LocalPath='/opt/ml/processing/out'))]))
    aws.client('sagemaker').create_monitoring_schedule(MonitoringScheduleName=project.schedule, MonitoringScheduleConfig=dict(ScheduleConfig=dict(ScheduleExpression='cron(0 * ? * * *)'), MonitoringJobDefinition=job), Tags=project.tags)
    aws.run_schedule(project.schedule)


def moto(aws, project):
    "A rule, a timer, a function, a topic, a machine"
    code = io.BytesIO()
    with zipfile.ZipFile(code, 'w') as z: z.writestr('a.py', 'def handler(event, context): pass')
    plain = {t['Key']: t['Value'] for t in project.tags}
    made = aws.client('lambda').create_function(FunctionName=project.promoter, Runtime='python3.13', Role=ROLE, Handler='a.handler', Code=dict(ZipFile=code.getvalue()), Tags=plain)
    aws.client('events').put_rule(Name=f'{project.name}-weekly', ScheduleExpression='rate(7 days)', Tags=project.tags)
    aws.client('events').put_targets(Rule=f'{project.name}-weekly', Targets=[dict(Id='1', Arn=made['FunctionArn'])])
    aws.client('scheduler').create_schedule_group(Name=f'{project.name}-monitor', Tags=project.tags)
    aws.client('scheduler').create_schedule(Name=f'{project.name}-monitor', GroupName=f'{project.name}-monitor', ScheduleExpression='rate(1 day)', FlexibleTimeWindow=dict(Mode='OFF'), Target=dict(Arn=made['FunctionArn'], RoleArn=ROLE))
    aws.client('sns').create_topic(Name=f'{project.name}-alarms', Tags=project.tags)
    aws.client('ec2').run_instances(ImageId='ami-12c6146b', MinCount=1, MaxCount=1, InstanceType='c5.xlarge', TagSpecifications=[dict(ResourceType=t, Tags=project.tags) for t in ('instance', 'volume')])


@pytest.fixture(scope='module', autouse=True)
def role(aws):
    aws.client('iam').create_role(RoleName='bins', AssumeRolePolicyDocument=json.dumps(dict(Version='2012-10-17', Statement=[dict(Effect='Allow', Principal=dict(Service='lambda.amazonaws.com'), Action='sts:AssumeRole')])))


# ---------------------------------------------------------------- everything

KINDS = ['AWS::ApplicationAutoScaling::ScalableTarget', 'AWS::CloudWatch::Alarm', 'AWS::EC2::Instance', 'AWS::Events::Rule', 'AWS::Lambda::Function', 'AWS::Logs::LogGroup', 'AWS::Logs::LogStream', 'AWS::S3::Bucket', 'AWS::SNS::Topic', 'AWS::Scheduler::ScheduleGroup', *(f'AWS::SageMaker::{k}' for k in (
    'Endpoint', 'EndpointConfig', 'HyperParameterTuningJob', 'Model', 'ModelPackage', 'ModelPackageGroup', 'MonitoringSchedule', 'Pipeline', 'PipelineExecution', 'ProcessingJob', 'TrainingJob'))]


def test_everything_is_found_priced_and_removed(aws, package):
    "One of each kind, beside somebody else's"
    project, theirs = at('whole'), at('whole-not')
    aws.client('s3').create_bucket(Bucket='somebodys')
    aws.client('sagemaker').create_model(ModelName='whole-of-another', PrimaryContainer=dict(Image=IMAGE), ExecutionRoleArn=ROLE)
    moto(aws, theirs)
    others = {(r['kind'], r['name']) for r in aws.inventory()['resources']}
    everything(aws, project, package)
    running = lambda kind: [r for r in project_status(project, quiet(project)).resources if r.kind == f'AWS::SageMaker::{kind}']
    wait_for(lambda: len(running('TrainingJob')) == 3 and len(running('ProcessingJob')) == 2, why='jobs of the search, the pipeline and the schedule')

    status = project_status(project, quiet(project))
    assert sorted({r.kind for r in status.resources}) == sorted(KINDS)
    assert not [r for r in status.resources if 'whole-' not in r.name and not r.name.startswith('i-') and 'model-monitoring' not in r.name and '/aws/sagemaker/' not in r.name and 'pipelines-' not in r.name], status
    hour = PRICES['sagemaker.ml.c5.large'].usd + 6*PRICES['sagemaker.ml.m5.large'].usd + 3*PRICES['alarm.month'].usd/730 + EC2_PRICES['ec2.c5.xlarge'].usd # three trainings, two processings of which one has two machines
    assert status.usd_hour == pytest.approx(hour, abs=1e-4)
    assert {'in service, 1 machine', 'in progress', '2 objects'} <= {r.state.rsplit(', ', 1)[0] if 'bytes' in r.state else r.state for r in status.resources}

    said = []
    plan = project_teardown(project, quiet(project, said), dry_run=True)
    assert str(plan).startswith('would stop or remove') and len(plan.removed) == len(status.resources) and not said
    assert project_status(project, quiet(project)).usd_hour == pytest.approx(hour, abs=1e-4)

    done = project_teardown(project, quiet(project, said))
    assert 'nothing with its tag is left' in str(done) and set(plan.removed) <= set(done.removed)
    first = lambda word: next(i for i, line in enumerate(said) if word in line)
    assert first('removing rule') < first('stopping training job') < first('removing monitoring schedule') < first('removing endpoint ') < first('removing endpoint config') < first('removing model ') < first('removing bucket')
    assert {(r['kind'], r['name']) for r in aws.inventory()['resources'] if r['kind'] not in HISTORY and not r['name'].startswith('/aws/sagemaker/')} == others
    assert aws.inventory()['billable'] == 0, [r for r in aws.inventory()['resources'] if r['billable']]
    again = project_teardown(project, quiet(project))
    assert again.removed == () and 'there was nothing' in str(again) and str(project_status(project, quiet(project))).endswith('nothing is there')
    assert aws.client('scheduler').list_schedules()['Schedules'][0]['Name'] == 'whole-not-monitor'
    project_teardown(theirs, quiet(theirs))
    assert not [i for r in aws.client('ec2').describe_instances()['Reservations'] for i in r['Instances'] if i['State']['Name'] == 'running']


@pytest.mark.parametrize('hosting', [dict(), dict(kind='serverless'), dict(kind='async', count=2)], ids=lambda h: h.get('kind', 'realtime'))
def test_each_kind_of_endpoint_is_priced_and_goes(aws, package, hosting):
    project = at(f'kind-{hosting.get("kind", "real")}')
    done = deploy(project, package, quiet(project), **hosting)
    machines = 0 if hosting.get('kind') == 'serverless' else hosting.get('count', 1)
    status = project_status(project, quiet(project))
    assert status.usd_hour == pytest.approx(machines*.102, abs=1e-4) and done.usd_hour == pytest.approx(machines*.102)
    kept = project_teardown(project, quiet(project), keep_data=True)
    assert [l.split()[0] for l in kept.left] == ['S3::Bucket'] and kept.usd_hour < .001
    assert of(aws, project) == {('Buckets', project.bucket)}
    project_teardown(project, quiet(project))
    assert of(aws, project) == set()


# ---------------------------------------------------------------- what goes wrong

KILLED = '''
import os, sys
from bin_counter.cloud import Asker
from bin_counter.endpoints import deploy
from bin_counter.leftovers import project_teardown
from bin_counter.plans import Project
def say(line):
    if sys.argv[2] in line: os.kill(os.getpid(), 9)
project, aws = Project(sys.argv[1], account='123456789012', role=sys.argv[3]), Asker('us-east-1', None, say, .05)
deploy(project, sys.argv[4], aws) if sys.argv[4:] else project_teardown(project, aws)
'''

def killed(project, line, *more):
    out = subprocess.run([sys.executable, '-c', KILLED, project.name, line, ROLE, *map(str, more)], env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert out.returncode == -9, out.stderr


def test_a_teardown_that_is_killed_again_and_again_ends(aws, package):
    project = at('killed')
    deploy(project, package, quiet(project))
    aws.client('sagemaker').create_training_job(**train(project, 'killed-train'), Tags=project.tags)
    moto(aws, project)
    sizes = [len(of(aws, project))]
    for line in ('stopping training job', 'removing endpoint config', 'removing bucket'):
        killed(project, line)
        sizes.append(len(of(aws, project)))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 1, 'the bucket is the last: its tag is what a second run finds'
    project_teardown(project, quiet(project))
    assert of(aws, project) == set()


@pytest.mark.parametrize('line', ['the configuration', 'creating'])
def test_a_deployment_that_was_killed_is_removed(aws, package, line):
    project = at(f'cut-{line[:3]}')
    killed(project, line, package)
    assert of(aws, project)
    project_teardown(project, quiet(project))
    assert of(aws, project) == set()


def test_a_missing_right_is_named_and_keeps_nothing_else(aws, package, faults):
    project = at('denied')
    deploy(project, package, quiet(project))
    faults(deny=['logs:DeleteLogGroup', 'events:ListRules'])
    assert 'you need events:ListRules' in project_status(project, quiet(project)).outputs['not looked at']
    with pytest.raises(CloudError) as e: project_teardown(project, quiet(project))
    assert 'you need logs:DeleteLogGroup' in str(e.value) and '1 are left' in str(e.value) and '\n' not in str(e.value)
    assert of(aws, project) == {('logGroups', f'/aws/sagemaker/Endpoints/{project.endpoint}')}
    faults(deny=['sagemaker:ListEndpoints'])
    with pytest.raises(CloudError, match='you need sagemaker:ListEndpoints'): project_status(project, quiet(project))
    faults(deny=None)
    project_teardown(project, quiet(project))
    assert of(aws, project) == set()


def test_credentials_that_run_out_end_it_and_the_next_run_goes_on(aws, package, faults):
    project = at('expired')
    deploy(project, package, quiet(project))
    def say(line):
        if 'removing endpoint ' in line: faults(expire=dict(after=0))
    with pytest.raises(CloudError) as e: project_teardown(project, quiet(project, say=say))
    assert 'sign in first' in str(e.value) and '\n' not in str(e.value)
    faults(expire=None)
    project_teardown(project, quiet(project))
    assert of(aws, project) == set()


def test_a_busy_moment_is_waited_out(aws, package, faults):
    project = at('patient')
    deploy(project, package, quiet(project))
    faults(throttle=dict(actions=['sagemaker:*'], rate=.1, times=8))
    project_teardown(project, quiet(project))
    assert of(aws, project) == set()


def test_what_appears_meanwhile_is_swept_too(aws):
    project, sm = at('sudden'), aws.client('sagemaker')
    sm.create_model(ModelName='sudden-model', PrimaryContainer=dict(Image=IMAGE), ExecutionRoleArn=ROLE, Tags=project.tags)
    def say(line):
        if 'removing model sudden-model' in line: sm.create_training_job(**train(project, 'sudden-train'), Tags=project.tags)
    done = project_teardown(project, quiet(project, say=say))
    assert {'model sudden-model', 'training job sudden-train'} <= set(done.removed) and of(aws, project) == set()


def test_a_bucket_of_yours_is_never_emptied(aws, package):
    "Nor is it listed: it has no tag of ours"
    s3 = aws.client('s3')
    s3.create_bucket(Bucket='yours-bucket')
    project = at('guest', bucket='yours-bucket')
    deploy(project, package, quiet(project))
    project_teardown(project, quiet(project))
    assert s3.list_objects_v2(Bucket='yours-bucket')['KeyCount'] == 1 and {k for k, _ in of(aws, project)} == set()
