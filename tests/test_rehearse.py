"The rehearsal: a step that fails says why, what was made goes, and with BIN_COUNTER_SLOW=1 the whole of it."
import os, re, subprocess, sys
from pathlib import Path

import pytest

pytest.importorskip('moto.server', reason="the rehearsal needs moto: pip install 'bin_counter[aws]'")
for part in ('torch', 'onnxruntime'): pytest.importorskip(part, reason="the rehearsal trains: pip install 'bin_counter[train]'")

from bin_counter import rehearse as R
from bin_counter.core import read_json
from bin_counter.rehearse import rehearse

slow = pytest.mark.skipif(os.environ.get('BIN_COUNTER_SLOW') != '1', reason='takes minutes: set BIN_COUNTER_SLOW=1')


@pytest.mark.parametrize('fault, said', [
    pytest.param(dict(quota={'ml.m5.large': 1}), 'quota|limit', id='quota'),
    pytest.param(dict(deny=['sagemaker:CreateTrainingJob']), 'sagemaker:CreateTrainingJob', id='right', marks=slow),
    pytest.param(dict(expire=dict(after=0)), 'sign in', id='credentials', marks=slow)])
def test_a_step_that_fails_says_what_to_do_and_nothing_stays(fault, said, tmp_path, monkeypatch):
    "The fault strikes when training begins; the steps after it are left out, and all that was made is removed"
    def train(s, done):
        s.cloud.faults(**fault)
        try: R._train(s, done)
        finally: s.cloud.faults(**dict.fromkeys(fault))
    monkeypatch.setattr(R, 'STEPS', {**R.STEPS, 'train': (train, 'two machines')})
    record = rehearse(tmp_path/'out', photos=300, say=lambda line: None)
    steps = {s['name']: s for s in read_json(tmp_path/'out/rehearsal.json')['steps']}
    assert not record.ok and [s for s in steps] == ['begin', 'upload', 'train', 'teardown']
    assert not steps['train']['ok'] and re.search(said, steps['train']['seen']) and '\n' not in steps['train']['seen']
    assert steps['teardown']['ok'], steps['teardown']
    assert 'failed at: train' in (tmp_path/'out/rehearsal.html').read_text()


def test_a_step_that_only_seems_to_work_is_caught(tmp_path, monkeypatch):
    "A second upload that sends something again fails the step"
    from bin_counter import upload
    real, calls = upload.upload_split, []
    def forgetful(project, data, splits, aws):
        calls.append(1)
        uri = real(project, data, splits, aws)
        if len(calls) > 1: aws.client('s3').put_object(Bucket=project.bucket, Key='data/again', Body=b'x')
        return uri
    monkeypatch.setattr(upload, 'upload_split', forgetful)
    monkeypatch.setattr(R, 'STEPS', {k: R.STEPS[k] for k in ('upload', 'teardown')})
    record = rehearse(tmp_path/'out', photos=300, say=lambda line: None)
    assert [s.ok for s in record.steps] == [True, False, True] and 'changed what lies in the bucket' in record.steps[1].seen


@slow
@pytest.mark.parametrize('mode', ['auto', 'folders'])
def test_all_of_it(mode, tmp_path):
    "The command, as a user would type it"
    done = subprocess.run([sys.executable, '-c', 'import sys; from bin_counter.sagemaker import bin_rehearse; sys.argv[0] = "bin_rehearse"; sys.exit(bin_rehearse())', '--out', tmp_path/'out', '--mode', mode],
                          capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    said = read_json(tmp_path/'out/rehearsal.json')
    assert said['ok'] and [s['name'] for s in said['steps']] == ['begin', *R.STEPS]
