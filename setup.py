"Everything is declared in settings.ini; this file only hands it to setuptools."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

def needs(key): return cfg.get(f'{key}requirements', '').split()

extras = {name: needs(f'{name}_') for name in cfg['extras'].split()}
extras['dev'] = sorted({r for rs in extras.values() for r in rs})  # a developer has everything

class BuildWithInfra(build_py):
    "A wheel carries infra/ (web page, template, container recipe) inside of the package; a checkout has it beside"
    def run(self):
        super().run()
        if not self.editable_mode: shutil.copytree(here/'infra', Path(self.build_lib)/'bin_counter/infra', dirs_exist_ok=True)


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    keywords=cfg['keywords'].split(),
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers',
                 'Programming Language :: Python :: 3.11', 'Programming Language :: Python :: 3.12',
                 'Programming Language :: Python :: 3.13'],
    packages=find_packages(include=['bin_counter', 'bin_counter.*']),
    python_requires=f">={cfg['min_python']}",
    install_requires=needs(''),
    extras_require=extras,
    entry_points={'console_scripts': cfg.get('console_scripts', '').split()},
    cmdclass={'build_py': BuildWithInfra},
    zip_safe=False,
)
