"""What some tests need of a machine, and may not find."""

import pytest

from workbench.views import find_browser

BROWSER = find_browser()  # a system package, which pip cannot bring
NO_BROWSER = "needs Chrome or Chromium, a system package that is not installed"
needs_browser = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
