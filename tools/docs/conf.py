"Sphinx's settings for the site; tools/render_docs.py writes the pages that it reads"
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from docutils import nodes
from latex2mathml.converter import convert

from docs.myst import slug
from docs.nav import settings

cfg = settings()
here = Path(__file__).parent

project, author, copyright, version = cfg['title'], cfg['author'], cfg['copyright'], cfg['version']
language = 'en'
extensions = ['myst_nb']
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb'}
exclude_patterns = []
root_doc = 'index'
smartquotes = False
nitpicky = True
math_number_all = False

# reading: what has been executed is shown, nothing is executed here
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'
nb_render_text_lexer = 'none'
myst_enable_extensions = ['colon_fence', 'dollarmath', 'attrs_inline', 'attrs_block', 'deflist', 'tasklist', 'strikethrough']
myst_dmath_allow_space = False
myst_dmath_allow_digits = False
myst_heading_anchors = 6
myst_heading_slug_func = 'docs.myst.slug'
myst_links_external_new_tab = False
suppress_warnings = ['myst.strikethrough']

# writing
html_theme = 'pydata_sphinx_theme'
html_title = cfg['title']
html_baseurl = cfg['doc_host'] + cfg['doc_baseurl'] + '/'
html_static_path = [str(here/'static')]
templates_path = [str(here/'templates')]
html_css_files = ['site.css']
html_js_files = ['site.js']
icon = str(here.parents[1]/'nbs/images/favicon.svg')
html_favicon = icon
html_copy_source = html_show_sourcelink = html_use_index = html_domain_indices = html_show_sphinx = False
html_secnumber_suffix = ' '
html_permalinks_icon = '#'
html_sidebars = {'**': ['site-nav.html']}
html_context = dict(default_mode='auto', base_path=cfg['doc_baseurl'] + '/', description=cfg['description'])
html_theme_options = dict(
    logo=dict(text=cfg['title'], image_light=icon, image_dark=icon, alt_text=''),
    icon_links=[dict(name='Source on GitHub', url=cfg['git_url'], icon='fa-brands fa-github')],
    navbar_center=[], navbar_end=['theme-switcher', 'navbar-icon-links'], navbar_persistent=['search-button-field'],
    article_header_start=[], secondary_sidebar_items=['page-toc'], show_toc_level=2, navigation_with_keys=False,
    footer_start=['copyright'], footer_end=[], search_bar_text='Search names and pages', search_as_you_type=True,
    pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark', back_to_top_button=False,
)


def pandoc_anchors(app, doctree):
    "Give every heading the anchor that pandoc gives it, so that both sites have one address for it; the title is none, as with Quarto"
    known = app.env.metadata[app.env.docname].get('myst_slugs', {})
    seen, new = {}, {}
    for i, section in enumerate(s for s in doctree.findall(nodes.section) if s.get('slug')):
        base = slug(section.next_node(nodes.title).astext())
        n = seen[base] = seen.get(base, -1) + (i > 0)
        anchor = f'{base}-{n}' if n > 0 else base if n == 0 else 'top-of-page'
        new[anchor] = (known[section['slug']][0], anchor, known[section['slug']][2])
        section['ids'] = [anchor]
    app.env.metadata[app.env.docname]['myst_slugs'] = new


def _mathml(self, node, block):
    mathml = convert(node.astext(), display='block' if block else 'inline')
    self.body.append(f'<div class="math" tabindex="0" role="group" aria-label="formula">{mathml}</div>' if block else f'<span class="math">{mathml}</span>')
    raise nodes.SkipNode


def setup(app):
    app.connect('doctree-read', pandoc_anchors, priority=100) # before Sphinx collects titles and anchors
    app.add_html_math_renderer('mathml', inline_renderers=(lambda self, node: _mathml(self, node, False), None), block_renderers=(lambda self, node: _mathml(self, node, True), None))
    app.config.html_math_renderer = 'mathml'
    return dict(parallel_read_safe=True, parallel_write_safe=True)
