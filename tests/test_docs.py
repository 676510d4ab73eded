"The documentation site: built once from a copy of the project, then looked at; and the tools that keep pages and notebooks honest."
import functools, http.server, importlib.util, json, os, re, shutil, subprocess, sys, threading
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

for needed in ('nbdev', 'sphinx', 'myst_nb', 'pydata_sphinx_theme', 'latex2mathml'): pytest.importorskip(needed, reason='the documentation needs what the extra dev brings')

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import outputs, readme
from docs.check import check_site
from docs.myst import Site, _origin, convert_notebook, divs, slug
from docs.nav import Page, read_nav, settings
from docs.pages import grouped, help_of, llms, parser_of, scripts, words_of
from docs.process import lede

CFG = settings(ROOT)
BASE = CFG['doc_host'] + CFG['doc_baseurl'] + '/'
PAGES, _ = read_nav(ROOT)


# -- the site

SECRET = 'hands-off-4711' # in the environment of the build

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The whole site, built by one of the test processes for all of them"
    from filelock import FileLock
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith('popen-'): shared = shared.parent
    root = shared/'site'
    with FileLock(shared/'site.lock'):
        if not (shared/'site.json').exists():
            shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns('.*', '_docs', '_proc', 'demo', 'data', 'runs', 'build', 'dist', '__pycache__', '*.egg-info'))
            done = subprocess.run([sys.executable, 'tools/render_docs.py', '--renderer', 'sphinx'], cwd=root, capture_output=True, text=True, env=os.environ | dict(TOKEN_OF_THE_BUILD=SECRET))
            (shared/'site.json').write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    rc, out, err = json.loads((shared/'site.json').read_text())
    return SimpleNamespace(out=root/'_docs', root=root, rc=rc, said=out, problems=err)


class Words(HTMLParser):
    "Text and pictures of a page's article, and the links to sources under its headings"
    def __init__(self, html):
        super().__init__()
        self.text, self.alts, self.sources, self.heading, self.inside = [], [], [], '', None
        self.feed(html[html.index('<article'):html.index('</article>')])
        self.text = re.sub(r'\s+', ' ', ''.join(self.text))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == 'img': self.alts.append(a.get('alt'))
        if re.fullmatch('h[1-6]', tag): self.inside, self.heading = tag, ''
        if tag == 'a' and 'source' in (a.get('class') or '').split(): self.sources.append((self.heading.strip('#'), a['href']))

    def handle_endtag(self, tag):
        if tag == self.inside: self.inside = None

    def handle_data(self, data):
        self.text.append(data)
        if self.inside: self.heading += data


def article(site, html): return Words((site.out/html).read_text())


def test_the_build_finds_no_fault(site):
    "Links, anchors, sources, leftovers, requests to other hosts, pages in no section: the build itself looks for all of them"
    assert (site.rc, site.problems) == (0, '')
    assert f'{len(PAGES)} pages' in site.said


def test_nothing_of_the_builders_environment_is_published(site):
    "`env=os.environ` is a default, and its repr would print every variable that a CI job holds"
    files = [p for folder in (site.out, site.root/'_proc') for p in folder.rglob('*') if p.is_file()]
    assert (site.out/'train.html') in files and 'os.environ' in article(site, 'train.html').text
    assert not [p.name for p in files if SECRET.encode() in p.read_bytes() or b'TOKEN_OF_THE_BUILD' in p.read_bytes()]


def test_every_page_is_in_the_navigation_of_every_page(site):
    for page in PAGES:
        html = (site.out/page.html).read_text()
        nav = html[html.index('<nav class="bd-docs-nav'):html.index('</nav>', html.index('<nav class="bd-docs-nav'))]
        assert len(re.findall('class="(?:current )?reference internal"', nav)) == len(PAGES), page.html
        assert all(s in nav for s in {p.section for p in PAGES})


