"Packing a whole bucket on several machines of the emulated AWS, what goes wrong on the way, and reading it back."
import csv, io, json, os, shutil, signal, subprocess, sys, tarfile, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip('cv2', reason="photos are shrunk with OpenCV: pip install 'bin_counter[serve]'")
pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")

from bin_counter import data, shards
from bin_counter.cloud import Asker, apply, check_requests
from bin_counter.core import ConfigError, DataError, read_csv, read_manifest
from bin_counter.data import ABID, ABID_LICENCE, index_bins
from bin_counter.emulator import Emulator
from bin_counter.photo import decode_photo
from bin_counter.plans import Machines, Project
from bin_counter.shards import (BucketStore, FolderStore, Packing, find_shards, format_index, iter_shards, pack_shards, packing_hours, parse_index, read_shards, run_main, shard_name, shard_of,
                                shards_for, shards_plan, shrink_photo, unpack_channel)
from bin_counter.splits import SplitRow, write_splits

ROLE = 'arn:aws:iam::123456789012:role/bins'
PROJECT = Project('bins', 'us-east-1', '123456789012', ROLE, 'bins')
SHARDS, SIDE, PUBLIC = 8, 64, ABID.removeprefix('s3://')
QUICK = dict(backoff=.01, workers=8, say=lambda s: None)
WRONG = dict(cut='photo unusable', noise='photo unusable', alone='metadata missing', blank='metadata unusable')


