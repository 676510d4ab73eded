"Training and searching on the emulated AWS, through SageMaker's own SDK, with every fault that costs people an evening."
import io, json, os, re, subprocess, sys, tarfile
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")

from bin_counter.cloud import Asker, CloudError, fill
from bin_counter.core import read_json
from bin_counter.emulator import Emulator
from bin_counter.jobs import Job, best_job, check_rights, put_source, run_training, run_tuning, stop_job, tuning_results, tuning_table, watch, without_classic
from bin_counter.plans import Machines, Project, planned_cost, processing_plan, training_plan
from bin_counter.report import job_report
from bin_counter.source import PINS
from bin_counter.upload import upload_split

SLOW = os.environ.get('BIN_COUNTER_SLOW') == '1'
slow = pytest.mark.skipif(not SLOW, reason='takes minutes: set BIN_COUNTER_SLOW=1')
ROLE = 'arn:aws:iam::123456789012:role/bins'
PROJECT = Project('bins', role=ROLE)
TINY = dict(arch='squeezenet1_1', weights='none', trained='all', size=32, epochs=1, batch_size=32)
SMALL = Machines('ml.m5.large', max_hours=.2, hours=.1)
TWO = Machines('ml.m5.large', 2, max_hours=.2, hours=.1)
SETTINGS = dict(grace=3, pace=.02, sync=.2, spot_wait=10)


TRAINER = '''
import json, os, pathlib, signal, sys, time
ml = pathlib.Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'))
hps, config = (json.loads((ml/'input/config'/f'{n}.json').read_text()) for n in ('hyperparameters', 'resourceconfig'))
saved, stop, mood = ml/'checkpoints/epoch', [], os.environ.get('MOOD', '')
signal.signal(signal.SIGTERM, lambda *a: stop.append(1))
first = int(saved.read_text()) + 1 if saved.exists() else 1
print('noise that nobody wants to read', flush=True)
if first > 1: print(f'resuming after epoch {first - 1} of {hps["epochs"]}', flush=True)
for epoch in range(first, int(hps['epochs']) + 1):
    time.sleep(.15)
    print(f'epoch {epoch}/{hps["epochs"]}  train_loss {2/epoch:.4f}  valid_loss {float(hps.get("lr", 1))/epoch:.4f}  valid_accuracy 0.3000  valid_mae 0.9000  0.2 s', flush=True)
    (ml/'checkpoints/part').write_text(str(epoch))
    os.replace(ml/'checkpoints/part', saved)
    if mood == 'memory': os._exit(137)
    if mood == 'disk':
        try: (ml/'model/big').write_bytes(bytes(300_000))
        except OSError as e: (ml/'output/failure').write_text(str(e)), sys.exit(1)
    if mood == 'script': print('bin_counter failed: no training photo of count 4: add photos of it', flush=True), (ml/'output/failure').write_text('Training Execution failed.'), sys.exit(1)
    if stop: sys.exit(143)
(ml/'model/model.pth').write_text('w')
'''


@pytest.fixture(scope='module')
def cloud(tmp_path_factory):
    "One emulator for all tests; each test uses names of its own"
    work = tmp_path_factory.mktemp('aws')
    (work/'trainer.py').write_text(TRAINER)
    with Emulator(work, settings=SETTINGS, images={'fake*': dict(train=['python', str(work/'trainer.py')])}) as cloud, cloud.active(): yield cloud


@pytest.fixture(scope='module')
def split_uri(cloud, bins, split):
    "The drawn bins, uploaded"
    return upload_split(PROJECT, bins, split, asker())


@pytest.fixture
def faults(cloud):
    "Faults for one test"
    yield cloud.faults
    cloud.faults(**dict.fromkeys(('s3', 'throttle', 'expire', 'deny', 'quota', 'disk', 'interrupt')))


@pytest.fixture
def sdk(cloud):
    "SageMaker's SDK, whose start scripts insist on /opt/ml"
    pytest.importorskip('sagemaker.train', reason="the SageMaker SDK is not installed: pip install 'bin_counter[aws]' 'sagemaker>=3.12'")
    if cloud.mode != 'namespaces': pytest.skip('this machine permits no namespaces: run as root on Linux')