def test_every_public_name_has_its_address_and_its_source(site):
    "What nbdev's index promises is there, and the link beside it leads to the line of the definition"
    index = importlib.import_module('bin_counter._modidx').d['syms']
    listed = {p.html for p in PAGES}
    for module, names in index.items():
        html = next(iter(names.values()), ('',))[0].split('#')[0]
        if html not in listed: continue
        code = (ROOT/f'{module.replace(".", "/")}.py').read_text().splitlines()
        page, text = article(site, html), (site.out/html).read_text()
        public = {n.rpartition('.')[2] for n in names if n.count('.') == module.count('.') + 1 and not n.rpartition('.')[2].startswith('_')}
        assert not [n for n in public if f'id="{n.lower()}"' not in text], html
        assert public <= {name for name, _ in page.sources}
        for name, url in page.sources:
            line = code[int(url.rpartition('#L')[2]) - 1]
            assert re.match(rf'\s*(async )?(def|class) {name.rpartition(".")[2]}\b', line), (name, url)


def test_pictures_have_words(site):
    alts = [alt for p in PAGES for alt in article(site, p.html).alts]
    assert alts and not [a for a in alts if not a or re.search(r'\.(svg|png|jpe?g)$|_images/', a)]


def test_nothing_of_a_chapter_is_lost(site):
    "The lede stays, and so does what a cell printed"
    cells = json.loads((ROOT/'nbs/00_core.ipynb').read_text())['cells']
    page = article(site, 'core.html').text
    first = lede(''.join(cells[0]['source'])).split('\n')[0].replace('**', '').replace('`', '')
    assert first[:80] in page
    printed = [''.join(o['text']) for c in cells for o in c.get('outputs', []) if o['output_type'] == 'stream']
    assert printed and all(re.sub(r'\s+', ' ', t).strip()[:60] in page for t in printed)


def test_llms_and_sitemap_list_every_page(site):
    text = (site.out/'llms.txt').read_text()
    assert text == llms(PAGES, ROOT) and re.match(r'# .+\n\n> .+\n\n', text)
    links = re.findall(r'^- \[[^\]]+\]\((\S+)\): \S.+$', text, re.M)
    assert links == [BASE + p.html for p in PAGES]
    urls = [e.text for e in ET.parse(site.out/'sitemap.xml').iter('{http://www.sitemaps.org/schemas/sitemap/0.9}loc')]
    assert sorted(urls) == sorted(BASE + ('' if p.html == 'index.html' else p.html) for p in PAGES)


# -- commands

