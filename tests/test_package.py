"Packages that are damaged, hostile or contradict themselves; rebuilds to the byte; answers equal to torch."
import io, json, os, subprocess, sys, tarfile

import numpy as np
import pytest
import torch

from bin_counter.core import Counts, DataError, ModelCard, PackageError, Preprocess
from bin_counter.net import ServedNet, build_net, load_model, save_model
from bin_counter.package import MEMBERS, Package, build_package, count_photos, find_photos


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "An untrained counter with a temperature and two views, saved and packed"
    out = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    card = ModelCard('squeezenet1_1', Counts.parse('1-6+'), Preprocess(64, 'pad'), dict(pool='meanmax'), temperature=1.7, views=('plain', 'flip'))
    save_model(out, build_net(card), card)
    build_package(out, out/'model.tar.gz')
    return out


def members(path):
    with tarfile.open(path) as t: return {m.name: t.extractfile(m).read() for m in t if m.isfile()}


def pack(path, files=(), infos=()):
    with tarfile.open(path, 'w:gz') as t:
        for name, content in dict(files).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
        for info in infos: t.addfile(info)
    return path


def special(name, kind, link=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize('name, extra, why', [
    ('climbs', {'../../etc/cron.d/x': b'x'}, 'no package of ours'),
    ('absolute', {'/tmp/x': b'x'}, 'no package of ours'),
    ('climbs out of code', {'code/../../x': b'x'}, 'no package of ours'),
    ('a stranger at the root', {'setup.sh': b'x'}, 'no package of ours'),
    ('a symlink', special('model.pth', tarfile.SYMTYPE, '/etc/passwd'), 'no package of ours'),
    ('a hard link', special('card.json', tarfile.LNKTYPE, '/etc/passwd'), 'no package of ours'),
    ('a device', special('model.onnx', tarfile.CHRTYPE), 'no package of ours'),
    ('a fifo', special('card.json', tarfile.FIFOTYPE), 'no package of ours'),
])
def test_a_hostile_member_is_refused_and_nothing_is_written(name, extra, why, run, tmp_path):
    good = members(run/'model.tar.gz')
    path = pack(tmp_path/'m.tar.gz', {**good, **(extra if isinstance(extra, dict) else {})}, [] if isinstance(extra, dict) else [extra])
    with pytest.raises(PackageError, match=why) as e: Package.load(path)
    assert '\n' not in str(e.value) and [p.name for p in tmp_path.iterdir()] == ['m.tar.gz']


def test_code_beside_the_model_is_let_through(run, tmp_path):
    "SageMaker wants code/inference.py in the same archive"
    path = pack(tmp_path/'m.tar.gz', {**members(run/'model.tar.gz'), 'code/inference.py': b'pass'})
    assert Package.load(path).card.arch == 'squeezenet1_1'


def changed(card, **changes): return json.dumps({**json.loads(card), **changes}).encode()


@pytest.mark.parametrize('change, why', [
    (lambda m: {**m, 'card.json': changed(m['card.json'], counts='1-5')}, 'speaks of 5 counts, the network gives 6'),
    (lambda m: {**m, 'card.json': changed(m['card.json'], onnx_sha256='0'*64)}, 'model.onnx do not belong together'),
    (lambda m: {**m, 'card.json': changed(m['card.json'], weights_sha256='0'*64)}, 'model.pth do not belong together'),
    (lambda m: {**m, 'card.json': changed(m['card.json'], format=2)}, 'newer'),
    (lambda m: {**m, 'card.json': changed(m['card.json'], surprise=1)}, 'unknown keys surprise'),
    (lambda m: {**m, 'card.json': changed(m['card.json'], preprocess={'size': 9})}, 'size 9'),
    (lambda m: {**m, 'card.json': changed(m['card.json'], temperature=0)}, 'temperature 0'),
    (lambda m: {**m, 'card.json': b'{not json'}, 'not valid JSON'),
    (lambda m: {**m, 'card.json': b'[]'}, 'card is damaged'),
    (lambda m: {k: v for k, v in m.items() if k != 'card.json'}, 'holds no card.json'),
    (lambda m: {k: v for k, v in m.items() if k != 'model.onnx'}, 'holds no model.onnx'),
    (lambda m: {}, 'holds no card.json and no model.onnx'),
])
def test_a_package_that_contradicts_itself_is_refused(change, why, run, tmp_path):
    from bin_counter.core import BinCounterError
    path = pack(tmp_path/'m.tar.gz', change(members(run/'model.tar.gz')))
    with pytest.raises(BinCounterError, match=why) as e: Package.load(path)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('content', [b'', b'hello', b'\x1f\x8b' + b'\x00'*50], ids=['empty', 'text', 'broken gzip'])
def test_what_is_no_archive_is_refused(content, tmp_path):
    (tmp_path/'m.tar.gz').write_bytes(content)
    with pytest.raises(PackageError): Package.load(tmp_path/'m.tar.gz')


@pytest.mark.parametrize('share', [.1, .5, .9, .999])
def test_a_package_cut_short_is_refused(share, run, tmp_path):
    whole = (run/'model.tar.gz').read_bytes()
    (tmp_path/'m.tar.gz').write_bytes(whole[:int(len(whole)*share)])
    with pytest.raises(PackageError): Package.load(tmp_path/'m.tar.gz')


def test_another_process_builds_the_same_bytes(run, tmp_path):
    code = f'from bin_counter.package import build_package; build_package({str(run)!r}, {str(tmp_path/"m.tar.gz")!r})'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
    assert (tmp_path/'m.tar.gz').read_bytes() == (run/'model.tar.gz').read_bytes()
    with tarfile.open(tmp_path/'m.tar.gz') as t:
        names = [m.name for m in t]
        assert names == sorted(names) and set(MEMBERS) < set(names) and all(m.mtime == m.uid == m.gid == 0 and not m.uname for m in t)


@pytest.mark.parametrize('arch', ['squeezenet1_1', 'mobilenet_v2', 'resnet10t'])
def test_the_package_answers_as_torch_does(arch, bins, tmp_path):
    "Every kind of body, one photo and many, through files"
    torch.manual_seed(0)
    card = ModelCard(arch, preprocess=Preprocess(96), views=('plain', 'flip'), temperature=.8)
    save_model(tmp_path, build_net(card), card)
    build_package(tmp_path, tmp_path/'m.tar.gz')
    net, card = load_model(tmp_path)
    package, photos = Package.load(tmp_path/'m.tar.gz'), find_photos([bins])[:9]
    from bin_counter.model import preprocess_file
    with torch.no_grad(): want = ServedNet(net, card).eval()(torch.from_numpy(np.stack([preprocess_file(p, card.preprocess) for p in photos]))).numpy()
    for batch in (1, 4):
        got = [list(c.answer['probs'].values()) for c in count_photos(package, photos, batch=batch)]
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_open_top_class_and_a_record_beyond_it(run, bins):
    answer = next(count_photos(Package.load(run/'model.tar.gz'), find_photos([bins])[:1], recorded=40)).answer
    assert list(answer['probs']) == ['1', '2', '3', '4', '5', '6+']
    assert answer['p_mismatch'] == pytest.approx(1 - answer['probs']['6+'], abs=1e-5)


def test_nothing_is_told_to_the_makers_of_the_runtime(run, tmp_path):
    "ONNX Runtime leaves an id in the home folder, and sends reports, unless it is told not to before it is imported"
    env = {k: v for k, v in os.environ.items() if k not in ('ORT_DISABLE_TELEMETRY', 'CI', 'XDG_CACHE_HOME', 'XDG_DATA_HOME')} | dict(HOME=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path))
    code = f'import os, sys; from bin_counter.package import Package; Package.load({str(run/"model.tar.gz")!r}); print(os.environ["ORT_DISABLE_TELEMETRY"])'
    out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.strip() == '1' and not list(tmp_path.rglob('*'))


def test_a_full_disk_leaves_no_half_package(run, tmp_path, monkeypatch):
    import errno

    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(DataError, match='the disk is full'): build_package(run, tmp_path/'m.tar.gz')
    assert not list(tmp_path.iterdir())