@pytest.fixture
def toolkit(): pytest.importorskip('sagemaker_training', reason="AWS's toolkit is not installed: pip install sagemaker-training sagemaker-pytorch-training")


def asker():
    "An asker that keeps what it says"
    said = []
    aws = Asker('us-east-1', say=said.append, poll=.3)
    aws.said = said
    return aws


def described(cloud, job): return cloud.client('sagemaker').describe_training_job(TrainingJobName=job.name)


def members(cloud, job, part='model'):
    "What a job left, by name"
    bucket, key = described(cloud, job)['ModelArtifacts']['S3ModelArtifacts'][5:].split('/', 1)
    body = cloud.client('s3').get_object(Bucket=bucket, Key=key.replace('model.tar.gz', f'{part}.tar.gz'))['Body'].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as t: return {m.name: t.extractfile(m).read() for m in t if m.isfile()}


def billed(cloud): return [r['name'] for r in cloud.inventory()['resources'] if r['billable'] and r['service'] == 'sagemaker']


FAKE = Project('bins', role=ROLE, training_image='fake:1') # a trainer that needs nothing but Python

def start(cloud, uri, name, machines=SMALL, epochs=3, **env):
    "A job of the fake trainer, as planned, without the SDK"
    request = training_plan(FAKE, uri, dict(epochs=epochs), machines, name, 's3://code/sourcedir.tar.gz', env=env).steps[0].request
    cloud.client('sagemaker').create_training_job(**fill(request, dict(account='123456789012')))
    return Job(name)


# what a job is given

def test_pins_are_those_that_are_tested():
    text = (Path(__file__).parents[1]/'constraints.txt').read_text()
    assert {n: v for n, v in re.findall(r'^([\w-]+)==(\S+)$', text, re.M) if n in PINS} == PINS


@pytest.mark.parametrize('machines', [SMALL, pytest.param(TWO, marks=slow)], ids=['one', 'two'])
def test_a_training_through_the_sdk(machines, cloud, sdk, split_uri, tmp_path):
    "What is sent is the plan, what comes out is a package, and two machines train one model on halves of the photos"
    from bin_counter.package import Package
    aws, two = asker(), machines.count == 2
    hps = dict(TINY, epochs=2)
    job = run_training(PROJECT, split_uri, hps, machines, aws, sharded=two)
    found = watch(PROJECT, job, aws)
    assert sum('epoch 2/2' in l for l in aws.said) == 1 and not any('Requirement already' in l for l in aws.said)
    assert [l.strip() for l in aws.said if 'world size' in l] == ([f'algo-{i + 1}  world size 2, rank {i} of 2' for i in range(2)] if two else [])
    assert any('photos are sharded over hosts (46, 46 of 92)' in l for l in aws.said) == two
    for name, content in members(cloud, job).items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes(content)
    assert Package.load(tmp_path).card.training['photos']['test'] == 0 and (tmp_path/'code/inference.py').is_file()
    assert {'history.csv', 'checks.json'} <= set(members(cloud, job, 'output'))
    plan = fill(training_plan(PROJECT, split_uri, hps, machines, job.name, sharded=two).steps[0].request, dict(account='123456789012'))
    assert_planned(cloud, found, without_classic(plan))
    whole = asker()
    watch(PROJECT, job, whole, everything=True)
    for name, version in PINS.items(): assert any(f'Requirement already satisfied: {name}=={version}' in l for l in whole.said), 'pip needs no network for what is there'
    report_is_whole(cloud, job, tmp_path/'report')
    assert billed(cloud) == []


def assert_planned(cloud, found, plan):
    "The request that left is the plan, but for what the SDK adds to start a script"
    assert {c['ChannelName'] for c in found['InputDataConfig']} == {'splits', 'data', 'code', 'sm_drivers'}
    for c in plan['InputDataConfig']: assert c in found['InputDataConfig']
    algorithm = found['AlgorithmSpecification']
    assert 'sm_train.sh' in ' '.join(algorithm.pop('ContainerEntrypoint') + algorithm.pop('ContainerArguments'))
    for k in set(plan) - {'InputDataConfig', 'Tags'}: assert found.get(k) == plan[k] or not plan[k] and not found.get(k), k
    assert cloud.client('sagemaker').list_tags(ResourceArn=found['TrainingJobArn'])['Tags'] == plan['Tags']


