"""Write README.md from nbs/index.ipynb, without Quarto: prose as it is, code and its printed output in fences.

    python tools/readme.py [--check]     # --check only says whether README.md is up to date, by its exit status
"""
import json, sys
from pathlib import Path

root = Path(__file__).parents[1]


def fence(text, kind=''): return f'```{kind}\n{text.rstrip()}\n```'


def printed(output):
    "Text of one output, '' for pictures"
    if output['output_type'] == 'stream': return ''.join(output['text'])
    return ''.join(output.get('data', {}).get('text/plain', []))


def markdown(nb):
    "The notebook as markdown"
    out = ['<!-- written from nbs/index.ipynb by tools/readme.py: edit the notebook -->']
    for c in nb['cells']:
        text = ''.join(c['source'])
        if text.startswith('#| hide'): continue
        out.append(text if c['cell_type'] == 'markdown' else fence(text, 'python'))
        out += [fence(t) for o in c.get('outputs', []) if (t := printed(o).strip())]
    return '\n\n'.join(out) + '\n'


text = markdown(json.loads((root/'nbs/index.ipynb').read_text()))
if '--check' in sys.argv: sys.exit(None if (root/'README.md').read_text() == text else 'README.md differs from nbs/index.ipynb: run python tools/readme.py and commit')
(root/'README.md').write_text(text)
