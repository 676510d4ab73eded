"A split in S3: sent once, though it is killed, though S3 is busy, and never with a photo of the part test."
import os, signal, subprocess, sys
from pathlib import Path

import pytest

pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")

from bin_counter.cloud import Asker, CloudError
from bin_counter.core import DataError
from bin_counter.emulator import Emulator
from bin_counter.plans import Project
from bin_counter.splits import read_splits
from bin_counter.upload import stored, upload_split, upload_test

NAMES = iter(f'up{i}-bins' for i in range(99))


@pytest.fixture(scope='module')
def cloud(tmp_path_factory):
    with Emulator(tmp_path_factory.mktemp('aws')) as cloud, cloud.active(): yield cloud


@pytest.fixture
def faults(cloud):
    "Faults for one test"
    yield cloud.faults
    cloud.faults(**dict.fromkeys(('s3', 'throttle', 'expire', 'deny')))


@pytest.fixture
def project(): return Project(next(NAMES))


def asker():
    "An asker that keeps what it says"
    said = []
    aws = Asker('us-east-1', say=said.append)
    aws.said = said
    return aws


def keys(cloud, uri):
    bucket, prefix = uri[5:].split('/', 1)
    return set(stored(asker(), bucket, prefix + '/'))


def test_what_is_sent_is_what_a_job_may_see(cloud, project, bins, split):
    "All of train and valid with their metadata, nothing of test; the bucket is made, closed and tagged"
    aws = asker()
    uri, test = upload_split(project, bins, split, aws), upload_test(project, bins, split, aws)
    rows = read_splits(split/'splits.csv')
    for address, mine in ((uri, {r.id for r in rows if r.part != 'test'}), (test, {r.id for r in rows if r.part == 'test'})):
        have = keys(cloud, address)
        assert {Path(k).stem for k in have if '/bin-images/' in k} == mine
        assert {Path(k).stem for k in have if '/metadata/' in k} <= mine and 'splits/splits.csv' in have
    s3, bucket = cloud.client('s3'), uri.split('/')[2]
    table = s3.get_object(Bucket=bucket, Key=f'{uri.split("/", 3)[3]}/splits/splits.csv')['Body'].read().decode()
    assert ',test,' not in table and len(table.splitlines()) == 1 + sum(r.part != 'test' for r in rows)
    assert s3.get_public_access_block(Bucket=bucket)['PublicAccessBlockConfiguration']['BlockPublicPolicy']
    assert s3.get_bucket_tagging(Bucket=bucket)['TagSet'] == [dict(Key='bin_counter', Value=project.name)]


DIES = '''
import faulthandler, os, signal
faulthandler.dump_traceback_later(100, exit=True) # where every thread stands, should it hang before it dies
from bin_counter import upload
from bin_counter.plans import Project
send, sent = upload._send, []
def dying(s3, item, *args):
    if len(sent) == 5: os.kill(os.getpid(), signal.SIGKILL)
    sent.append(item)
    return send(s3, item, *args)
upload._send = dying
'''


def test_an_upload_that_is_killed_goes_on(cloud, project, bins, split):
    "kill -9 in the middle; the same command sends the rest and nothing twice"
    code = DIES + f'upload.upload_split(Project({project.name!r}), {str(bins)!r}, {str(split)!r}, workers=1)'
    process = subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    had, aws = cloud.client('s3').list_objects_v2(Bucket=f'{project.name}-123456789012-us-east-1')['KeyCount'], asker()
    uri = upload_split(project, bins, split, aws)
    total = len(keys(cloud, uri))
    assert had == 5 < total
    assert f'{total - had:,} of {total:,} objects sent' in aws.said[-1] and f'{had:,} were there' in aws.said[-1]
    upload_split(project, bins, split, aws)
    assert f': 0 of {total:,} objects sent (0.0 MB)' in aws.said[-1]


@pytest.mark.parametrize('status', [500, 503])
def test_a_busy_s3_is_borne(status, cloud, project, bins, split, faults):
    faults(s3=dict(rate=.2, status=status))
    aws = asker()
    uri = upload_split(project, bins, split, aws)
    faults(s3=None)
    upload_split(project, bins, split, aws)
    assert ': 0 of' in aws.said[-1] and len(keys(cloud, uri)) > 90


@pytest.mark.parametrize('fault, says', [(dict(expire=dict(after=30)), 'does not take these credentials.*sign in first'), (dict(deny=['s3:PutObject']), 'you need s3:PutObject, ask whoever')])
def test_what_cannot_be_borne_is_one_line(fault, says, cloud, project, bins, split, faults):
    cloud.client('s3').create_bucket(Bucket=f'{project.name}-123456789012-us-east-1')
    faults(**fault)
    with pytest.raises(CloudError, match=f'{says}.*objects were sent before, and the same command goes on from there') as e: upload_split(project, bins, split, asker(), workers=2)
    assert '\n' not in str(e.value)


def test_a_photo_that_changes_meanwhile_is_noticed(cloud, project, bins, split, tmp_path, monkeypatch):
    import shutil
    from bin_counter import upload
    data = shutil.copytree(bins, tmp_path/'data')
    photo = next(r.id for r in read_splits(split/'splits.csv') if r.part == 'train')
    real = upload.missing
    def slow(*args):
        (data/f'bin-images/{photo}.jpg').write_bytes(b'another')
        return real(*args)
    monkeypatch.setattr(upload, 'missing', slow)
    with pytest.raises(DataError, match=f'{photo}.jpg has changed since it was hashed: run the same command again'): upload_split(project, data, split, asker())
