"Every kind of photo that arrives in practice or in malice: decoded right, or refused in one line."
import io, struct, zlib

import numpy as np
import pytest
from PIL import Image

from bin_counter.core import PhotoError, Preprocess
from bin_counter.model import preprocess, preprocess_bytes
from bin_counter.photo import check_photo, decode_photo, read_photo


def encode(img, fmt='JPEG', **kw):
    b = io.BytesIO()
    img.save(b, fmt, **kw)
    return b.getvalue()


def bands(w=200, h=100):
    "Red, green and blue thirds, left to right"
    a = np.zeros((h, w, 3), np.uint8)
    for i in range(3): a[:, i*w//3:(i + 1)*w//3, i] = 200
    return Image.fromarray(a)


def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
def bomb(side): return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


JPEG = encode(bands(), quality=95)
THUMB = Image.Exif()
THUMB[0x010e] = 'notes that hold an end marker: ' + b'\xff\xd9'.decode('latin-1')

REFUSED = {
    'empty': (b'', 'empty'),
    'text': (b'hello, I am a photo', 'not a JPEG or PNG'),
    'gif': (encode(bands(), 'GIF'), 'not a JPEG or PNG'),
    'tiff': (encode(bands(), 'TIFF'), 'not a JPEG or PNG'),
    'svg': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not a JPEG or PNG'),
    'only the magic bytes': (JPEG[:3], 'damaged header'),
    'header cut': (JPEG[:40], 'damaged header'),
    'half of the scan': (JPEG[:len(JPEG)*2//3], 'cut short'),
    'all but the end': (JPEG[:-2], 'cut short'),
    'png cut': (encode(bands(), 'PNG')[:-40], 'cut short'),
    'one pixel': (encode(Image.new('RGB', (1, 1))), 'too small'),
    'a thin strip': (encode(Image.new('RGB', (15, 4000))), 'too small'),
    'png bomb': (bomb(60_000), 'megapixels'),
    'png of 20,000 pixels a side': (bomb(20_000), 'megapixels'),
    'jpeg that claims 65,000 pixels': (JPEG.replace(struct.pack('>HH', 100, 200), struct.pack('>HH', 65_000, 65_000), 1), 'megapixels'),
    'png of zero width': (bomb(0), 'photo.png: '),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_bad_photo_is_refused_in_one_line(name):
    content, why = REFUSED[name]
    for read in (check_photo, decode_photo, lambda c, n: preprocess_bytes(c, Preprocess(), n)):
        with pytest.raises(PhotoError) as e: read(content, 'photo.png')
        assert why in str(e.value) and '\n' not in str(e.value) and str(e.value).startswith('photo.png')


@pytest.mark.parametrize('name, content', {
    'plain': JPEG,
    'grey': encode(bands().convert('L')),
    'cmyk': encode(bands().convert('CMYK'), quality=95),
    'progressive': encode(bands(), progressive=True, quality=95),
    'notes with an end marker before the scan': encode(bands(), exif=THUMB, quality=95),
    'bytes after the end': JPEG + b'\x00'*100,
    'png': encode(bands(), 'PNG'),
    'alpha': encode(bands().convert('RGBA'), 'PNG'),
    'palette': encode(bands().convert('P'), 'PNG'),
    'sixteen bits': encode(Image.fromarray((np.asarray(bands().convert('L')).astype(np.uint16)*257)), 'PNG'),
    '20,000 pixels wide': encode(bands(20_000, 100), quality=95),
}.items(), ids=lambda v: v if isinstance(v, str) else '')
def test_an_odd_but_good_photo_is_decoded(name, content):
    "Colours stay within what JPEG and conversion to grey cost"
    assert check_photo(content, name, decode=True).width in (200, 20_000)
    img = decode_photo(content, name)
    want = np.asarray(bands(img.shape[1], img.shape[0]).convert('L' if name in ('grey', 'sixteen bits') else 'RGB').convert('RGB')).astype(int)
    middle = [img.shape[1]*k//6 for k in (1, 3, 5)]
    assert np.abs(img[50, middle].astype(int) - want[50, middle]).max() <= 12


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation):
    back = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]
    stored = bands()
    for t in back: stored = stored.transpose(Image.Transpose(t)) # what the camera stores
    exif = Image.Exif()
    exif[0x0112] = orientation
    img = decode_photo(encode(stored, exif=exif, quality=95))
    assert img.shape == (100, 200, 3)
    assert [int(np.argmax(img[50, x])) for x in (33, 100, 166)] == [0, 1, 2]


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    for path, why in ((tmp_path/'none.jpg', 'no such file'), (tmp_path, 'this is a folder')):
        with pytest.raises(PhotoError, match=why): read_photo(path)


GOLDEN = {
    ('squash', 'imagenet'): [0.7591, -1.7556, 2.1346, -0.0972, -0.2675, -1.4036],
    ('pad', 'half'): [0.0039, -0.5922, -0.6863, -0.0745, 0.9137, 0.0039],
}


@pytest.mark.parametrize('fit, norm', GOLDEN)
def test_preprocessing_gives_the_stored_values(fit, norm):
    "Values stored once: a change of the preprocessing would make every package out there count differently"
    rng = np.random.default_rng(7)
    img = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    prep = Preprocess(224, fit) if norm == 'imagenet' else Preprocess(224, fit, (.5,)*3, (.5,)*3)
    x = preprocess(img, prep)
    assert x.shape == (3, 224, 224) and x.dtype == np.float32
    np.testing.assert_allclose(x[[0, 1, 2, 0, 1, 2], [0, 30, 60, 111, 150, 200], [5, 77, 120, 160, 190, 223]], GOLDEN[fit, norm], atol=2e-3)