@pytest.fixture(scope='module')
def raw(bins, tmp_path_factory):
    "The drawn bins as a bucket would hold them: two damaged photos, one without metadata, one with useless metadata, metadata without a photo"
    out = tmp_path_factory.mktemp('raw')/'raw'
    for d in ('bin-images', 'metadata'): shutil.copytree(bins/d, out/d)
    (out/'LICENCE.txt').write_text(ABID_LICENCE)
    photo, meta = (next((out/d).iterdir()).read_bytes() for d in ('bin-images', 'metadata'))
    for id, image, about in (('cut', photo[:len(photo)//2], meta), ('noise', b'\xff\xd8\xff' + bytes(500), meta), ('alone', photo, None), ('blank', photo, b'{}'), ('lone', None, meta)):
        if image: (out/f'bin-images/{id}.jpg').write_bytes(image)
        if about: (out/f'metadata/{id}.json').write_bytes(about)
    return out


@pytest.fixture(scope='module')
def good(raw): return {p.stem for p in (raw/'bin-images').glob('*.jpg')} - set(WRONG)


@pytest.fixture(scope='module')
def packed(raw, tmp_path_factory):
    "All shards, made in one go on one machine; only to be read"
    out = tmp_path_factory.mktemp('packed')/'shards'
    pack_shards(Packing(str(raw), SHARDS, SIDE), out, **QUICK)
    return out


@pytest.fixture(scope='module')
def aws(raw, tmp_path_factory):
    "An emulator whose public bucket holds these bins"
    with Emulator(tmp_path_factory.mktemp('aws'), settings=dict(grace=1.5, sync=.2)) as aws:
        s3 = aws.client('s3')
        for b in ('bins', PUBLIC): s3.create_bucket(Bucket=b)
        everybody = dict(Version='2012-10-17', Statement=[dict(Effect='Allow', Principal='*', Action=['s3:GetObject', 's3:ListBucket'], Resource=[f'arn:aws:s3:::{PUBLIC}', f'arn:aws:s3:::{PUBLIC}/*'])])
        s3.put_bucket_policy(Bucket=PUBLIC, Policy=json.dumps(everybody))
        for p in [*raw.glob('*/*.jpg'), *raw.glob('*/*.json')]: s3.upload_file(str(p), PUBLIC, str(p.relative_to(raw)))
        yield aws


@pytest.fixture
def calm(aws):
    "No fault outlives its test"
    yield aws
    aws.faults(s3=None)


def contents(place):
    "Shards and their tables, by name"
    if isinstance(place, Path): return {p.name: p.read_bytes() for p in place.glob('shard-*')}
    aws, prefix = place
    s3 = aws.client('s3')
    return {k.rsplit('/', 1)[1]: s3.get_object(Bucket='bins', Key=k)['Body'].read() for k in keys(aws, prefix) if '/shard-' in k}


def keys(aws, prefix): return {o['Key']: o['LastModified'] for o in aws.client('s3').list_objects_v2(Bucket='bins', Prefix=f'{prefix}/').get('Contents', [])}
def outcome(tables): return [(i, why.partition(':')[0]) for t in tables for i, why in t.skipped], [r.id for t in tables for r in t.records]


def run_job(aws, plan, name):
    "Run a plan's job to its end"
    sm = aws.client('sagemaker')
    with aws.active(): apply(plan, say=lambda s: None)
    end = time.monotonic() + 120
    while (d := sm.describe_processing_job(ProcessingJobName=name))['ProcessingJobStatus'] == 'InProgress':
        assert time.monotonic() < end, 'the job does not end'
        time.sleep(.1)
    logs, group = aws.client('logs'), '/aws/sagemaker/ProcessingJobs'
    streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f'{name}/')['logStreams']
    return d, [e['message'] for s in streams for e in logs.get_log_events(logGroupName=group, logStreamName=s['logStreamName'], startFromHead=True)['events']]


def small_plan(name, machines=2, **more):
    "A plan of eight shards for these bins"
    plan = shards_plan(PROJECT, Machines('ml.c5.xlarge', machines), out=f's3://bins/{name}', side=SIDE, photos=124, job=name, **more)
    args = plan.steps[0].request['AppSpecification']['ContainerArguments']
    args[args.index('--shards') + 1] = str(SHARDS)
    return plan


# packing

def test_two_machines_pack_every_bin_once(aws, raw, good, packed):
    "As a processing job in our image: every id of the bucket in one shard, or left out with a reason, and the same bytes as one machine makes of a folder"
    job, said = run_job(aws, small_plan('two'), 'two')
    assert job['ProcessingJobStatus'] == 'Completed', said
    made = contents((aws, 'two'))
    assert made == contents(packed) and len(made) == 2*SHARDS
    left, there = outcome([parse_index(b) for n, b in made.items() if n.endswith('.csv')])
    assert sorted(there) == sorted(good) and dict(left) == WRONG and len(left) == len(WRONG)
    s3 = aws.client('s3')
    sums = [json.loads(s3.get_object(Bucket='bins', Key=f'two/shards-{r}.json')['Body'].read()) for r in (0, 1)]
    assert [s['shards'] for s in sums] == [[0, 2, 4, 6], [1, 3, 5, 7]] and sum(s['photos'] for s in sums) == len(good) and sum(s['skipped'] for s in sums) == len(WRONG)
    listed = ''.join(s3.get_object(Bucket='bins', Key=f'two/skipped-{r}.csv')['Body'].read().decode() for r in (0, 1))
    assert {i: why.partition(':')[0] for i, why in csv.reader(listed.splitlines()) if i != 'id'} == WRONG
    assert s3.get_object(Bucket='bins', Key='two/LICENCE.txt')['Body'].read().decode().strip() == ABID_LICENCE
    with tarfile.open(fileobj=io.BytesIO(made['shard-0003.tar'])) as t: assert t.pax_headers['comment'] == ABID_LICENCE
    assert sum('machine 0 of 2: ' in l for l in said) == 1 and sum('minutes to go' in l for l in said) == SHARDS


DIES = '''
import os, signal, sys
from bin_counter import shards
write, tables = shards.BucketStore.write, []
def dying(self, name, content):
    if name.endswith('.csv'): tables.append(name)
    if len(tables) == 3: os.kill(os.getpid(), signal.SIGKILL) # the third shard is there, its table is not
    write(self, name, content)
shards.BucketStore.write = dying
sys.exit(shards.run_main())
'''


def test_a_killed_packing_goes_on_with_other_machines(aws, packed, tmp_path):
    "Killed in the middle, then done by three machines: what was finished is not sent again, and all bytes are the same"
    command = [sys.executable, '-c', DIES, 'pack', '--source', ABID, '--out', 's3://bins/killed', '--shards', str(SHARDS), '--side', str(SIDE), '--workers', '2']
    child = subprocess.run(command, env={**os.environ, **aws.env, 'PYTHONPATH': str(Path(__file__).parents[1]), 'TMPDIR': str(tmp_path)}, stdout=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL
    before = keys(aws, 'killed')
    whole = {k for k in before if '/shard-' in k and k.replace('.tar', '.csv') in before}
    assert len(whole) == 4 and all(k.replace('.csv', '.tar') in before for k in whole) and sum(k.endswith('.tar') for k in before) == 3
    with aws.active(): said = [pack_shards(Packing(ABID, SHARDS, SIDE), 's3://bins/killed', r, 3, **QUICK) for r in range(3)]
    assert sum(s['kept'] for s in said) == len(whole)//2 and sum(s['made'] for s in said) == SHARDS - len(whole)//2
    after = keys(aws, 'killed')
    assert all(after[k] == before[k] for k in whole)
    assert contents((aws, 'killed')) == contents(packed)


def test_a_bucket_of_ones_own_that_is_copied_first(aws, raw, packed):
    "SageMaker brings everything to both machines, the licence too, and each packs its part"
    s3 = aws.client('s3')
    some = sorted(p.stem for p in (raw/'metadata').iterdir() if shard_of(p.stem, SHARDS) in (2, 3))
    for p in [raw/'LICENCE.txt', *(p for i in some for p in raw.glob(f'*/{i}.*'))]: s3.upload_file(str(p), 'bins', f'mine/{p.relative_to(raw)}')
    job, said = run_job(aws, small_plan('copied', source='s3://bins/mine', copied=True), 'copied')
    assert job['ProcessingJobStatus'] == 'Completed', (job.get('ExitMessage'), said[-9:])
    whole, made = contents(packed), contents((aws, 'copied'))
    assert all(made[shard_name(k, kind)] == whole[shard_name(k, kind)] for k in (2, 3) for kind in ('tar', 'csv')) and len(made) == 2*SHARDS
    with aws.active(): pack_shards(Packing('s3://bins/mine', SHARDS, SIDE), 's3://bins/fetched', anonymous=False, **QUICK)
    assert contents((aws, 'fetched')) == made and keys(aws, 'fetched').keys() >= {'fetched/LICENCE.txt'}


def test_a_busy_s3_changes_nothing(calm, packed):
    with calm.active():
        calm.faults(s3=dict(rate=.12, status=503, times=60, actions=['s3:GetObject', 's3:PutObject', 's3:ListBucket']))
        pack_shards(Packing(ABID, SHARDS, SIDE), 's3://bins/busy', retries=12, **QUICK)
        calm.faults(s3=None)
    assert contents((calm, 'busy')) == contents(packed)


def test_a_hopeless_job_ends_with_one_line(aws):
    "Three hundred ids that nobody has: no shard, and the reason where SageMaker shows it"
    job, said = run_job(aws, small_plan('hopeless', 1, ids='800001-800300'), 'hopeless')
    assert job['ProcessingJobStatus'] == 'Failed' and not contents((aws, 'hopeless'))
    assert '\n' not in job['ExitMessage'] and 'bins cannot be used' in job['ExitMessage'] and 'metadata missing' in job['ExitMessage'] and 'more than 5%' in job['ExitMessage']


def test_a_full_disk_is_one_line(raw, packed, tmp_path):
    "A disk of 300 KB, really full; with more room the same command goes on"
    if os.geteuid() or not shutil.which('unshare'): pytest.skip('a small disk needs root on Linux')
    (tmp_path/'ml/output').mkdir(parents=True), (tmp_path/'small').mkdir()
    command = f'"{sys.executable}" -m bin_counter.shards pack --source "{raw}" --out "{tmp_path}/small/out" --work "{tmp_path}" --shards {SHARDS} --side {SIDE}'
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1]), 'SAGEMAKER_BASE_DIR': str(tmp_path/'ml')}
    run = subprocess.run(['unshare', '--mount', 'sh', '-c', f'mount -t tmpfs -o size=300k none "{tmp_path}/small" && exec {command}'], env=env, capture_output=True, text=True)
    if 'unshare' in run.stderr or 'mount:' in run.stderr: pytest.skip('no mounts here')
    assert run.returncode == 1 and run.stderr.count('\n') == 1 and 'the disk is full: free some space' in run.stderr
    assert (tmp_path/'ml/output/message').read_text() == run.stderr.strip() and 'shard-0000.tar (1 of 8)' in run.stdout
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('shards-')] # what was being fetched is gone
    pack_shards(Packing(str(raw), SHARDS, SIDE), tmp_path/'out', work=tmp_path, **QUICK)
    assert contents(tmp_path/'out') == contents(packed)


