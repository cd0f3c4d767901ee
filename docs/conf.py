"""Configuration of the documentation site; `scripts/docs` builds it.

Nothing is loaded from other hosts, neither by the build nor by the pages. The reference pages are made from the package
by the extensions in `_ext`, so they are never older than the code.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from tessella import __version__

project = "Tessella"
author = "The Tessella authors"
copyright = "The Tessella authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "command_help",
    "command_list",
    "comparison",
    "docstrings",
    "error_codes",
    "public_api",
    "repository",
    "settings_list",
]

source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext", "_static"]
default_role = "literal"  # docstrings and help texts use single backticks for code
smartquotes = False  # they would change code and messages that are quoted in sentences
highlight_language = "none"  # blocks without a language are output or formulas

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # the same anchors as on a code host
myst_url_schemes = {"http": None, "https": None, "mailto": None, "repository": None}  # see `_ext/repository.py`

autodoc_inherit_docstrings = False  # those of PyTorch say nothing about our models
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Tessella"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = "../src/tessella/serve/page/icon.svg"  # of the page of the server
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_domain_indices = False
html_theme_options = {"navigation_with_keys": True}

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