@pytest.mark.parametrize('name', scripts(ROOT))
def test_the_page_of_commands_says_what_help_says(site, name):
    "Every option with its words and its default, in the section of its command"
    plain = lambda s: re.sub(r'\W+', ' ', s)
    whole = (site.out/'commands.html').read_text()
    html = whole[whole.index(f'id="{name}"'):]
    page = plain(re.sub(r'<[^>]+>', '', html.split('<section id="')[0]).replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&'))
    said = help_of(name, ROOT)
    options = [o for o in re.findall(r'^  (--?[\w-]+)', said, re.M) if o not in ('-h', '--pdb', '--xtra')]
    assert plain(parser_of(name, ROOT).description).strip() in page
    assert not [o for o in options if f'<span class="pre">{o}</span>' not in html.split('<section id="')[0]]
    for action in parser_of(name, ROOT)._actions:
        if action.dest in ('help', 'pdb', 'xtra') or not action.help: continue
        words = plain(action.help.split('(default')[0]).strip()
        assert words in page and words in plain(said), action.dest


@pytest.mark.parametrize('example', [e for group in grouped(ROOT).values() for e in group.values()])
def test_the_example_of_a_command_parses(example):
    name, *args = words_of(example)
    parser_of(name, ROOT).parse_args(args)


def lines_for_a_shell():
    "Our commands in the shell blocks of the tutorials"
    for path in sorted((ROOT/'nbs/tutorials').glob('*.ipynb')):
        prose = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown')
        for block in re.findall(r'^```sh\n(.*?)^```', prose, re.M | re.S): yield from ((path.stem, line) for line in block.splitlines() if words_of(line)[0] in scripts(ROOT))


@pytest.mark.parametrize('tutorial, line', [(t, line) for t, line in lines_for_a_shell() if not line.endswith('...')])
def test_a_line_of_a_tutorial_parses(tutorial, line):
    name, *args = words_of(line)
    parser_of(name, ROOT).parse_args(args)


# -- what is refused

def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def notebook(*cells): return json.dumps(dict(cells=[dict(cell_type=kind, id=f'c{i}', metadata={}, source=source, **({} if kind == 'markdown' else dict(outputs=[], execution_count=None))) for i, (kind, source) in enumerate(cells)], metadata={}, nbformat=4, nbformat_minor=5))


@pytest.mark.parametrize('listed, problem', [
    (['index.ipynb', '01_a.ipynb'], ''), (['index.ipynb'], '01_a.ipynb is in nbs/ and in no section'),
    (['index.ipynb', '01_a.ipynb', '02_b.ipynb'], '02_b.ipynb is in nbs/sidebar.yml and not in nbs/'), (['index.ipynb', '01_a.ipynb', '01_a.ipynb'], '01_a.ipynb is in nbs/sidebar.yml twice')])
def test_the_navigation_and_the_notebooks_agree(tmp_path, listed, problem):
    for name in ('index', '01_a'): put(tmp_path/f'nbs/{name}.ipynb', notebook(('markdown', f'# {name}\n\n> The point.')))
    put(tmp_path/'nbs/sidebar.yml', json.dumps(dict(website=dict(sidebar=dict(contents=[dict(section='All', contents=listed)])))))
    pages, bad = read_nav(tmp_path)
    assert [b.startswith(problem) for b in bad] == ([True] if problem else [])
    assert {p.html for p in pages} <= {'index.html', 'a.html'}


GOOD = '<html lang="en"><title>A page</title><main><h1 id="top-of-page">A</h1><h2 id="b">B</h2>%s</main></html>'


@pytest.mark.parametrize('body, problem', [
    ('<a href="other.html#b">good</a><a href="#b">good</a><a href="https://elsewhere.org">may be followed</a><code>:::</code>', ''),
    ('<a href="missing.html">x</a>', 'missing.html leads nowhere'), ('<a href="other.html#none">x</a>', 'other.html#none: no such anchor'), (f'<a href="{BASE}other.html#none">x</a>', 'no such anchor'),
    (f'<a href="{CFG["git_url"]}/blob/{CFG["branch"]}/bin_counter/none.py#L3">x</a>', 'no such file in the repository'), (f'<a href="{CFG["git_url"]}/blob/{CFG["branch"]}/setup.py#L99999">x</a>', 'has no line 99999'),
    ('<script src="https://cdn.example.org/x.js"></script>', 'loads https://cdn.example.org/x.js'), ('<style>@import "//fonts.example.org/a.css"</style>', 'loads //fonts.example.org'), ('<img src="gone.png" alt="x">', 'loads gone.png, which is not there'),
    ('<p>see [here](core.html)</p>', 'markdown link'), ('<p>::: {.note}</p>', 'attribute list|div fence'), ('<p>source{target="_blank"}</p>', 'attribute list'), ('<p>12%|██▌ | 3/25 [00:01, 2.1it/s]</p>', 'progress bar'), ('<pre>100%|████| 9/9</pre>', 'progress bar'),
    ('<img src="a.png">', 'without words'), ('<h2 id="b">again</h2>', "id 'b' twice"), ('<h1>again</h1>', '2 headings of the first level')])
def test_the_check_sees(tmp_path, body, problem):
    put(tmp_path/'index.html', GOOD % body)
    put(tmp_path/'other.html', GOOD % '')
    found = [f for f in check_site(tmp_path, CFG, ROOT) if f.startswith('index.html')]
    assert bool(found) == bool(problem)
    assert not problem or re.search(problem, '\n'.join(found))


# -- from Quarto's markdown to MyST

@pytest.mark.parametrize('text, expected', [
    ('::: {.callout-note}\nsaid\n:::', ':::{admonition} Note\n:class: note\n\nsaid\n:::'),
    ("::: {.callout-tip title='Why so'}\nsaid\n:::", ':::{admonition} Why so\n:class: tip\n\nsaid\n:::'),
    ('::: {.callout-warning}\n## Mind\nsaid\n:::', ':::{admonition} Mind\n:class: warning\n\n\nsaid\n:::'),
    ('::: {.wide .pale}\n::: {.callout-tip}\nin\n:::\n:::', '::::{container} wide pale\n\n:::{admonition} Tip\n:class: tip\n\nin\n:::\n::::')])
def test_divs(text, expected): assert divs(text) == expected


@pytest.mark.parametrize('heading, anchor', [('Two commands', 'two-commands'), ('KeepRun.load', 'keeprun.load'), ('draw_bins', 'draw_bins'), ('Is it? Yes: 2 of 3', 'is-it-yes-2-of-3'), ('33% became 57%', 'became-57')])
def test_anchors_are_those_of_pandoc(heading, anchor): assert slug(heading) == anchor


def test_links_lead_to_pages_where_there_is_one():
    site, here = Site(PAGES, CFG, ROOT), next(p for p in PAGES if p.html == 'evaluate.html')
    below = Page('tutorials/01_first.ipynb', 'Tutorials', 'First', 'One.', 'tutorials/first.html')
    for url, to in [('00_core.ipynb#counts', 'core.ipynb#counts'), ('nbs/00_core.ipynb', 'core.ipynb'), (BASE + 'core.html#counts', 'core.ipynb#counts'), ('commands.qmd', 'commands.md'), ('../benchmarks/README.md', 'benchmarks.md'),
                    ('../settings.ini', f'{site.blob}settings.ini'), ('https://elsewhere.org', 'https://elsewhere.org'), ('#part', '#part')]: assert site.link(url, here) == to
    assert site.link('../00_core.ipynb', below) == '../core.ipynb' and site.link(BASE + 'core.html', below) == '../core.ipynb'


def test_a_tutorial_is_no_module_though_it_is_called_like_one():
    "nbs/tutorials/serve.ipynb is not what bin_counter/serve.py is written from"
    site = Site(PAGES, CFG, ROOT)
    assert (ROOT/'bin_counter/serve.py').exists()
    assert 'This page is a [notebook]' in _origin(Page('tutorials/serve.ipynb', 'Tutorials', 'Serve', 'One.', 'tutorials/serve.html'), site)
    assert 'Module [`bin_counter.serve`]' in _origin(Page('10_serve.ipynb', 'The pipeline', 'Serve', 'One.', 'serve.html'), site)


def test_a_cell_is_shown_as_its_options_say(tmp_path):
    nb = json.loads(notebook(('markdown', '# T\n\n> P'), ('code', '#| echo: false\nseen()'), ('code', '#| output: false\nrun()'), ('code', '#| fig-alt: "Three bars"\nplot()')))
    for c in nb['cells'][1:3]: c['outputs'] = [dict(output_type='stream', name='stdout', text=['10%|#|\r', '100%|##|\r', 'done\n'])]
    nb['cells'][3]['outputs'] = [dict(output_type='display_data', metadata={}, data={'image/svg+xml': ['<svg/>']})]
    put(tmp_path/'x.ipynb', json.dumps(nb))
    _, _, silent, quiet, drawn = json.loads(convert_notebook(tmp_path/'x.ipynb', Page('x.ipynb', 'S', 'T', 'P', 'x.html'), Site([], CFG, ROOT)))['cells']
    assert silent['metadata']['tags'] == ['remove-input'] and silent['outputs'][0]['text'] == 'done\n'
    assert quiet['source'] == 'run()' and quiet['outputs'] == []
    assert drawn['metadata']['mystnb']['image'] == dict(alt='Three bars', classes='plot')


def test_the_readme_has_links_from_the_root():
    text = '![A bin](images/overview.svg){.inline} [core](00_core.ipynb#counts) [figures](benchmarks.qmd) [there](https://elsewhere.org/a)\n```sh\n[x](00_core.ipynb)\n```'
    assert readme.prose(text) == '![A bin](nbs/images/overview.svg) [core](nbs/00_core.ipynb#counts) [figures](benchmarks/README.md) [there](https://elsewhere.org/a)\n```sh\n[x](00_core.ipynb)\n```'


def test_the_drawing_shows_a_true_answer():
    from bin_counter.core import make_answer
    probs = [.05, .22, .51, .17, .05]
    answer, drawing = make_answer(probs, recorded=5), (ROOT/'nbs/images/overview.svg').read_text()
    said = re.findall(r'>(\d+)%<', drawing)
    assert said == [f'{100*p:.0f}' for p in probs] + [f'{100*answer["p_mismatch"]:.0f}'] and answer['alarm'] and answer['count'] == 3
    heights = {int(h) for h in re.findall(r'width="26" height="(\d+)" rx="2"', drawing)}
    assert heights == {round(p*233) for p in probs}


# -- outputs that are older than their code

@pytest.fixture
def stamped(tmp_path):
    "A notebook that was run"
    put(tmp_path/'settings.ini', (ROOT/'settings.ini').read_text().replace('allowed_metadata_keys = outputs_of\n', '').replace('clear_all = False', 'clear_all = False\nallowed_metadata_keys = outputs_of'))
    put(tmp_path/'nbs/01_a.ipynb', notebook(('markdown', '# A\n\n> Point.'), ('code', 'import time\nx = 6'), ('code', 'x*7'), ('code', '#| abid\nundefined'), ('code', 'print(f"{time.perf_counter():.3f} s")')))
    done = subprocess.run([sys.executable, ROOT/'tools/outputs.py', 'run', 'nbs/01_a.ipynb'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path/'nbs/01_a.ipynb'


def change(path, edit):
    nb = json.loads(path.read_text())
    edit(nb)
    path.write_text(json.dumps(nb))
    return outputs.staleness(nb)


def test_a_run_saves_outputs_and_leaves_out_what_nbdev_test_leaves_out(stamped):
    cells = json.loads(stamped.read_text())['cells']
    assert cells[2]['outputs'][0]['data']['text/plain'] in ('42', ['42']) and cells[3]['outputs'] == []
    assert outputs.check([stamped]) == ''


@pytest.mark.parametrize('edit, stale', [
    (lambda nb: nb['cells'][2].update(source='x*8'), "cell c2 on: 'x*8'"), (lambda nb: nb['cells'][1].update(source='import time\nx = 7'), 'cell c1 on'),
    (lambda nb: nb['cells'].pop(2), 'older than the code'), (lambda nb: nb['cells'].pop(), 'added or removed'), (lambda nb: nb['cells'].insert(1, nb['cells'].pop(2)), 'older than the code'), (lambda nb: nb['metadata'].pop('outputs_of'), 'nobody stamped'),
    (lambda nb: nb['cells'][4]['outputs'][0].update(text=['9.999 s\n']), ''), (lambda nb: nb['cells'][0].update(source='# A\n\n> Said better.'), ''), (lambda nb: nb['cells'][2].update(source='x*7  \n'), '')],
    ids=['changed', 'changed above', 'removed', 'removed at the end', 'moved', 'no stamp', 'other seconds', 'prose', 'white space'])
def test_a_changed_cell_with_a_stale_output_is_caught(stamped, edit, stale):
    said = change(stamped, edit)
    assert stale in said and bool(said) == bool(stale)


def test_cleaning_keeps_the_stamp(stamped):
    "Through the very command that contributors use"
    change(stamped, lambda nb: nb['metadata'].update(vscode={'x': 1}))
    subprocess.run([sys.executable, '-c', f'from nbdev.clean import nbdev_clean; nbdev_clean(fname={str(stamped)!r})'], cwd=stamped.parents[1], check=True, env={'HOME': str(stamped.parents[1])})
    assert set(json.loads(stamped.read_text())['metadata']) >= {'outputs_of'} and 'vscode' not in stamped.read_text()


def test_a_run_that_fails_stamps_nothing(stamped):
    change(stamped, lambda nb: nb['cells'][2].update(source='1/0'))
    done = subprocess.run([sys.executable, ROOT/'tools/outputs.py', 'run', 'nbs/01_a.ipynb'], cwd=stamped.parents[1], capture_output=True, text=True)
    assert done.returncode and 'ZeroDivisionError' in done.stderr and outputs.staleness(json.loads(stamped.read_text()))


# -- in a browser

@pytest.fixture(scope='module')
def served(site):
    "The site under the path that it has when it is published"
    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path): return super().translate_path(path.removeprefix(CFG['doc_baseurl']))
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=site.out))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}{CFG["doc_baseurl"]}/'
    server.shutdown()
    server.server_close()