def report_is_whole(cloud, job, out):
    "The page of a job that ran: what it learned, where its seconds went, what its machines did, what it cost"
    at = described(cloud, job)['TrainingStartTime']
    for metric, value in (('CPUUtilization', 170.), ('MemoryUtilization', 30.)):
        for minutes in (0, 1): cloud.client('cloudwatch').put_metric_data(Namespace='/aws/sagemaker/TrainingJobs', MetricData=[dict(MetricName=metric, Dimensions=[dict(Name='Host', Value=f'{job.name}/algo-1')], Value=value, Timestamp=at + timedelta(minutes=minutes))])
    made = job_report(PROJECT, job, out, asker(), planned_cost(job.name, SMALL))
    assert read_json(out/'job.json') == json.loads(json.dumps(made)) and made['notes'] == []
    assert [r['epoch'] for r in made['history']] == [1, 2] and made['checks']['summary']['steps'] == 4
    assert [(u['host'], u['metric'], u['percent']) for u in made['use']] == [('algo-1', 'CPUUtilization', [170.]*2), ('algo-1', 'MemoryUtilization', [30.]*2)]
    assert [r['when'] for r in made['cost']] == ['planned', 'billed'] and 0 < made['cost'][1]['usd'] < made['cost'][0]['usd']
    assert [s['state'] for s in made['states']] == ['Starting', 'Downloading', 'Training', 'Uploading', 'Completed'] and made['states'][2]['seconds'] > 1
    page = (out/'job.html').read_text()
    assert page.count('<svg') == 3 and not re.search(r'(src|href)="(?!#)|https?://(?!www.w3.org)', page)


@slow
def test_a_real_spot_training_goes_on(cloud, sdk, split_uri, faults):
    "The machine is taken away after an epoch; the next one goes on from the checkpoint in S3"
    spot = Machines('ml.m5.large', spot=True, max_hours=.2, hours=.1)
    faults(interrupt=[dict(job='real-spot', line='^epoch 2/')])
    aws = asker()
    job = run_training(PROJECT, split_uri, dict(TINY, epochs=4, checkpoint_minutes=.001), spot, aws, job='real-spot')
    found, said = watch(PROJECT, job, aws), '\n'.join(aws.said)
    assert 'Interrupted' in said and 'resuming after' in said and said.count('epoch 4/4') == 1
    assert found['CheckpointConfig']['S3Uri'].endswith('/checkpoints/real-spot/') and 'card.json' in members(cloud, job)


@slow
@pytest.mark.parametrize('machines', [SMALL, TWO], ids=['one', 'two'])
def test_a_search_over_real_trainings(machines, cloud, toolkit, split_uri):
    "Trials start in the other way, find the source in S3, and their machines train together"
    aws = asker()
    job = run_tuning(PROJECT, split_uri, {k: v for k, v in TINY.items() if k != 'lr'}, dict(lr='1e-4..1e-2'), 2, 1, machines, aws)
    watch(PROJECT, job, aws)
    rows = tuning_results(PROJECT, job, aws)
    assert [r['status'] for r in rows] == ['Completed']*2 and rows[0]['objective'] <= rows[1]['objective']
    said = asker()
    watch(PROJECT, best_job(rows), said)
    assert sum('world size 2' in l for l in said.said) == 2*(machines.count == 2)
    assert {'card.json', 'model.onnx'} <= set(members(cloud, best_job(rows)))


def test_a_search_is_watched_and_comes_out_as_a_table(cloud, split_uri):
    aws = asker()
    job = run_tuning(FAKE, split_uri, dict(epochs=3), dict(lr='1e-3..1e-1', batch_size='16|32'), 4, 2, SMALL, aws)
    found = watch(FAKE, job, aws)
    assert found['TrainingJobStatusCounters']['Completed'] + found['TrainingJobStatusCounters']['Stopped'] == 4
    assert any('trials: 4 done' in l or 'stopped' in l for l in aws.said) and any('2 running' in l for l in aws.said)
    assert not any('3 running' in l for l in aws.said)
    rows = tuning_results(FAKE, job, aws)
    assert len(rows) == 4 and rows[0]['objective'] == min(r['objective'] for r in rows) == pytest.approx(float(rows[0]['hp.lr'])/3, abs=1e-4)
    assert rows[0]['dollars'] > 0 and tuning_table(rows).count('\n') == 4
    assert best_job(rows).name == found['BestTrainingJob']['TrainingJobName']
    assert put_source(FAKE, aws) == put_source(FAKE, aws), 'the archive is named by its content'


