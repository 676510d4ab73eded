"A run that trains on AWS: there and back, met again after an interruption, and the commands around it."
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")
for part in ('torch', 'onnxruntime'): pytest.importorskip(part)

from bin_counter.cloud import Asker
from bin_counter.core import read_csv, read_json
from bin_counter.emulator import Emulator
from bin_counter.plans import Machines
from bin_counter.rehearse import SETTINGS, has_sdk, make_role
from bin_counter.remote import Where, remembered, train_remote

slow = pytest.mark.skipif(os.environ.get('BIN_COUNTER_SLOW') != '1', reason='takes a minute: set BIN_COUNTER_SLOW=1')
TINY = dict(arch='squeezenet1_1', weights='none', size=32, epochs=1, batch_size=32, checkpoint_minutes=0, seed=0, counts='1-5', preset='best')


@pytest.fixture(scope='module')
def account(tmp_path_factory):
    "An emulated account with a role, for boto3 and the SDK of this process"
    with Emulator(tmp_path_factory.mktemp('aws'), settings=SETTINGS) as aws, aws.active():
        if not has_sdk(aws): pytest.skip("SageMaker's SDK cannot start jobs here: it wants namespaces (root on Linux) and pip install 'bin_counter[aws]'")
        yield aws, make_role(aws)


@pytest.fixture(scope='module')
def where(account): return Where('bins', account[1], machines=Machines('ml.m5.large', hours=.1, max_hours=1))


def test_there_and_back(account, where, bins, split, tmp_path):
    "The package, the tables and the report come back; test photos are counted here; the same command meets the same job again"
    out = tmp_path/'run'
    out.mkdir()
    shutil.copy(split/'splits.csv', out)
    said = []
    line = train_remote(bins, out, TINY, where, say=said.append, poll=.3)
    assert {'model.tar.gz', 'model.pth', 'card.json', 'predictions.csv', 'history.csv', 'job.json'} <= {p.name for p in out.iterdir()} and (out/'job/job.html').exists()
    rows, parts = read_csv(out/'predictions.csv'), {r['id']: r['part'] for r in read_csv(out/'splits.csv') if r['repeats'] != '0'}
    assert {r['part'] for r in rows} == {'valid', 'test'} and {r['id'] for r in rows if r['part'] == 'test'} == {i for i, p in parts.items() if p == 'test'}
    uploaded = {o['Key'].split('/')[-1][:-4] for p in account[0].client('s3').get_paginator('list_objects_v2').paginate(Bucket='bins-123456789012-us-east-1') for o in p['Contents'] if o['Key'].endswith('.jpg')}
    assert uploaded and not uploaded & {i for i, p in parts.items() if p == 'test'}, 'no test photo left this machine'
    job = read_json(out/'job.json')['job']
    said.clear()
    assert job in train_remote(bins, out, TINY, where, say=said.append, poll=.3) and any('was started before' in s for s in said)
    assert len(account[0].client('sagemaker').list_training_jobs()['TrainingJobSummaries']) == 1
    assert f'{job}: ' in line


@slow
def test_weights_travel(account, where, bins, split, tmp_path):
    "A file of weights goes up once, under its content, and the job starts from it"
    import torch
    import bin_counter.net # lets torchvision be imported beside another build of torch
    from torchvision.models import squeezenet1_1
    out, weights = tmp_path/'run', tmp_path/'body.pth'
    out.mkdir()
    shutil.copy(split/'splits.csv', out)
    torch.save(squeezenet1_1(weights=None).state_dict(), weights)
    train_remote(bins, out, {**TINY, 'weights': str(weights), 'trained': 'head'}, where, say=lambda s: None, poll=.3)
    job = account[0].client('sagemaker').describe_training_job(TrainingJobName=read_json(out/'job.json')['job'])
    assert 'weights' in [c['ChannelName'] for c in job['InputDataConfig']] and job['HyperParameters']['weights'].strip('"') == '/opt/ml/input/data/weights/body.pth'
    assert read_json(out/'card.json')['training']['config']['weights'].endswith('body.pth')


def test_a_job_that_failed_is_not_met_again(account, where, tmp_path):
    (tmp_path/'job.json').write_text('{"key": "k", "job": "nowhere"}')
    assert remembered(tmp_path, 'k', Asker('us-east-1')) is None and remembered(tmp_path, 'other', Asker('us-east-1')) is None


@slow
def test_the_command_does_the_rest_here(account, bins, tmp_path):
    "bin_run --where sagemaker: split and report on this machine, training on AWS"
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1]), BIN_COUNTER_PROGRESS='0')
    done = subprocess.run([sys.executable, '-c', 'import sys; from bin_counter.cli import bin_run; sys.argv[0] = "bin_run"; sys.exit(bin_run())', '--data', bins, '--out', tmp_path/'run', '--arch', 'squeezenet1_1', '--weights', 'none', '--size', '32',
                           '--epochs', '1', '--where', 'sagemaker', '--role', account[1], '--instance', 'ml.m5.large', '--hours', '.1', '--max-hours', '1'], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'accuracy: ' in done.stdout and 'test photos counted here' in done.stdout and (tmp_path/'run/report.html').exists() and (tmp_path/'run/metrics.json').exists()