def look(browser, scheme='light', width=1280):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=False))
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=scheme)]))


@pytest.mark.parametrize('scheme, width', [('light', 1280), ('dark', 390)])
def test_no_barriers_no_errors_no_strangers(browser, served, scheme, width):
    "axe-core finds nothing serious, the console is quiet, nothing comes from another host, nothing is wider than the window"
    spec = importlib.util.find_spec('axe_core_python')
    if not spec: pytest.skip('axe-core not found: pip install axe-core-python')
    axe = (Path(spec.origin).parent/'axe.min.js').read_text()
    browser.get_log('browser'), browser.get_log('performance') # of the browser's own first page
    look(browser, scheme, width)
    for html in ('index.html', 'evaluate.html', 'commands.html', 'model_card.html', 'search.html?q=split', '404.html'):
        browser.get(served + html)
        assert browser.execute_script('return document.documentElement.dataset.theme') == scheme
        assert browser.execute_script('return document.documentElement.scrollWidth <= innerWidth'), f'{html} is wider than {width} pixels'
        assert not [m for m in browser.get_log('browser') if m['level'] in ('SEVERE', 'WARNING')], html
        sent = [json.loads(m['message'])['message'] for m in browser.get_log('performance')]
        urls = [m['params']['request']['url'] for m in sent if m['method'] == 'Network.requestWillBeSent']
        assert served + html in urls and not [u for u in urls if u.startswith('http') and not u.startswith(served)]
        browser.execute_script(axe)
        found = browser.execute_async_script("const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(r => done(r.violations), e => done([{id: String(e), impact: 'critical', nodes: []}]))")
        assert not [(v['id'], [n['target'] for n in v['nodes']][:3]) for v in found if v['impact'] in ('serious', 'critical')], html
        browser.get_log('browser'), browser.get_log('performance') # what axe itself fetched