def test_a_report_of_what_failed_or_searched(cloud, split_uri, tmp_path):
    "The reason on top; epochs from the log, where there is no output; the bill of a search is that of its trials"
    job = start(cloud, split_uri, 'reported', MOOD='script')
    with pytest.raises(CloudError): watch(FAKE, job, asker())
    made = job_report(FAKE, job, tmp_path, asker())
    assert 'no training photo of count 4' in made['failure'] and made['failure'] in (tmp_path/'job.html').read_text()
    assert [r['valid_loss'] for r in made['history']] == [1.] and made['checks'] == {}
    search = run_tuning(FAKE, split_uri, dict(epochs=2), dict(lr='1e-3..1e-1'), 2, 2, SMALL, asker(), early=False)
    watch(FAKE, search, asker())
    made = job_report(FAKE, search, tmp_path, asker())
    assert made['cost'][0]['machines'] == '2 jobs of 1 x ml.m5.large' and made['cost'][0]['usd'] > 0


# watching

def test_no_line_is_told_twice_though_aws_is_busy(cloud, split_uri, faults):
    "A watcher that is told to slow down at every other question misses nothing and repeats nothing"
    job = start(cloud, split_uri, 'busy', epochs=8)
    faults(throttle=dict(rate=.4, actions=['logs:*', 'sagemaker:Describe*'], times=12))
    aws = asker()
    assert watch(FAKE, job, aws)['TrainingJobStatus'] == 'Completed'
    assert [re.search(r'epoch (\d+)', l)[1] for l in aws.said if 'epoch' in l] == [str(i) for i in range(1, 9)]
    assert not any('noise' in l for l in aws.said)
    again = asker()
    watch(FAKE, job, again, everything=True)
    assert sum('noise' in l for l in again.said) == 1, 'looking again tells all of it'


def test_a_spot_job_goes_on_where_it_was(cloud, split_uri, faults):
    faults(interrupt=[dict(job='spot', line='epoch 3/')])
    job = start(cloud, split_uri, 'spot', Machines('ml.m5.large', spot=True, max_hours=.2, hours=.1), epochs=6)
    aws = asker()
    found = watch(FAKE, job, aws)
    said = '\n'.join(aws.said)
    assert found['TrainingJobStatus'] == 'Completed' and 'Interrupted' in said and 'resuming after epoch' in said
    assert said.count('epoch 6/6') == 1 and found['BillableTimeInSeconds'] < found['TrainingTimeInSeconds']


def test_other_jobs_are_watched_too(cloud, split_uri):
    "A processing job tells all that it says, and why it failed"
    def process(name, code):
        request = processing_plan(FAKE, 'evaluate', ['python', '-c', code], SMALL, image='fake:1', job=name).steps[0].request
        cloud.client('sagemaker').create_processing_job(**fill(request, dict(account='123456789012')))
        return Job(name, 'processing')
    aws = asker()
    assert watch(FAKE, process('counts', 'print("twelve photos")'), aws)['ProcessingJobStatus'] == 'Completed'
    assert '  twelve photos' in aws.said and any('Completed' in l for l in aws.said)
    with pytest.raises(CloudError, match='^counts-not failed: '): watch(FAKE, process('counts-not', 'raise SystemExit("no photos")'), asker())


def test_a_job_can_be_stopped_once(cloud, split_uri):
    job = start(cloud, split_uri, 'stopped', epochs=500)
    assert stop_job(job, asker()) and not stop_job(job, asker())
    assert watch(FAKE, job, asker())['TrainingJobStatus'] == 'Stopped' and billed(cloud) == []


# faults: one line that says what to do, and nothing is left running

