"""Build the documentation site in _docs/.

    python tools/render_docs.py [--renderer quarto|sphinx]
    python tools/render_docs.py --check     # only look at what is in _docs/

The notebooks are processed by nbdev: show_doc, hidden cells, links from backticks. Then

- where `quarto` is on the PATH, nbdev_docs renders them;
- where it is not, Sphinx does, with MyST-NB and the PyData theme: the same pages under the same names and anchors, from the same
  navigation (nbs/sidebar.yml). Quarto cannot be had from the package index.

Why Sphinx, as of November 2026. Material for MkDocs gets no more updates from this month on; its successor Zensical, at 0.1,
takes no plugins and reads no notebooks. mkdocs-jupyter shows pandoc's attributes raw. Plain pandoc (pypandoc_binary) reads Quarto's markdown best, and leaves
theme, search and navigation to us. Sphinx, MyST-Parser and MyST-NB are released several times a year; they read pandoc's divs and
attributes with little help, refuse a link that leads nowhere, and their search works from a plain folder. Of the themes, PyData's
is tested with axe in its own checks; Furo's menus cannot be reached with the keyboard.

The build fails where a notebook is in no section, a link or an anchor leads nowhere, a page would load something from another
host, or markup is left over.
"""
import argparse, os, shutil, subprocess, sys, tempfile, time, warnings
from pathlib import Path

root = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(root), str(root/'tools')]
from docs.check import check_site
from docs.nav import PLAIN, DocsError, Page, read_nav, settings


def process():
    "Notebooks and generated pages into _proc/"
    from nbdev.serve import proc_nbs
    return proc_nbs('', n_workers=0, force=True)


def write_sources(pages, proc, src):
    "The pages as Sphinx reads them"
    from docs.myst import Site, convert_notebook, convert_page, toctrees
    site = Site(pages, settings(root), root)
    others = [Page(f, '', 'No such page', 'This address has no page, or has none any more.', Path(f).with_suffix('.html').name) for f in sorted(PLAIN)]
    for page in [*pages, *others]:
        made, to = proc/page.file, src/page.html
        to.parent.mkdir(parents=True, exist_ok=True)
        if made.suffix == '.ipynb': text, to = convert_notebook(made, page, site, toctrees(pages) if page.html == 'index.html' else ''), to.with_suffix('.ipynb')
        else: text, to = convert_page(made, page, site), to.with_suffix('.md')
        if page in others: text = '---\norphan: true\nhtml_theme.sidebar_secondary.remove: true\n---\n' + text
        to.write_text(text, encoding='utf-8')


def render_sphinx(pages, proc, out):
    "The site by Sphinx; gives its warnings, one line each"
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        write_sources(pages, proc, work/'src')
        args = ['-q', '-b', 'html', '-c', root/'tools/docs', '-d', work/'doctrees', work/'src', work/'html']
        done = subprocess.run([sys.executable, '-m', 'sphinx', *map(str, args)], cwd=root, env=os.environ | {'PYTHONPATH': str(root)}, stderr=subprocess.PIPE, text=True)
        if done.returncode: raise DocsError(f'Sphinx stopped:\n{done.stderr}')
        for unused in ('.buildinfo', 'objects.inv', '_sources'): shutil.rmtree(work/'html'/unused) if (work/'html'/unused).is_dir() else (work/'html'/unused).unlink(missing_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(work/'html', out)
        return [line.removeprefix(f'{work}/src/') for line in done.stderr.splitlines() if line.strip()]


def render_quarto():
    "The site by nbdev and Quarto, which stops at a fault of its own"
    from nbdev.quarto import nbdev_docs
    shutil.rmtree(root/'_proc', ignore_errors=True) # nbdev's force=True would also write the sidebar anew
    if (root/'README.md').exists(): (root/'README.md').touch() # newer than its notebook, so nbdev leaves it to tools/readme.py
    nbdev_docs.__wrapped__(n_workers=0)
    return []


def add_extras(pages, out):
    "What is for machines"
    from docs.pages import llms, sitemap
    (out/'llms.txt').write_text(llms(pages), encoding='utf-8')
    (out/'sitemap.xml').write_text(sitemap(pages), encoding='utf-8')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='only look at what is in _docs/')
    parser.add_argument('--renderer', choices=['quarto', 'sphinx'], default='quarto' if shutil.which('quarto') else 'sphinx', help='default: quarto where it is on the PATH')
    args = parser.parse_args()
    os.chdir(root)
    os.environ.update(BIN_COUNTER_PROGRESS='0')
    warnings.filterwarnings('ignore', category=DeprecationWarning)
    out, start = root/settings(root)['doc_path'], time.time()
    pages, problems = read_nav(root)
    if not args.check:
        from docs.pages import grouped
        from docs.process import adapt_nbdev
        grouped(root)
        adapt_nbdev()
        problems += render_quarto() if args.renderer == 'quarto' else render_sphinx(pages, process(), out)
        add_extras(pages, out)
    if problems := [*problems, *check_site(out, settings(root), root)]: raise DocsError('\n'.join(problems) + f'\n{len(problems)} problems; the pages are in {out} all the same')
    print(f'{len(pages)} pages in {out}, all links and anchors good, {time.time() - start:.0f} s: open {out}/index.html')


if __name__ == '__main__':
    try: main()
    except DocsError as e: sys.exit(str(e))
