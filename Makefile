# The two commands: `make tour` and `make test`. Each makes the virtual environment first if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
FIND_BROWSER = import sys; from workbench.views import find_browser; sys.exit(find_browser() is None)

.PHONY: tour test browser lab gallery study contrast techniques bench base

tour: $(STAMP)  # the whole story, headless, in two minutes
	$(BIN)/python -m workbench run notebooks/00_tour.ipynb

test: $(STAMP)  # lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

browser: $(STAMP)  # every notebook and explorer in JupyterLab, in a real browser; pictures in runs/browser
	$(BIN)/python -m pytest tests/browser -m ''

lab: $(STAMP)  # the notebooks in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

gallery: $(STAMP)  # docs/gallery: what every notebook draws with its defaults, twenty minutes; finished runs are used again
	$(BIN)/python docs/gallery.py

study: $(STAMP)  # the table of docs/large_rate.md: 9 techniques x 5 bases x 5 seeds
	$(BIN)/python -m workbench run notebooks/07_safety_utility_curves.ipynb -p n_bases 5 -p n_seeds 5

contrast: $(STAMP)  # the README's contrastive table: 21 arms x 5 bases x 2 seeds
	$(BIN)/python -m workbench run notebooks/06_contrastive_training.ipynb -p arms all -p n_bases 5 -p n_seeds 2

techniques: $(STAMP)  # every technique through every pipeline, five to ten bases: an hour and a half on two workers; goes on where it stopped
	$(BIN)/python -m workbench sweep studies/techniques.yaml --workers 2
	$(BIN)/python -m workbench run notebooks/08_techniques.ipynb -p records runs/techniques/techniques -p techniques all

bench: $(STAMP)  # what projection costs, as ratios within one run
	$(BIN)/python -m benchmarks

base: $(STAMP)  # the shipped base model, again
	$(BIN)/python -m workbench base data/micro

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Python 3.11, 3.12 or 3.13 is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@$(BIN)/python -c '$(FIND_BROWSER)' || $(BIN)/plotly_get_chrome -y || \
		echo 'No Chrome or Chromium: pictures are left out until the system package chromium is installed.'
	touch $@