@pytest.mark.parametrize('mood, says', [('memory', 'lower batch_size'), ('script', 'no training photo of count 4: add photos of it'), ('disk', r'No space left on device.*volume_gb, it had 30 GB')])
def test_a_job_that_fails_says_what_to_do(mood, says, cloud, split_uri, faults):
    if mood == 'disk':
        if cloud.mode != 'namespaces': pytest.skip('this machine permits no namespaces')
        faults(disk=[dict(job='bad-disk', bytes=100_000)])
    with pytest.raises(CloudError, match=f'^bad-{mood} failed: .*{says}') as e: watch(FAKE, start(cloud, split_uri, f'bad-{mood}', MOOD=mood), asker())
    assert '\n' not in str(e.value) and billed(cloud) == []


def test_time_that_runs_out_is_told(cloud, split_uri, faults):
    faults(interrupt=[dict(job='waits', after=.2, times=99)])
    job = start(cloud, split_uri, 'waits', Machines('ml.m5.large', spot=True, hours=1/3600, max_hours=1/3600, wait_hours=1/3600), epochs=500)
    with pytest.raises(CloudError, match='^waits was stopped: Max.*(allow a longer wait|allow more time)'): watch(FAKE, job, asker())
    assert billed(cloud) == []


def test_credentials_that_end_leave_the_job_alone(cloud, split_uri, faults):
    job = start(cloud, split_uri, 'expires', epochs=12)
    faults(expire=dict(after=4))
    with pytest.raises(CloudError, match='does not take these credentials.*sign in first.*the job expires goes on by itself'): watch(FAKE, job, asker())
    faults(expire=None)
    assert watch(FAKE, job, asker())['TrainingJobStatus'] == 'Completed'


def test_the_role_is_looked_at_before_anything_is_spent(cloud, sdk, split_uri, faults):
    assert check_rights(PROJECT, asker()) == []
    faults(deny=['logs:PutLogEvents', 'ecr:BatchGetImage'])
    with pytest.raises(CloudError, match='role arn:.*lacks logs:PutLogEvents, ecr:BatchGetImage: ask whoever.*nothing was started'): run_training(PROJECT, split_uri, TINY, SMALL, asker(), job='no-rights')
    faults(deny=['iam:SimulatePrincipalPolicy'])
    assert check_rights(PROJECT, asker()) is None
    assert not [j for j in cloud.client('sagemaker').list_training_jobs(NameContains='no-rights')['TrainingJobSummaries']]


@pytest.mark.parametrize('fault, says', [
    (dict(deny=['sagemaker:CreateTrainingJob']), 'access denied: you need sagemaker:CreateTrainingJob, ask whoever'),
    (dict(deny=['s3:PutObject']), 'lacks s3:PutObject'),
    (dict(quota={'ml.m5.large': 0}), "limit of the account is reached.*'ml.m5.large for training job usage' is 0.*Service Quotas"),
    (dict(expire=dict(after=0)), 'does not take these credentials.*sign in first'),
], ids=['caller', 'role', 'quota', 'expired'])
def test_what_stops_a_job_from_starting_is_one_line(fault, says, cloud, sdk, split_uri, faults):
    faults(**fault)
    with pytest.raises(CloudError, match=says) as e: run_training(PROJECT, split_uri, TINY, SMALL, asker(), job='never')
    assert '\n' not in str(e.value)
    faults(**dict.fromkeys(fault))
    assert not cloud.client('sagemaker').list_training_jobs(NameContains='never')['TrainingJobSummaries']


def test_a_busy_aws_does_not_stop_a_job_from_starting(cloud, sdk, split_uri, faults):
    "Throttled and slowed down, it starts once"
    faults(s3=dict(rate=.2, status=503), throttle=dict(rate=.3, times=10, actions=['sagemaker:*', 'iam:*', 'logs:*']))
    job = run_training(PROJECT, split_uri, TINY, SMALL, asker(), job='patient')
    faults(s3=None, throttle=None)
    assert stop_job(job, asker()) and watch(PROJECT, job, asker())['TrainingJobStatus'] == 'Stopped'


def test_without_the_sdk_it_says_what_to_install():
    code = "import sys; sys.modules['sagemaker.train'] = None\nfrom bin_counter.jobs import run_training\nfrom bin_counter.plans import Project\ntry: run_training(Project(), 's3://b/data/0', {})\nexcept Exception as e: print(type(e).__name__, e)"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))
    assert out.stdout.startswith('ConfigError') and 'pip install' in out.stdout and 'sagemaker>=3.12' in out.stdout, out.stderr
