"""How Sphinx makes a site of these pages: ``make docs``, without a network."""

import chainer_shared_patch
from docutils import nodes
from docutils.utils.math import latex2mathml

project = 'chainer_shared_patch'
version = release = chainer_shared_patch.__version__
html_title = f'{project} {release}'
html_theme = 'furo'
pygments_dark_style = 'monokai'
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_math_renderer = 'mathml'
html_static_path = html_css_files = ['site.css']

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
# Only commands are copied, without their prompts, and no output.
copybutton_prompt_text = r'\$ |>>> |\.\.\. '
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = '\\'
copybutton_selector = 'div:not(.highlight-text) > div.highlight > pre'
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3  # GitHub's, for links such as page.md#heading
myst_fence_as_directive = ['math']  # GitHub's again
highlight_language = 'text'
suppress_warnings = [
    'misc.highlighting_failure',  # of console commands of several lines
    'myst.xref_missing',  # of ../README.md; test_documents.py checks links
]

# The docstrings give the types.
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
napoleon_use_ivar = True

# Types in plain words, such as array or callable, have no page.
nitpick_ignore_regex = [('py:class', '[a-z ]+')]
# What the docstrings name of other projects has a page there.
CHAINER = 'https://docs.chainer.org/en/v7.8.1/reference/'
NUMPY = 'https://numpy.org/doc/stable/reference/'
LABELS = {
    'initializer': CHAINER + 'initializers.html',
    'ndarray': CHAINER + 'variable.html#ndarray',
}


def find_reference(app, env, node, content):
    """Links what the docstrings name without its module, or elsewhere."""
    name = node['reftarget']
    if name in chainer_shared_patch.__all__:
        return env.get_domain('py').resolve_xref(
            env,
            node['refdoc'],
            app.builder,
            node['reftype'],
            'chainer_shared_patch.' + name,
            node,
            content,
        )
    # Nothing is asked of the network.
    site = {'chainer': CHAINER, 'numpy': NUMPY}.get(name.split('.')[0])
    if site is None and name not in LABELS:
        return None
    uri = LABELS.get(name) or f'{site}generated/{name}.html'
    return nodes.reference('', '', content, internal=False, refuri=uri)


def visit_math(self, node):
    """Writes MathML, which browsers show without a script or a font."""
    is_block = isinstance(node, nodes.math_block)
    self.body.append(latex2mathml.tex2mathml(node.astext(), is_block))
    if not is_block:
        self.body.append('\N{WORD JOINER}')  # keeps punctuation on the line
    raise nodes.SkipNode


def unlink_files(app, doctree, docname):
    """Leaves the words of links to files that are not on the site."""
    for reference in list(doctree.findall(nodes.reference)):
        if '/' in reference.get('refid', ''):
            reference.replace_self(reference.children)


def setup(app):
    app.connect('doctree-resolved', unlink_files)
    app.connect('missing-reference', find_reference)
    app.add_html_math_renderer(
        'mathml', (visit_math, None), (visit_math, None)
    )