def test_what_was_late_is_fetched_again_and_what_stays_late_is_not_finished(raw, packed, tmp_path, monkeypatch):
    real, asked, hopeless = data._Folder.get, [], ['bin-images/00007.jpg']
    def get(self, key):
        if key in ('bin-images/00003.jpg', *hopeless) and self.root == raw:
            asked.append(key)
            if key in hopeless or asked.count(key) == 1: raise data._GaveUp('SlowDown')
        return real(self, key)
    monkeypatch.setattr(data._Folder, 'get', get)
    packing = Packing(str(raw), SHARDS, SIDE)
    pack_shards(packing, tmp_path/'out', **QUICK)
    assert asked.count('bin-images/00003.jpg') == 2 and asked.count(hopeless[0]) == shards.ROUNDS
    assert dict(find_shards(tmp_path/'out').skipped)['00007'].startswith('not delivered')
    hopeless.clear()
    assert pack_shards(packing, tmp_path/'out', **QUICK)['made'] == 1 # that of 00007
    assert contents(tmp_path/'out') == contents(packed)


def test_a_table_is_sent_after_its_shard_and_never_without_it(raw, tmp_path, monkeypatch):
    sent, write, send = [], FolderStore.write, FolderStore.send
    def failing(self, name, file):
        if len(sent) > 3: raise DataError('the disk is full')
        sent.append(name), send(self, name, file)
    monkeypatch.setattr(FolderStore, 'write', lambda self, name, content: sent.append(name) or write(self, name, content))
    monkeypatch.setattr(FolderStore, 'send', failing)
    with pytest.raises(DataError, match='disk is full'): pack_shards(Packing(str(raw), SHARDS, SIDE), tmp_path/'out', work=tmp_path, **QUICK)
    assert sent == ['shards.json', 'LICENCE.txt', 'shard-0000.tar', 'shard-0000.csv'] and [p.name for p in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('spoil', ['no table', 'no shard', 'a stranger in the table', 'one row lacks'])
def test_a_shard_counts_as_finished_only_with_all_of_its_ids(spoil, raw, packed, tmp_path):
    shutil.copytree(packed, tmp_path/'out')
    table, index = tmp_path/'out/shard-0002.csv', parse_index((packed/'shard-0002.csv').read_bytes())
    if spoil == 'no table': table.unlink()
    if spoil == 'no shard': (tmp_path/'out/shard-0002.tar').unlink()
    if spoil.startswith('a'): table.write_bytes(format_index(replace(index, skipped=(*index.skipped, ('99999', 'photo missing: x')))))
    if spoil.startswith('one'): table.write_bytes(format_index(replace(index, records=index.records[1:])))
    assert pack_shards(Packing(str(raw), SHARDS, SIDE), tmp_path/'out', **QUICK)['made'] == 1
    assert contents(tmp_path/'out') == contents(packed)


def test_only_wanted_counts_and_ids(raw, good, packed, tmp_path):
    labels = {r.id: r.label for r in find_shards(packed).records}
    some = sorted(good)[:40]
    pack_shards(Packing(str(raw), 2, SIDE, counts='2-3', ids=','.join(some)), tmp_path/'out', most_skipped=0., **QUICK)
    found = find_shards(tmp_path/'out')
    assert {r.id for r in found.records} == {i for i in some if labels[i] in (2, 3)} and len(found.records) > 5
    assert {i for i, why in found.skipped if why.startswith('other count')} == {i for i in some if labels[i] not in (2, 3)}


# photos

def test_a_packed_photo_is_the_photo(raw, packed):
    "Same shape, within the noise of JPEG; small photos keep their bytes"
    import cv2, numpy as np
    for p in iter_shards(packed):
        whole = decode_photo((raw/f'bin-images/{p.record.id}.jpg').read_bytes())
        now = decode_photo(p.photo).astype(int)
        small = cv2.resize(whole, now.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
        assert min(now.shape[:2]) == SIDE and abs(now.shape[0]/now.shape[1] - whole.shape[0]/whole.shape[1]) < .02
        assert np.abs(now - small).mean() < 4 and len(p.photo) == p.record.bytes
    assert shrink_photo(p.photo, SIDE) is p.photo


def test_a_sideways_photo_is_packed_upright():
    from PIL import Image
    import numpy as np
    pixels = np.zeros((200, 400, 3), np.uint8)
    pixels[:, :200, 0] = 255 # left half red
    im, out = Image.fromarray(pixels), io.BytesIO()
    im.getexif()[0x0112] = 6 # to be turned by a quarter, clockwise
    im.save(out, 'JPEG', exif=im.getexif())
    small = decode_photo(shrink_photo(out.getvalue(), 64))
    assert small.shape == (128, 64, 3) and small[:50, :, 0].mean() > 200 and small[-50:, :, 0].mean() < 50


# reading

def test_unpacked_shards_are_the_data_folder(raw, packed, bins, tmp_path):
    "Labels, products, groups and metadata as an index of the source has them"
    records = read_shards(packed, tmp_path/'data', say=lambda s: None)
    theirs, _ = index_bins(raw)
    assert [(r.id, r.label, r.asins, r.group, r.quantity_sum) for r in records] == [(r.id, r.label, r.asins, r.group, r.quantity_sum) for r in theirs if r.id not in WRONG]
    assert records == index_bins(tmp_path/'data')[0] == read_manifest(tmp_path/'data/manifest.csv')
    assert all((tmp_path/f'data/metadata/{r.id}.json').read_bytes() == (raw/f'metadata/{r.id}.json').read_bytes() for r in records)
    assert {r['id'] for r in read_csv(tmp_path/'data/skipped.csv')} == set(WRONG) and (tmp_path/'data/LICENCE.txt').read_text().strip() == ABID_LICENCE


def test_unpacking_from_s3_goes_on(calm, packed, tmp_path, monkeypatch):
    "Only shards of which something lacks are fetched, also from a busy S3"
    for p in packed.iterdir(): calm.client('s3').upload_file(str(p), 'bins', f'read/{p.name}')
    fetched, real = [], BucketStore.bring
    monkeypatch.setattr(BucketStore, 'bring', lambda self, name, folder: fetched.append(name) or real(self, name, folder))
    monkeypatch.setattr(shards.time, 'sleep', lambda s: None)
    with calm.active():
        source = BucketStore('s3://bins/read', Asker('us-east-1'))
        first = read_shards(str(source), tmp_path/'data', say=lambda s: None)
        assert sorted(fetched) == [shard_name(k) for k in range(SHARDS)]
        (tmp_path/f'data/bin-images/{first[0].id}.jpg').unlink(), (tmp_path/f'data/bin-images/{first[1].id}.jpg').write_bytes(bytes(first[1].bytes))
        fetched.clear()
        calm.faults(s3=dict(rate=.3, status=500, actions=['s3:GetObject']))
        assert read_shards(str(source), tmp_path/'data', say=lambda s: None) == first
        assert set(fetched) == {shard_name(shard_of(r.id, SHARDS)) for r in first[:2]}
    assert index_bins(tmp_path/'data')[0] == first


def test_shards_are_added_to_what_a_folder_has(packed, bins, tmp_path):
    some = [r.id for r in find_shards(packed).records][10:20]
    read_shards(packed, tmp_path, some[:4], say=lambda s: None)
    said = []
    assert [r.id for r in read_shards(packed, tmp_path, [*some[2:], '99999'], say=said.append)] == some
    assert said[0] == '1 of the 9 photos that are wanted are in no shard here (first: 99999)'
    assert {p.stem for p in (tmp_path/'bin-images').iterdir()} == set(some)


def _without(name): return lambda out: (out/name).unlink()
def _cut(out): (out/'shard-0001.tar').write_bytes((out/'shard-0001.tar').read_bytes()[:5000])
def _other(out): (out/'shard-0001.tar').write_bytes((out/'shard-0002.tar').read_bytes())
def _empty(out): (out/'shard-0001.csv').write_text('id,label\n00001,1\n')
def _twice(out): (out/'shard-0001.csv').write_bytes((t := (out/'shard-0001.csv').read_bytes()) + t.splitlines(keepends=True)[1])


@pytest.mark.parametrize('spoil, says', [(_without('shard-0001.tar'), 'a table but no shard-0001.tar'), (_cut, 'shard-0001.tar'), (_other, 'photos of its table are not in it'), (_empty, 'shard-0001.csv is damaged'), (_twice, 'names a photo twice')])
def test_damaged_shards_are_one_line(spoil, says, packed, tmp_path):
    shutil.copytree(packed, tmp_path/'out')
    spoil(tmp_path/'out')
    with pytest.raises(DataError, match=says) as e: read_shards(tmp_path/'out', tmp_path/'data', say=lambda s: None)
    assert '\n' not in str(e.value)


def test_a_folder_with_some_of_the_shards(packed, tmp_path):
    "What lacks is said, and nothing is refused"
    for p in packed.glob('shard-000[13].*'): shutil.copy(p, tmp_path/p.name)
    shutil.copy(packed/'shards.json', tmp_path)
    said = []
    records = read_shards(tmp_path, tmp_path/'data', say=said.append)
    assert {shard_of(r.id, SHARDS) for r in records} == {1, 3} and said[0].startswith('6 of 8 shards are not in ')
    with pytest.raises(DataError, match='holds no shards'): find_shards(tmp_path/'data')


def test_processes_of_one_machine_share_an_unpacked_channel(packed, tmp_path):
    "Four at once: the first unpacks what the split uses, the others find it there; no library is needed for it"
    rows = [SplitRow(r.id, r.label, r.group, 'train') for r in find_shards(packed).records[::3]]
    write_splits(tmp_path/'splits/splits.csv', rows)
    env = {**os.environ, 'SM_CHANNEL_SHARDS': str(packed), 'SM_CHANNEL_SPLITS': str(tmp_path/'splits'), 'PYTHONPATH': str(Path(__file__).parents[1])}
    code = f'import os, sys; sys.modules.update(dict.fromkeys(("boto3", "botocore", "cv2", "numpy", "PIL"))); from bin_counter.shards import unpack_channel; unpack_channel(scratch={str(tmp_path/"photos")!r}); print(os.environ["SM_CHANNEL_DATA"])'
    with ThreadPoolExecutor(4) as pool: runs = list(pool.map(lambda i: subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout.splitlines(), range(4)))
    assert {r[-1] for r in runs} == {str(tmp_path/'photos')}
    assert sorted(int(r[0].split()[0]) for r in runs) == [0, 0, 0, len(rows)]
    assert {p.stem for p in (tmp_path/'photos/bin-images').iterdir()} == {r.id for r in rows}
    assert unpack_channel(dict(SM_CHANNEL_DATA='there', SM_CHANNEL_SHARDS=str(packed))) is None


# plans

def test_the_plan_says_hours_and_dollars():
    "The whole dataset: AWS takes the request, and the bill is that of machines and requests"
    plan = shards_plan(PROJECT, Machines('ml.c5.xlarge', 4))
    check_requests(plan)
    hours = packing_hours(535_234, Machines('ml.c5.xlarge', 4))
    assert .2 < hours < .5 and f'{hours:.2f} hours' in str(plan)
    machines, puts = plan.charges[0], plan.charges[-1]
    assert machines.usd == pytest.approx(4*round(hours, 2)*.204) and puts.quantity == 2*68 + 10
    assert f'{sum(c.usd for c in plan.charges):.2f}' in str(plan) and 'assumed: S3 gives' in str(plan)
    own, copied = (shards_plan(PROJECT, source='s3://mine/raw', photos=100_000, copied=c) for c in (False, True))
    assert check_requests(copied) and copied.steps[0].request['ProcessingInputs'][0]['S3Input']['S3DataDistributionType'] == 'FullyReplicated'
    assert '--signed' in own.steps[0].request['AppSpecification']['ContainerArguments'] and own.charges[-1].quantity == 200_000 and copied.charges[-1].quantity == 800_000
    assert copied.charges[0].quantity > 3*own.charges[0].quantity


def test_the_command_takes_what_the_plan_says(monkeypatch):
    told = {}
    monkeypatch.setattr(shards, 'pack_shards', lambda packing, out, rank, hosts, most, work, **more: told.update(packing=packing, out=out, most=most, **more))
    plan = shards_plan(PROJECT, side=224, counts='1-5', ids='1-5000', most_skipped=.1, shard_mb=16)
    assert run_main(plan.steps[0].request['AppSpecification']['ContainerArguments']) == 0
    assert told['packing'] == Packing(ABID, shards_for(5000, 224, 16, 4), 224, 90, '1-5', '1-5000')
    assert (told['out'], told['most'], told['anonymous']) == ('s3://bins/shards', .1, True)


@pytest.mark.parametrize('given, says', [(dict(side=8), 'side 8'), (dict(counts='5-1'), 'counts 5-1'), (dict(out='s3://bins'), 's3://bucket/folder'), (dict(source='s3://mine'), 'say about how many'), (dict(ids=','.join(map(str, range(100)))), '256 characters'),
                                         (dict(machines=Machines('ml.c5.xlarge', spot=True)), 'spot'), (dict(source='s3://mine/raw', photos=535_234, copied=True), 'about 44 GB on every machine'), (dict(machines=Machines('ml.c5.xlarge', 1, hours=.1, max_hours=.5)), 'take more machines')])
def test_a_plan_that_cannot_work_is_refused(given, says):
    with pytest.raises(ConfigError, match=says): shards_plan(PROJECT, **given)


@pytest.mark.skipif(os.environ.get('BIN_COUNTER_SLOW') != '1', reason='takes a minute: set BIN_COUNTER_SLOW=1')
def test_a_job_trains_on_shards(tmp_path, bins, split):
    "Photos come as two shards instead of hundreds of files; two hosts unpack them and train one counter"
    from bin_counter.jobs import run_training, watch
    from bin_counter.plans import Machines, find_project
    from bin_counter.rehearse import SETTINGS, has_sdk, make_role
    from bin_counter.upload import upload_split
    pack_shards(Packing(str(bins), shards=2), tmp_path/'packed', say=lambda line: None)
    with Emulator(tmp_path/'aws', settings=SETTINGS) as aws, aws.active():
        if not has_sdk(aws): pytest.skip("SageMaker's SDK cannot start jobs here")
        project, asker = find_project('bins', make_role(aws), region='us-east-1'), Asker('us-east-1', say=lambda line: None, poll=.3)
        data = upload_split(project, bins, split, asker)
        for p in (tmp_path/'packed').iterdir(): aws.client('s3').upload_file(str(p), project.bucket, f'shards/{p.name}')
        hps = dict(arch='squeezenet1_1', weights='none', size=32, epochs=1, batch_size=32, checkpoint_minutes=0)
        job = run_training(project, data, hps, Machines('ml.m5.large', 2, hours=.1, max_hours=1), asker, channels=dict(shards=project.uri('shards')))
        assert watch(project, job, asker)['TrainingJobStatus'] == 'Completed'
        assert 'data' not in [c['ChannelName'] for c in job.ask(asker)['InputDataConfig']]