def test_search_works_without_a_server(site, browser):
    look(browser)
    browser.get(f'file://{site.out}/search.html?q=split_bins')
    found = browser.execute_async_script('''const done = arguments[0], end = Date.now() + 10000;
        (function wait() { const links = [...document.querySelectorAll('#search-results a')].map(a => a.href);
                           links.some(l => l.includes('balance.html')) || Date.now() > end ? done(links) : setTimeout(wait, 50) })()''')
    assert any('balance.html' in link for link in found)
    assert not [m for m in browser.get_log('browser') if m['level'] == 'SEVERE']


def test_the_keyboard_reaches_text_and_pages(browser, served):
    "The first stop leads past the navigation; on a phone the pages open in a dialog"
    from selenium.webdriver.common.keys import Keys
    look(browser)
    browser.get(served + 'core.html')
    browser.find_element('tag name', 'body').send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute('href').endswith('#main-content')
    assert browser.execute_script('return getComputedStyle(document.activeElement).outlineStyle') != 'none'
    look(browser, width=390)
    browser.get(served + 'core.html')
    button = browser.find_element('css selector', '.primary-toggle')
    button.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('#pst-primary-sidebar-modal').open")
    assert browser.execute_script("return document.querySelector('#pst-primary-sidebar-modal').textContent.includes('The pipeline')")
