"""One photo: the loaded package against eager torch, and a JPEG file to a tensor against Pillow.

    python benchmarks/infer_speed.py [--archs mobilenet_v2 squeezenet1_1 resnet18]

The peer is what the public endpoints for this task do: Pillow opens, converts and resizes, torchvision makes the tensor and
normalises, eager torch answers under `inference_mode`. Both sides get the same JPEG files (drawn bins, 480 pixels wide, as
the dataset's originals are), the same body with the same weights, and both cores. Times are the best of seven rounds.
"""
import argparse, tempfile
from pathlib import Path

from _shared import best, machine, table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--archs', nargs='+', default=['mobilenet_v2', 'squeezenet1_1', 'resnet18'])
parser.add_argument('--photos', type=int, default=40)
args = parser.parse_args()

import numpy as np
import torch
from bin_counter.core import ModelCard, Preprocess
from bin_counter.model import preprocess_file
from bin_counter.net import ServedNet, build_net, save_model
from bin_counter.package import Package, build_package
from bin_counter.synth import draw_bins
from PIL import Image
from torchvision import transforms

to_tensor = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


def pil_tensor(path): return to_tensor(Image.open(path).convert('RGB'))
def pil_pixels(path): return np.asarray(Image.open(path).convert('RGB').resize((224, 224)))


with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    draw_bins(args.photos, d/'bins', seed=0, size=480)
    photos = sorted((d/'bins/bin-images').iterdir())
    each = len(photos)
    prep = Preprocess()
    ours = best(lambda: [preprocess_file(p, prep) for p in photos], 7)/each
    pixels = best(lambda: [pil_pixels(p) for p in photos], 7)/each
    tensor = best(lambda: [pil_tensor(p) for p in photos], 7)/each
    files = [['Pillow: open, convert, resize (pixels only)', f'{1000*pixels:.2f}', '1.0', ''],
             ['Pillow and torchvision: file to normalised tensor', f'{1000*tensor:.2f}', f'{pixels/tensor:.1f}', '1.0'],
             ['bin_counter: file to normalised tensor, checks included', f'{1000*ours:.2f}', f'{pixels/ours:.1f}', f'{tensor/ours:.1f}']]
    rows = []
    for arch in args.archs:
        torch.manual_seed(0)
        card = save_model(d/arch, build_net(ModelCard(arch)), ModelCard(arch))
        build_package(d/arch, d/f'{arch}.tar.gz')
        package, net = Package.load(d/f'{arch}.tar.gz'), ServedNet(build_net(card), card).eval()
        x = preprocess_file(photos[0], prep)[None]
        t = torch.from_numpy(x)
        with torch.inference_mode():
            eager = best(lambda: net(t), 7, 20)
            whole_eager = best(lambda: [net(pil_tensor(p)[None]) for p in photos], 7)/each
        onnx = best(lambda: package.probs(x), 7, 20)
        whole = best(lambda: [package.probs(preprocess_file(p, prep)[None]) for p in photos], 7)/each
        rows.append([arch, f'{1000*eager:.1f}', f'{1000*onnx:.1f}', f'{eager/onnx:.1f}', f'{1000*whole_eager:.1f}', f'{1000*whole:.1f}', f'{whole_eager/whole:.1f}'])
    print(f'\n{machine()}\n{each} JPEG files of 480 pixels, one at a time, milliseconds\n')
    print(table(['file to tensor', 'ms', 'times Pillow alone', 'times Pillow and torchvision'], files), '\n')
    print(table(['body', 'network: eager', 'network: package', 'ratio', 'photo to answer: eager', 'photo to answer: package', 'ratio'], rows))
